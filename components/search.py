"""Search: which heads and neurons of the whole model write a token, by their weights and on this text."""

from typing import Any

import panel as pn
import panel_material_ui as pmui
import param
from panel.viewable import Viewer

from transpector.components import theme
from transpector.components.base import figures, visible
from transpector.components.parts.notice import Notice
from transpector.components.parts.site_list import SiteList
from transpector.components.parts.sweep_form import button, select
from transpector.state.errors import TranspectorError
from transpector.state.session import Session

HERE, WEIGHTS = "On this text", "By weights"
N_LISTED = 20
_INTRODUCTION = (
    "Type a token, such as “ Paris” with its space, and find which heads and neurons write it into the residual stream: "
    "on this text, at the position where each does so most, and by their weights, whatever the text."
)
_STALE = "The text or the interventions have changed since: search again."
_BUG = "Something went wrong inside Transpector ({}). The log has the details."
_HINTS = {
    (
        "head",
        HERE,
    ): "What each head adds to the token's logit, less the mean of all logits, where it does so most",
    (
        "neuron",
        HERE,
    ): "What each neuron adds to the token's logit, less the mean of all logits, where it does so most",
    (
        "head",
        WEIGHTS,
    ): "The most that each head adds to the token's logit where it attends to one token, its embedding alone; "
    "the final norm's divisor left at 1",
    (
        "neuron",
        WEIGHTS,
    ): "What each neuron adds to the token's logit while its activation is 1; the final norm's divisor left at 1",
}


class TokenSearch(Viewer):
    """Name a token, search, stop, and select what is found."""

    session = param.ClassSelector(class_=Session, doc="The question and its answer.")
    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")
    in_view = param.Boolean(default=True, allow_refs=True, doc="Whether its tab is open.")

    def __init__(self, session: Session, **params: Any):
        super().__init__(session=session, **params)
        dark = self.param.dark
        self.writers: Any = None
        self._posted = False
        self._parts: dict[str, list[str]] = {"head": [], "neuron": []}
        self.token = pmui.TextInput(
            label="Token",
            value=session.metric.answer or " Paris",
            width=160,
            size="small",
            margin=0,
            description="One token; a word often begins with a space",
        )
        self.search = button("Search", "search", "", "contained")
        self.stop = button("Stop", "stop", "Stop here; what is known stays")
        self.rank = select(
            "Rank by", (HERE, WEIGHTS), 144, "What they add on this text, or what their weights could add"
        )
        self._meter = pmui.LinearProgress(value=0, variant="determinate", width=120, margin=0, align="center")
        self._says = Notice(dark=dark, sizing_mode=None, width=168, align="center")
        self._trouble = Notice(dark=dark, tone="warning")
        self._stale = Notice(dark=dark)
        self._intro = Notice(text=_INTRODUCTION, dark=dark)
        self._titles = {kind: Notice(tone="heading", dark=dark) for kind in self._parts}
        self.lists = {
            kind: SiteList(
                lambda at, kind=kind: self._select(self._parts[kind][at]),
                name_of_list=f"{kind.capitalize()}s",
                dark=dark,
            )
            for kind in self._parts
        }
        self.token.param.watch(lambda event: self.begin(), "enter_pressed")
        self.search.on_click(lambda event: self.begin())
        self.stop.on_click(lambda event: self.writers is not None and self.writers.cancel())
        self.rank.param.watch(lambda event: self._list(), "value")
        watch = session.param.watch
        self._watchers = [
            watch(self._forget, "model"),
            watch(lambda event: self._age(), "run"),
            watch(lambda event: self._mark(), "selection"),
        ]
        self._layout = self._laid_out()
        self._tell()

    def close(self) -> None:
        """Stop watching the session, and give up what is under way."""
        for watcher in self._watchers:
            self.session.param.unwatch(watcher)
        self._forget()

    def begin(self) -> None:
        """Search for the token that is typed."""
        from transpector.state.circuits import token_id  # brings torch, which is here once a model is
        from transpector.state.writers import Writers

        run = self.session.run
        if run is None:
            return
        try:
            token = token_id(run.model, self.token.value_input)
        except TranspectorError as error:
            self._trouble.text = str(error)
            return
        if self.writers is not None:
            self.writers.cancel()
        self._trouble.text = self._stale.text = ""
        self.writers = Writers(run, token, self.session.tasks)
        self.writers.watch(self._hear)
        self._tell()

    def _hear(self) -> None:
        """On the worker's thread, after every layer."""
        if not self._posted:
            self._posted = True
            self.session.inbox.post(self._tell)

    def _tell(self) -> None:
        self._posted = False
        writers = self.writers
        with pn.io.hold():
            self._intro.visible = writers is None
            self._content.visible = writers is not None
            busy = writers is not None and not writers.is_over
            self.stop.disabled, self._meter.visible = not busy, busy
            if writers is None:
                self._says.text = ""
                return
            self._meter.value = round(100 * writers.done / writers.total)
            self._says.text = self._said(writers)
            if writers.error is not None:
                expected = isinstance(writers.error, TranspectorError)
                self._trouble.text = (
                    str(writers.error) if expected else _BUG.format(type(writers.error).__name__)
                )
            self._list()

    def _said(self, writers: Any) -> str:
        if not writers.is_over:
            pace = writers.elapsed / max(1, writers.done)
            left = f", {pace * (writers.total - writers.done):.0f} s left" if writers.done else ""
            return f"{writers.done} of {writers.total} layers{left}"
        if writers.state == "cancelled":
            return f"Stopped after {writers.done} of {writers.total} layers"
        return f"{writers.total} layers in {figures(writers.elapsed)} s" if writers.state == "done" else ""

    def _list(self) -> None:
        writers = self.writers
        if writers is None:
            return
        frame, column = writers.frame, "here" if self.rank.value == HERE else "weight"
        pieces = visible(writers.run.tokens)
        token = visible(writers.model.pieces([writers.token]))[0]
        for kind, found in self.lists.items():
            rows = frame[(frame["kind"] == kind) & frame[column].notna()]
            rows = rows.sort_values(column, key=lambda numbers: -numbers.abs(), kind="stable").head(N_LISTED)
            self._parts[kind] = rows["part"].tolist()
            shown = [self._row(row, column, pieces) for row in rows.to_dict("records")]
            top = max((abs(row["change"]) for row in shown), default=0) or 1.0
            where = "where" if column == "here" or kind == "head" else ""
            found.param.update(rows=shown, top=top, heads=["", "logits", where])
            verb = "add to" if column == "here" else "could add to"
            self._titles[kind].param.update(
                text=f"{kind.capitalize()}s that {verb} the logit of “{token}”" if shown else "",
                hint=_HINTS[kind, self.rank.value],
            )
        self._mark()

    def _row(self, row: dict[str, Any], column: str, pieces: list[str]) -> dict[str, Any]:
        value, at = float(row[column]), int(row["position"])
        told = {"site": row["part"].removesuffix(".z").removesuffix(".mlp_post"), "change": value}
        told["label"] = figures(value, signed=True)
        told["hint"] = (
            f"{row['part']}: {row['here']:+.4f} logits at position {at} ({pieces[at]}), {row['weight']:+.4f} by weights"
        )
        if column == "here":
            told["estimate"] = f"{pieces[at]} {at}"
        elif row["kind"] == "head":
            source = visible([row["source"]])[0]
            told["estimate"] = f"from {source}"
            told["hint"] += f", where it attends to “{source}”"
        return told

    def _select(self, part: str) -> None:
        self.session.selection = [part]

    def _mark(self) -> None:
        selection = self.session.selection
        for kind, parts in self._parts.items():
            one = selection[0] if len(selection) == 1 else ""
            self.lists[kind].chosen = parts.index(one) if one in parts else -1

    def _age(self) -> None:
        writers, run = self.writers, self.session.run
        if writers is not None and run is not None and writers.model is run.model:
            self._stale.text = "" if writers.run.question == run.question else _STALE

    def _forget(self, *events: Any) -> None:
        """Nothing that was found is of another model."""
        if self.writers is not None:
            self.writers.cancel()
        self.writers = None
        self._stale.text = self._trouble.text = ""
        self._tell()

    def _laid_out(self) -> pn.Column:
        gap = {"gap": f"{theme.UNIT}px"}
        wide = {"sizing_mode": "stretch_width"}
        half = {"flex": "1 1 0", "min-width": "0", **gap}
        self._content = pn.Row(
            *(pn.Column(self._titles[kind], self.lists[kind], styles=half, **wide) for kind in self._parts),
            styles={"gap": f"{3 * theme.UNIT}px"},
            visible=False,
            **wide,
        )
        return pn.Column(
            pn.FlexBox(
                self.token,
                self.search,
                self.stop,
                self.rank,
                self._meter,
                self._says,
                align_items="center",
                gap=f"{theme.UNIT}px",
                **wide,
            ),
            self._trouble,
            self._stale,
            self._intro,
            self._content,
            styles=gap,
            **wide,
        )

    def __panel__(self) -> Any:
        return self._layout
