"""Stream: size and direction of the residual stream through the layers, what norms divide by, and the metric's gradient."""

from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
import panel as pn
from jaxtyping import Float

from transpector.components import theme
from transpector.components.base import Pane, clip, figures, visible
from transpector.components.parts import stream_view
from transpector.components.parts.notice import Notice
from transpector.components.parts.scale import Scale
from transpector.components.parts.stream_view import VIEWS, StreamView
from transpector.components.parts.sweep_form import select
from transpector.components.parts.touched import positions_of
from transpector.components.parts.value_map import ValueMap
from transpector.state.errors import SiteError

NOW, BASELINE, DIFFERENCE = "Now", "Baseline", "Difference"
ROOM = 416, 32, 36  # px for the cells; how many names of layers and of tokens
ROOM_BETWEEN = 216, 12, 8
BESIDE = 264  # px
_WHAT, _OF = (
    "What the colour of a cell tells",
    "The run with its interventions, that without, or now − baseline",
)
_NO_BASELINE = "There is no intervention, and so the run is the baseline"


class StreamPane(Pane):
    """A map of layers × positions, and beside it how the streams of all layers point to one another at one position."""

    reads: ClassVar = ("run", "baseline", "position", "metric")

    def __init__(self, session: Any, **params: Any):
        super().__init__(session, **params)
        dark = self.param.dark
        self._found: WeakKeyDictionary[Any, dict[Any, np.ndarray]] = WeakKeyDictionary()
        self._told: tuple[Any, frozenset[str]] | None = None  # a model, and its norms that tell their scales
        self._shown: dict[str, Any] | None = None
        self._is_last = False  # whether the last row is selected, which is no site
        self.view = select("Show", VIEWS, 232, _WHAT)
        self.of = select("Run", (NOW, BASELINE, DIFFERENCE), 128, _OF)
        self._explained = Notice(dark=dark)
        self._trouble = Notice(dark=dark, tone="warning")
        self._slow = Notice(dark=dark)
        self._site, self._says = Notice(dark=dark, tone="big"), Notice(dark=dark, tone="heading")
        self._says_too = Notice(dark=dark)
        self.map = ValueMap(self._click, "stream", dark=dark)
        self.between = ValueMap(lambda row, column: self._click(row), "between", square=True, dark=dark)
        for widget in (self.view, self.of):
            widget.param.watch(lambda event: self.refresh(), "value")
        watch = session.param.watch
        self._watchers = [
            watch(lambda event: self._leave_last(), "selection"),
            watch(lambda *events: self._mark(), ["interventions", "selection"]),
            watch(lambda event: self._rest(), "state"),
        ]
        self.param.watch(lambda *events: self._mark(), ["dark", "in_view"])
        self._layout = self._laid_out()
        self.refresh()

    def close(self) -> None:
        """Stop watching the session."""
        super().close()
        for watcher in self._watchers:
            self.session.param.unwatch(watcher)
        self._told = self._shown = None
        self._found.clear()

    # What is computed

    def measure(self, run: Any, baseline: Any, position: int, metric: Any) -> dict[str, Any]:
        from transpector.state.stream import cosines  # brings torch, which the first paint does not wait for

        name, of = self.view.value, self.of.value if run.interventions else NOW
        view, at = VIEWS[name], min(position, run.n_pos - 1) % run.n_pos
        if self._told is None or self._told[0] is not run.model:
            self._told = run.model, stream_view.scales(run)
        runs = {NOW: run, BASELINE: baseline} if run.interventions else {NOW: run}
        if view.of_gradient:  # each takes its time
            runs = {which: one for which, one in runs.items() if of in (which, DIFFERENCE)}
        values = {which: self._numbers(one, view, metric) for which, one in runs.items()}
        between = {which: cosines(one, at) for which, one in runs.items()}
        for both in (values, between):
            if len(both) == 2:
                both[DIFFERENCE] = both[NOW] - both[BASELINE]
        return {
            "run": run,
            "name": name,
            "of": of,
            "metric": metric if view.of_gradient else None,
            "values": values,
            "between": between[of],
            "position": at,
            "pieces": visible(run.tokens),
        }

    def _numbers(self, run: Any, view: StreamView, metric: Any) -> Float[np.ndarray, "row pos"]:
        found = self._found.setdefault(run, {})
        key = view.source, metric if view.of_gradient else None
        if key not in found:
            reason = stream_view.unable(run, metric, self._told[1]).get(_name_of(view))
            if reason:
                raise SiteError(reason)
            found[key] = stream_view.numbers(
                self.session, run, view, metric, lambda: self.session.inbox.post(self._wait)
            )
        return found[key]

    def _wait(self) -> None:
        self._slow.text = "Measuring the gradient…"

    def _rest(self) -> None:
        """Measure what was given up for a question that came between, and may have had no answer."""
        run, metric = self.session.run, self.session.metric
        if self.session.state == "idle" and run is not None and VIEWS[self.view.value].of_gradient:
            wanted = {"run": run, "name": self.view.value, "of": self.of.value, "metric": metric}
            if self._shown is None or any(self._shown[key] != value for key, value in wanted.items()):
                self.refresh()

    # What is shown

    def show(self, numbers: dict[str, Any]) -> None:
        before, self._shown = self._shown, numbers
        self._trouble.text = self._slow.text = ""
        view, of = VIEWS[numbers["name"]], numbers["of"]
        self._explain(view, numbers["metric"])
        values = numbers["values"][of]
        if before is None or any(before[key] != numbers[key] for key in ("run", "name", "of", "metric")):
            self._draw(view, of, values, numbers)
        self._draw_between(of, numbers)
        self._offer()
        self._mark()

    def _draw(self, view: StreamView, of: str, values: np.ndarray, numbers: dict[str, Any]) -> None:
        n_layers, pieces = numbers["run"].model.spec.n_layers, numbers["pieces"]
        rows = _names(n_layers)[: len(values)]
        sites = [*(view.row.format(layer) for layer in range(n_layers)), view.last]
        columns = [f"@{at}  {piece}" for at, piece in enumerate(pieces)]
        metric = numbers["metric"]
        # The first token's stream may be a hundred times as large as the others.
        scale = Scale.of(values, "signed" if of == DIFFERENCE else view.kind, within=values[:, 1:])
        unit = view.unit.format(metric.unit) if metric is not None else ""
        self.map.arrange(rows, pieces, (sites, columns), ROOM, is_text=True)
        self.map.draw(
            values,
            scale,
            view.title + _besides(of),
            " · ".join(filter(None, (unit, scale.says))),
            view.quantity,
            unit,
            signed=scale.kind == "signed",
        )

    def _draw_between(self, of: str, numbers: dict[str, Any]) -> None:
        between, at = numbers["between"], numbers["position"]
        n_layers = numbers["run"].model.spec.n_layers
        names = _names(n_layers)
        sites = [*(f"L{layer}.resid_pre" for layer in range(n_layers)), "the output"]
        self.between.arrange(
            names, names, (sites, [f", {site}" for site in sites]), ROOM_BETWEEN, is_text=False
        )
        self.between.draw(
            between,
            Scale.of(between, "signed" if of == DIFFERENCE else "cosine"),
            "Cosine between layers",
            f"at {at} ({clip(numbers['pieces'][at], 12)}){_besides(of)}",
            "cosine",
            signed=of == DIFFERENCE,
        )

    def refuse(self, reason: str) -> None:
        self._trouble.text, self._slow.text = reason, ""
        name, run, shown = self.view.value, self.session.run, self._shown
        if shown is None or shown["run"] is not run or shown["name"] != name:
            self._explain(VIEWS[name], self.session.metric)
            self.map.figure.visible = self.between.figure.visible = False
            self._site.text = self._says.text = self._says_too.text = ""
            self._shown = None
        self._offer()

    def _explain(self, view: StreamView, metric: Any) -> None:
        self._explained.text = view.explained.format(metric.label if metric is not None else "")

    def _offer(self) -> None:
        """Grey out what can't be shown of this run, with the reason."""
        run = self.session.run
        told = self._told[1] if self._told is not None else frozenset()
        reasons = stream_view.unable(run, self.session.metric, told)
        self.view.param.update(
            # The one that is chosen can't be greyed out; its reason is in the place of its picture.
            disabled_options=[name for name in reasons if name != self.view.value],
            description=" ".join(dict.fromkeys(reasons.values())) or _WHAT,
        )
        has_baseline = bool(run.interventions)
        self.of.param.update(
            disabled_options=[] if has_baseline else [BASELINE, DIFFERENCE],
            description=_OF if has_baseline else _NO_BASELINE,
            value=self.of.value if has_baseline else NOW,
        )

    # What is selected

    def _click(self, row: int, column: int | None = None) -> None:
        session = self.session
        is_last = row >= session.model.spec.n_layers
        told = {} if is_last else {"selection": [f"L{row}.resid_pre"]}
        session.param.update(**told, position=session.position if column is None else column)
        self._is_last = is_last
        self._mark()

    def _leave_last(self) -> None:
        self._is_last = False

    def _row(self) -> int | None:
        if self._is_last:
            return self.session.model.spec.n_layers
        return next((site.layer for site in self.session.sites if site.kind == "resid_pre"), None)

    def _mark(self) -> None:
        """Frame what is selected and what is changed, and say the number of the first."""
        session, shown = self.session, self._shown
        if shown is None or not self.in_view or shown["run"].model is not session.model:
            return
        run, colours = shown["run"], theme.ground(self.dark)
        n_layers, row, at = run.model.spec.n_layers, self._row(), shown["position"]
        n_rows = len(shown["values"][shown["of"]])
        column, changed = range(at, at + 1), []
        for verb, site in session.changes:
            if site.kind == "resid_pre" and site.layer < n_layers:
                changed.append(
                    (site.layer, positions_of(site, run.n_pos), getattr(colours, theme.STATES[verb]))
                )
        frames = [(range(n_rows), column, colours.muted, 1)]
        frames += [(range(layer, layer + 1), where, colour, 4) for layer, where, colour in changed]
        if row is not None and row < n_rows:
            here = [colour for layer, where, colour in changed if layer == row and at in where]
            cell = range(row, row + 1)
            frames += [(cell, column, [colours.paper, *here][-1], 6), (cell, column, colours.accent, 2.5)]
        self.map.frame(frames)
        rows = range(0) if row is None else range(row, row + 1)
        every = range(n_layers + 1)
        self.between.frame([(rows, every, colours.paper, 4), (rows, every, colours.accent, 2)])
        self._say(row if row is not None and row < n_rows else None, at)

    def _say(self, row: int | None, at: int) -> None:
        shown = self._shown
        if row is None:
            self._site.text, self._says.text = f"position {at}", ""
            self._says_too.text = "Click a cell to select its stream."
            return
        view = VIEWS[shown["name"]]
        n_layers = shown["run"].model.spec.n_layers
        self._site.text = f"{view.row.format(row) if row < n_layers else view.last}@{at}"
        unit = view.unit.format(shown["metric"].unit) if shown["metric"] is not None else ""
        told = {
            which: figures(float(values[row, at]), which == DIFFERENCE or view.kind == "signed")
            for which, values in shown["values"].items()
        }
        first, *others = told
        besides = ", ".join(f"{which.lower()} {told[which]}" for which in others)
        quantity = f"{view.quantity}{_besides(first)}"
        self._says.text = f"{told[first]} {unit}" if unit else f"{quantity} {told[first]}"
        self._says_too.text = "; ".join(filter(None, (quantity if unit else "", besides)))

    def _laid_out(self) -> pn.Column:
        gap = {"gap": f"{theme.UNIT}px"}
        wide = {"sizing_mode": "stretch_width"}
        explained = pn.Column(self._explained, styles={"flex": "1 1 240px", "min-width": "0"}, **wide)
        return pn.Column(
            pn.Row(
                self.view,
                self.of,
                explained,
                styles={"gap": f"{2 * theme.UNIT}px", "align-items": "center"},
                **wide,
            ),
            self._trouble,
            self._slow,
            pn.Row(
                pn.Column(self.map, styles={"flex": "1 1 0", "min-width": "0"}, **wide),
                pn.Column(self._site, self._says, self._says_too, self.between, width=BESIDE, styles=gap),
                styles={"gap": f"{2 * theme.UNIT}px"},
                margin=(theme.UNIT, 0, 0, 0),
                **wide,
            ),
            styles=gap,
            **wide,
        )

    def __panel__(self) -> Any:
        return self._layout


def _name_of(view: StreamView) -> str:
    return next(name for name, each in VIEWS.items() if each is view)


def _names(n_layers: int) -> list[str]:
    return [*(f"L{layer}" for layer in range(n_layers)), "out"]


def _besides(of: str) -> str:
    return {NOW: "", BASELINE: ", baseline", DIFFERENCE: ", now − baseline"}[of]
