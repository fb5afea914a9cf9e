"""Inspector: what the selected head does at the selected position, and what can be done to it."""

from typing import Any, ClassVar

import numpy as np
import panel as pn
import panel_material_ui as pmui
from bokeh.models import ColumnDataSource, HoverTool
from bokeh.plotting import figure

from transpector.components import theme
from transpector.components.base import Pane, short, visible
from transpector.components.parts.notice import Notice
from transpector.components.parts.token_bars import TokenBars
from transpector.state.interventions import Ablate, Freeze, Patch
from transpector.state.sites import Site

N_TOKENS = 5
OF_A_HEAD = ("z", "pattern", "scores", "q", "k", "v")
OF_WHAT = "What the buttons below change"


class Inspector(Pane):
    """The selected head: buttons that intervene on it, what it promotes and suppresses, how much it writes."""

    reads: ClassVar = ("run", "head", "position")

    def __init__(self, session: Any, **params: Any):
        super().__init__(session, **params)
        self._title = Notice(dark=self.param.dark, tone="big")
        self._of = pmui.Select(
            label="Of this head",
            description=OF_WHAT,  # there from the first: a select that gains one later breaks in the browser
            options=list(OF_A_HEAD),
            value="z",
            size="small",
            margin=0,
            sizing_mode="stretch_width",
        )
        self._buttons = {
            "Zero": ("block", "Set it to zero", lambda site: Ablate(site)),
            "Mean": (
                "functions",
                "Set it to its mean over the positions of the baseline",
                lambda site: Ablate(site, "mean"),
            ),
            "Freeze": (
                "ac_unit",
                "Hold the value it has now, while the text or other interventions change",
                Freeze,
            ),
            "Patch": ("alt_route", "Write into it what it holds on text B", self._patch),
        }
        self._row = [self._button(label, *rest) for label, rest in self._buttons.items()]
        self._where = Notice(dark=self.param.dark, tone="heading")
        self._promotes = TokenBars(dark=self.param.dark)
        self._suppresses = TokenBars(dark=self.param.dark)
        self._source = ColumnDataSource({"x": [], "norm": [], "token": []})
        self.figure = self._figure()
        session.param.watch(self._offer, ["model", "text_b"])
        self.param.watch(self._paint, "dark")
        self._offer()
        self._paint()

    def _button(self, label: str, icon: str, says: str, make: Any) -> pmui.Button:
        button = pmui.Button(
            label=label,
            icon=icon,
            description=says,
            variant="outlined",
            size="small",
            margin=0,
            sizing_mode="stretch_width",
        )
        button.on_click(lambda event: self.session.add(make(self._site())))
        return button

    def _site(self) -> Site:
        layer, head = self.session.head
        kind = self._of.value
        if kind in ("k", "v"):  # several heads may read one key-value head
            spec = self.session.model.spec
            head = head * spec.n_kv_heads // spec.n_heads
        return Site(kind, layer, head)

    def _patch(self, site: Site) -> Patch:
        return Patch(site, site, self.session.text_b)

    def _offer(self, *events: Any) -> None:
        """Grey out what this model can't do, with the reason."""
        model = self.session.model
        if model is not None:
            unable = [kind for kind in OF_A_HEAD if not model.health.can_write(kind)]
            self._of.param.update(
                disabled_options=unable,
                description="; ".join(
                    reason for reason in model.health.reasons if reason.split(":")[0] in unable
                )
                or OF_WHAT,
                value="z" if self._of.value in unable else self._of.value,
            )
        for button in self._row:
            button.disabled = model is None
        self._row[3].param.update(
            disabled=model is None or not self.session.text_b,
            description="Write into it what it holds on text B"
            if self.session.text_b
            else "Type a text B first",
        )

    def _figure(self) -> Any:
        plot = figure(
            height=110,
            sizing_mode="stretch_width",
            tools="",
            toolbar_location=None,
            min_border=4,
            visible=False,
        )
        self._bars = plot.vbar(x="x", top="norm", width=0.8, source=self._source, line_color=None)
        plot.add_tools(
            HoverTool(
                renderers=[self._bars],
                mode="vline",
                tooltips=[("token", "@token (position @x)"), ("norm", "@norm{0.00}")],
            )
        )
        plot.xgrid.visible = False
        plot.y_range.start = 0
        plot.yaxis.axis_label = "norm"
        plot.yaxis.ticker.desired_num_ticks = 3
        return plot

    def measure(self, run: Any, head: tuple[int, int], position: int) -> dict[str, Any]:
        from transpector.state import measure  # brings torch, which the first paint does not wait for

        at = min(position, run.n_pos - 1)
        up, down = measure.head_tokens(run, *head, at, N_TOKENS)
        norm = measure.result_norm(run, *head)
        pieces = visible(run.tokens)
        return {
            "title": "L{}H{}".format(*head),
            "where": f"at {pieces[at]}  (position {at % run.n_pos})",
            "up": up,
            "down": down,
            "norm": {"x": np.arange(run.n_pos), "norm": norm, "token": pieces},
        }

    def show(self, numbers: dict[str, Any]) -> None:
        self._title.text = numbers["title"]
        self._where.text = numbers["where"]
        top = max(1e-9, *(abs(value) for _, value in numbers["up"] + numbers["down"]))
        for bars, tokens in ((self._promotes, numbers["up"]), (self._suppresses, numbers["down"])):
            rows = [
                {
                    "piece": visible([piece])[0],
                    "value": value,
                    "label": short(value, signed=True),
                    "hint": f"{piece!r}: {value:+.4f} logits",
                }
                for piece, value in tokens
            ]
            nothing = all(abs(value) < 1e-9 for _, value in tokens)
            bars.param.update(rows=[] if nothing else rows, top=top, empty="Nothing: it writes zero here.")
        self.figure.visible = True
        self._source.data = numbers["norm"]

    def _paint(self, *events: Any) -> None:
        theme.paint(self.figure, self.dark)
        self._bars.glyph.fill_color = theme.ground(self.dark).accent

    def __panel__(self) -> Any:
        def heading(text: str, hint: str = "") -> Notice:
            return Notice(text=text, hint=hint, tone="heading", dark=self.param.dark)

        direct = "Direct effect on the logits, about their mean: the head's result through the final norm and the unembedding"
        return pn.Column(
            self._title,
            self._of,
            pn.Row(*self._row[:2], sizing_mode="stretch_width", styles={"gap": f"{theme.UNIT}px"}),
            pn.Row(*self._row[2:], sizing_mode="stretch_width", styles={"gap": f"{theme.UNIT}px"}),
            self._where,
            heading("promotes (logits)", direct),
            self._promotes,
            heading("suppresses (logits)", direct),
            self._suppresses,
            heading("norm of what it writes, by position", "‖z @ W_O‖"),
            pn.pane.Bokeh(self.figure, sizing_mode="stretch_width"),
            sizing_mode="stretch_width",
            styles={"gap": f"{theme.UNIT}px"},
        )
