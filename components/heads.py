"""Heads: what every head is for, scored by where it attends and what it copies, and which heads attend alike."""

from typing import Any, ClassVar

import numpy as np
import panel as pn
import panel_material_ui as pmui
from jaxtyping import Float

from transpector.components import theme
from transpector.components.base import Pane
from transpector.components.parts.head_colours import DRAWN, SIMILAR, own_pattern
from transpector.components.parts.notice import Notice
from transpector.components.parts.pattern_grid import PatternGrid
from transpector.components.parts.scale import Scale
from transpector.components.parts.score_table import ScoreTable
from transpector.components.parts.sweep_form import select
from transpector.components.parts.touched import heads_of
from transpector.components.parts.value_map import ValueMap
from transpector.state.scores import OF_ATTENTION, SCORES

NOW, BASELINE, DIFFERENCE = "Now", "Baseline", "Difference"
FIRST = "induction"  # by which heads are sorted until another score is chosen
ROOM = 376, 32, 16  # px for the cells; how many names of layers and of heads
_ON = {"This text": "text", "Random tokens, twice": "random"}
_WHERE = (
    "Where heads are scored: on the text, or on random tokens written twice, under the same interventions"
)
_OF = "The run with its interventions, that without, or now − baseline"
_LIKE = "Attention in common with {}: the sum over keys of the lesser of the two, mean over queries; 1 is the same pattern."
_DRAW = "Draw where a head should attend, then sort by “as drawn”. Rows are queries, columns keys; each cell is {}."

_COPYING = SCORES["copying"].label
_SHARE = Scale("share", 0.0, 1.0)

Columns = dict[str, Float[np.ndarray, "layer head"]]


class HeadFinder(Pane):
    """A sortable table of scores, a map of the one that it is sorted by, and a grid on which to draw a pattern."""

    reads: ClassVar = ("run", "baseline", "scored_on", "head", "drawn")

    def __init__(self, session: Any, **params: Any):
        super().__init__(session, **params)
        dark = self.param.dark
        self._shown: dict[str, Any] | None = None
        self._laid: Any = None
        self._drawn: tuple = ()
        self._copying: dict[str, Any] = {"model": None}
        self.on = select("Score on", _ON, 184, _WHERE)
        self._follow_on()
        self.of = select("Run", (NOW, BASELINE, DIFFERENCE), 128, _OF)
        self.of.visible = False
        self._trouble = Notice(tone="warning", dark=dark)
        self._notes = Notice(dark=dark)
        self.table = ScoreTable(self._clicked, label="Scores of heads", dark=dark)
        self.map = ValueMap(self._pick, "score", scale=_SHARE, dark=dark)
        self._definition = Notice(dark=dark)
        self.grid = PatternGrid(lambda cells: session.param.update(drawn=cells, heads_by=DRAWN), dark=dark)
        self._says_grid = Notice(dark=dark)
        self.clear = pmui.Button(
            label="Clear",
            variant="text",
            size="small",
            margin=0,
            description="Wipe the drawn pattern",
        )
        self.clear.on_click(
            lambda event: session.param.update(
                drawn=[], heads_by="" if session.heads_by == DRAWN else session.heads_by
            )
        )
        self.on.param.watch(lambda event: session.param.update(scored_on=_ON[event.new]), "value")
        self.of.param.watch(lambda event: self._draw(), "value")
        watch = session.param.watch
        self._watchers = [
            watch(lambda event: self._draw(), "heads_by"),
            watch(lambda event: self._follow_on(), "scored_on"),
            watch(lambda event: self._mark(), "interventions"),
        ]
        self.param.watch(lambda event: self._mark(), "dark")
        self._layout = self._laid_out()
        self.refresh()

    def close(self) -> None:
        """Stop watching the session."""
        super().close()
        for watcher in self._watchers:
            self.session.param.unwatch(watcher)
        self._shown = None

    @property
    def by(self) -> str:
        """The name of the column that rows are sorted by and the map is of."""
        return self.session.heads_by if self.session.heads_by in self._names() else FIRST

    # What is computed

    def measure(
        self, run: Any, baseline: Any, scored_on: str, head: tuple[int, int], drawn: list
    ) -> dict[str, Any]:
        from transpector.state import heads  # brings torch, which the first paint does not wait for

        def columns(of: Any) -> tuple[Columns, dict[str, str], int]:
            seen = heads.on_random(of) if scored_on == "random" else of
            found = heads.attention_scores(seen)
            values = {name: found[name] for name in found.names}
            values[SIMILAR] = heads.similarity(seen, own_pattern(seen, head)) if seen.n_pos > 1 else None
            wanted = heads.pattern_of(drawn, seen.n_pos)
            values[DRAWN] = heads.similarity(seen, wanted) if wanted.any() else None
            nothing = np.full_like(found.values[0], np.nan)
            return (
                {name: nothing if each is None else each for name, each in values.items()},
                found.notes,
                seen.n_pos,
            )

        now, notes, n_pos = columns(run)
        before = columns(baseline)[0] if baseline is not run else None
        return {
            "run": run,
            "now": now,
            "before": before,
            "notes": dict(notes),
            "side": heads.drawn_side(n_pos),
            "n_pos": n_pos,
            "head": head,
            "drawn": drawn,
        }

    def show(self, numbers: dict[str, Any]) -> None:
        self._shown = numbers
        self._trouble.text = ""
        self.of.visible = numbers["before"] is not None
        self._content.visible = True
        side, n_pos = numbers["side"], numbers["n_pos"]
        each = "a position" if side == n_pos else f"about {n_pos / side:.1f} positions".replace(".0 ", " ")
        self._says_grid.text = _DRAW.format(each)
        self.grid.param.update(side=side, cells=list(numbers["drawn"]))
        self.clear.disabled = not numbers["drawn"]
        self._copy(numbers["run"].model)
        self._draw()

    def refuse(self, reason: str) -> None:
        self._shown = None
        self._trouble.text = reason
        self._content.visible = self.of.visible = False

    def _copy(self, model: Any) -> None:
        """Find what heads copy, which takes its time once for a model's weights, and follows when it is known."""

        def find() -> tuple[Any, str]:
            from transpector.state.circuits import copying
            from transpector.state.errors import ModelError

            try:
                return copying(model), ""
            except ModelError as error:
                return None, str(error)

        def told(future: Any) -> None:
            if self._shown is None or self._shown["run"].model is not model or future.cancelled():
                return
            if future.exception() is None:
                values, why = future.result()
                self._copying = {"model": model, "values": values, "why": why}
                self._draw()

        future = model.worker.submit(find)
        future.add_done_callback(lambda done: self.session.inbox.post(lambda: told(done)))

    # What is shown

    def _names(self) -> list[str]:
        drawn = self._shown is not None and bool(self._shown["drawn"])
        return [*SCORES, SIMILAR, *[DRAWN] * drawn]

    def _columns(self) -> Columns:
        """Of the now, the baseline or the difference, by name; NaN where not known."""
        numbers = self._shown
        now, before = numbers["now"], numbers["before"]
        nothing = np.full_like(now["bos"], np.nan)
        copied = nothing
        if self._copying["model"] is numbers["run"].model and self._copying["values"] is not None:
            copied = self._copying["values"]
        now = now | {"copying": copied}
        if before is None or self.of.value == NOW:
            return now
        before = before | {"copying": copied}
        if self.of.value == BASELINE:
            return before
        return {name: now[name] - before[name] for name in now}

    def _draw(self) -> None:
        numbers = self._shown
        if numbers is None:
            return
        columns, names, by = self._columns(), self._names(), self.by
        spec, like = numbers["run"].model.spec, "L{}H{}".format(*numbers["head"])
        is_difference = numbers["before"] is not None and self.of.value == DIFFERENCE
        heads = [f"L{layer}H{head}" for layer in range(spec.n_layers) for head in range(spec.n_heads)]
        values = np.stack([columns[name].ravel() for name in names], axis=-1).astype(np.float32)
        tops = {name: _top(columns[name]) if is_difference else 1.0 for name in names}
        self.table.param.update(
            names=heads,
            columns=[
                {
                    "name": name,
                    "label": self._label(name, like).removesuffix(" token"),
                    "hint": f"{self._says(name, like)}\nClick: sort by it, and colour heads by it in every view",
                    "top": tops[name],
                }
                for name in names
            ],
            by=by,
            values=values.tobytes(),
        )
        self._definition.text = self._says(by, like)
        notes = list(dict.fromkeys(numbers["notes"].values()))
        if self._copying["model"] is numbers["run"].model and self._copying["why"]:
            notes.append(self._copying["why"])
        self._notes.text = " ".join(notes)
        self._draw_map(columns[by], tops[by], is_difference or by == "copying", self._label(by, like))
        self._mark()

    def _draw_map(
        self, values: Float[np.ndarray, "layer head"], top: float, signed: bool, quantity: str
    ) -> None:
        spec = self._shown["run"].model.spec
        if spec is not self._laid:
            self._laid = spec
            layers = [f"L{layer}" for layer in range(spec.n_layers)]
            heads = [f"H{head}" for head in range(spec.n_heads)]
            self.map.arrange(layers, heads, (layers, heads), ROOM, is_text=False)
        which = self.of.value.lower() if self._shown["before"] is not None else ""
        on = "random tokens, twice" if self.session.scored_on == "random" else "this text"
        subtitle = ", ".join(filter(None, ("of the weights" if quantity == _COPYING else f"on {on}", which)))
        drawn = (values.tobytes(), top, signed, quantity, subtitle)
        if drawn != self._drawn:  # a figure that is still being laid out can't take the same twice
            self._drawn = drawn
            scale = Scale("signed", -top, top) if signed else _SHARE if top == 1 else Scale("share", 0.0, top)
            self.map.draw(values, scale, f"{quantity}, every head", subtitle, quantity.lower(), signed=signed)

    def _label(self, name: str, like: str) -> str:
        return {SIMILAR: f"Like {like}", DRAWN: "As drawn"}.get(name) or SCORES[name].label

    def _says(self, name: str, like: str) -> str:
        if name in SCORES:
            score = SCORES[name]
            where = "" if name in OF_ATTENTION else " From the weights alone."
            return f"{score.definition}{where} {score.source}."
        return _LIKE.format(like if name == SIMILAR else "the drawn pattern")

    # What is chosen

    def _follow_on(self) -> None:
        self.on.value = next(label for label, name in _ON.items() if name == self.session.scored_on)

    def _clicked(self, what: str, which: Any) -> None:
        if what == "by":
            self.session.heads_by = which
        elif self._shown is not None:
            self._pick(*divmod(which, self._shown["run"].model.spec.n_heads))

    def _pick(self, layer: int, head: int) -> None:
        self.session.head = (layer, head)

    def _mark(self) -> None:
        """Frame what is selected and what is changed already."""
        if self._shown is None:
            return
        session, spec, colours = self.session, self._shown["run"].model.spec, theme.ground(self.dark)
        frames = []
        for verb, site in session.changes:
            if site.layer is not None and site.layer < spec.n_layers:
                heads = range(spec.n_heads) if site.kind == "attn_out" else heads_of(site, spec)
                frames += [(site.layer, head, getattr(colours, theme.STATES[verb]), 4) for head in heads]
        frames.append((*session.head, colours.accent, 2))
        self.map.frame(
            [
                (range(layer, layer + 1), range(head, head + 1), colour, wide)
                for layer, head, colour, wide in frames
            ]
        )
        layer, head = session.head
        self.table.chosen = layer * spec.n_heads + head

    def _laid_out(self) -> pn.Column:
        gap = {"gap": f"{theme.UNIT}px"}
        wide = {"sizing_mode": "stretch_width"}
        self._content = pn.Row(
            pn.Column(
                self.map,
                self._definition,
                styles={"flex": "5 1 0", "min-width": "0", **gap},
                **wide,
            ),
            pn.Column(
                self.table,
                pn.Row(
                    self.grid,
                    pn.Column(
                        Notice(text="Find heads by a pattern", tone="heading", dark=self.param.dark),
                        self._says_grid,
                        self.clear,
                        styles=gap,
                        **wide,
                    ),
                    styles={"gap": f"{2 * theme.UNIT}px"},
                    **wide,
                ),
                styles={"flex": "6 1 0", "min-width": "0", "gap": f"{2 * theme.UNIT}px"},
                **wide,
            ),
            styles={"gap": f"{3 * theme.UNIT}px"},
            visible=False,
            **wide,
        )
        return pn.Column(
            pn.Row(self.on, self.of, self._notes, styles={**gap, "align-items": "center"}, **wide),
            self._trouble,
            self._content,
            styles=gap,
            **wide,
        )

    def __panel__(self) -> Any:
        return self._layout


def _top(values: Float[np.ndarray, "layer head"]) -> float:
    return float(np.nanmax(np.abs(values), initial=0)) or 1.0
