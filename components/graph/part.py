"""Part: what is selected in the graph, in full: its values, their norm by position, what it does to the logits."""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import panel as pn
from bokeh.models import ColumnDataSource, HoverTool, LinearColorMapper
from bokeh.plotting import figure

from transpector.components import theme
from transpector.components.base import Pane, figures, visible
from transpector.components.parts.notice import Notice
from transpector.components.parts.position_bars import PositionBars
from transpector.components.parts.promoted_tokens import PromotedTokens
from transpector.components.parts.site_actions import SiteActions
from transpector.components.parts.token_bars import TokenBars
from transpector.components.parts.unit import name_of, scalar_of
from transpector.state.errors import SiteError, TranspectorError
from transpector.state.interventions import Scale, Set
from transpector.state.sites import Site

N_LARGEST = 6
N_TOKENS = 5
MAX_COLUMNS = 256  # of the picture of values; more are pooled by what is furthest from zero
DIRECT_KINDS = ("embed", "resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
"""What is added to the residual stream, or is the stream, and so has a direct effect on the logits."""
DIRECT = "Direct effect on the logits, about their mean: what it writes, through the final norm and the unembedding"
_POOLED = "each column: the largest of {} dimensions"


class PartInspector(Pane):
    """The first selected part of the model's graph, or the selected neuron or dimension, and buttons that change it."""

    reads: ClassVar = ("run", "baseline", "selection", "position")

    def __init__(self, session: Any, **params: Any):
        super().__init__(session, **params)
        dark = self.param.dark
        self._title = Notice(dark=dark, tone="big")
        self._what = Notice(dark=dark)
        self._where = Notice(dark=dark, tone="heading")
        self._pooled = Notice(dark=dark)
        more = {"Scale": lambda site: Scale(site, 2.0), "Set": self._set}
        self.actions = SiteActions(session, lambda: session.sites, more=more)
        self._far: dict[Site, float] = {}  # what the neuron or dimension that is shown is set to
        for button in self.actions.buttons:
            button.sizing_mode = "stretch_width"
        self._more = self._row(self.actions.buttons[4:], visible=False)
        self._tokens = PromotedTokens(DIRECT, dark=dark, visible=False)
        self._largest_title = Notice(dark=dark, tone="heading")
        self._largest = TokenBars(dark=dark)
        self._activation = PositionBars("activation", dark=dark)
        self._norm = PositionBars("norm", dark=dark)
        self._scale = PositionBars("scale", dark=dark)
        self._image = ColumnDataSource({"values": [], "x": [], "y": [], "dw": [], "dh": []})
        self._mapper = LinearColorMapper(palette=theme.palette("diverging"), low=-1, high=1)
        self.figure = self._figure()
        session.param.watch(lambda event: self.actions.offer(), ["selection", "model"])
        self.param.watch(self._paint, "dark")
        self._paint()
        self.refresh()

    def _figure(self) -> Any:
        plot = figure(
            height=144,
            sizing_mode="stretch_width",
            tools="",
            toolbar_location=None,
            min_border=4,
            visible=False,
            x_range=(0, 1),
            y_range=(1, 0),
        )
        values = plot.image(
            "values", x="x", y="y", dw="dw", dh="dh", source=self._image, color_mapper=self._mapper
        )
        plot.add_tools(
            HoverTool(
                renderers=[values],
                tooltips=[("position", "$y{0}"), ("column", "$x{0}"), ("value", "@values{0.000}")],
            )
        )
        plot.grid.visible = False
        plot.yaxis.axis_label = "position"
        plot.xaxis.ticker.desired_num_ticks = 4
        plot.yaxis.ticker.desired_num_ticks = 4
        return plot

    def _set(self, site: Site) -> Set:
        if site not in self._far:
            raise SiteError(f"{site} is not shown yet. Set it once it is.")
        return Set(site, self._far[site])

    def measure(self, run: Any, baseline: Any, selection: list[str], position: int) -> dict[str, Any]:
        from transpector.state import measure
        from transpector.state.graph import NORMS, graph

        parts, scalar = graph(run.model), scalar_of(selection)
        at = min(position, run.n_pos - 1)
        if scalar is not None and (whole := str(Site(*scalar.tensor))) in parts:
            return self._of_scalar(run, baseline, parts[whole], scalar, at)
        ids = [id for id in selection if id in parts]
        if len(selection) != 1 or not ids:
            what = "" if ids else "A whole layer: unfold it to see its parts."
            names = ", ".join(selection[:12]) + (" …" if len(selection) > 12 else "")
            return {
                "title": f"{len(selection)} parts" if len(selection) > 1 else names,
                "what": what or names,
            }
        node = parts[ids[0]]
        numbers: dict[str, Any] = {"title": node.id, "tokens": visible(run.tokens)}
        shape = " × ".join(f"{run.n_pos if size == 'pos' else size:,}" for size in node.shape)
        numbers["what"] = f"{node.hook}, {shape}"
        try:
            values = measure.part_values(run, node)
        except TranspectorError as error:
            return numbers | {"what": f"{numbers['what']}. {error}"}
        numbers["values"], numbers["pooled"] = _pooled(values)
        numbers["where"] = _where(run, at if node.position is None else node.position)
        if node.kind in NORMS:
            numbers["scale"] = measure.part_norms(run, [node]).get(node.id)
        if len(values) > 1:
            numbers["norm"] = np.linalg.norm(values, axis=-1)
        if node.kind in DIRECT_KINDS:
            return numbers | _promoted(run, node, at)
        row = values[0 if len(values) == 1 else at]
        largest = np.argsort(-np.abs(row))[:N_LARGEST]
        numbers["largest"] = [(int(each), float(row[each])) for each in largest]
        what = "N" if node.kind.startswith("mlp_p") else "token " if node.kind == "unembed" else "dim "
        return numbers | {"of": what}

    def _of_scalar(self, run: Any, baseline: Any, part: Any, site: Site, at: int) -> dict[str, Any]:
        """What there is to say of one neuron or dimension of a part."""
        spec = run.model.spec
        if site.neuron is not None:
            which = f"neuron {site.neuron:,} of {spec.d_mlp:,}"
        else:
            which = f"dimension {site.dim:,} of {spec.d_model:,}"
        numbers = {
            "title": name_of(replace(site, position=None)),
            "what": f"{part.hook}, {which}",
            "tokens": visible(run.tokens),
        }
        try:
            site.check(spec, run.n_pos)
            values, before = (each.activation(replace(site, position=None)) for each in (run, baseline))
        except TranspectorError as error:
            return numbers | {"what": f"{numbers['what']}. {error}"}
        at = site.position if isinstance(site.position, int) else at
        numbers["where"] = f"{_where(run, at)}: {figures(float(values[at]), signed=True)}"
        numbers |= {"activation": values, "far": {site: float(f"{2 * np.abs(before).max():.2g}") or 1.0}}
        return numbers | _promoted(run, site, at)

    def show(self, numbers: dict[str, Any]) -> None:
        self._title.text, self._what.text = numbers["title"], numbers["what"]
        self.actions.offer()
        self._far = numbers.get("far", {})
        self._more.visible = bool(self._far)
        for far in self._far.values():
            self.actions.buttons[
                -1
            ].description = f"Write {far:g} into it, twice as far from zero as it gets by itself"
        self._where.text = numbers.get("where", "")
        self._tokens.visible = "up" in numbers or "hidden" in numbers
        if "up" in numbers:
            self._tokens.show(numbers["up"], numbers["down"])
        else:
            self._tokens.refuse(numbers.get("hidden", ""))
        rows = [
            {
                "piece": f"{numbers['of']}{dim}",
                "value": value,
                "label": figures(value, signed=True),
                "hint": f"{value:+.5f}",
            }
            for dim, value in numbers.get("largest", ())
        ]
        self._largest.param.update(rows=rows, visible=bool(rows))
        self._largest_title.text = "largest" if rows else ""
        values = numbers.get("values")
        self.figure.visible = values is not None
        if values is not None:
            n_pos, n_columns = values.shape
            top = float(np.quantile(np.abs(values), 0.99)) or 1.0
            self._mapper.update(low=-top, high=top)
            self.figure.x_range.end, self.figure.y_range.start = n_columns, n_pos
            self._image.data = {"values": [values], "x": [0], "y": [0], "dw": [n_columns], "dh": [n_pos]}
        pooled = numbers.get("pooled", 1)
        self._pooled.text = _POOLED.format(pooled) if pooled > 1 else ""
        bars = {"norm": self._norm, "scale": self._scale, "activation": self._activation}
        for name, each in bars.items():
            found = numbers.get(name)
            each.figure.visible = found is not None
            if found is not None:
                each.show(found, numbers["tokens"])

    def _paint(self, *events: Any) -> None:
        theme.paint(self.figure, self.dark)
        self._mapper.palette = theme.palette("diverging", self.dark)

    def _row(self, buttons: list[Any], **params: Any) -> pn.Row:
        return pn.Row(*buttons, sizing_mode="stretch_width", styles={"gap": f"{theme.UNIT}px"}, **params)

    def __panel__(self) -> Any:
        buttons = self.actions.buttons
        return pn.Column(
            self._title,
            self._what,
            self._row(buttons[:2]),
            self._row(buttons[2:4]),
            self._more,
            pn.pane.Bokeh(self.figure, sizing_mode="stretch_width"),
            self._pooled,
            self._where,
            self._tokens,
            self._largest_title,
            self._largest,
            self._activation,
            self._norm,
            self._scale,
            sizing_mode="stretch_width",
            styles={"gap": f"{theme.UNIT}px"},
        )


def _where(run: Any, position: int) -> str:
    return f"at {visible(run.tokens)[position]}  (position {position % run.n_pos})"


def _promoted(run: Any, part: Any, position: int) -> dict[str, Any]:
    """The tokens that a part promotes and suppresses, or why they can't be told."""
    from transpector.state import direct

    try:
        up, down = direct.promoted(run, part, position, N_TOKENS)
    except TranspectorError as error:
        return {"hidden": str(error)}
    return {"up": up, "down": down}


def _pooled(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Values [pos, column] of at most MAX_COLUMNS columns, and how many dimensions each stands for."""
    each = -(-values.shape[1] // MAX_COLUMNS)
    if each == 1:
        return values, 1
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % each))).reshape(len(values), -1, each)
    furthest = np.abs(padded).argmax(-1)
    return np.take_along_axis(padded, furthest[..., None], -1)[..., 0], each
