"""Model graph: the model's own diagram, alive; a line drawn from one part to another is a patch."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

import panel as pn

from transpector.components import theme
from transpector.components.base import Pane, visible
from transpector.components.graph import marks
from transpector.components.graph.contributions import Contributions
from transpector.components.graph.controls import Controls
from transpector.components.graph.drawing import Drawing, View, card_of
from transpector.components.graph.flow import HEIGHT, Flow, Line
from transpector.components.graph.layout import lay_out
from transpector.components.graph.note_list import NoteList
from transpector.components.graph.painter import Pictures, paint
from transpector.components.graph.selection_bar import SelectionBar
from transpector.components.graph.surface import Surface
from transpector.components.parts.head_colours import HeadColours, HeadNumbers
from transpector.components.parts.notice import Notice
from transpector.state.errors import InterventionError, TranspectorError
from transpector.state.interventions import Patch

_HINT = (
    "Click a layer's name to unfold it. Drag from the right edge of a part onto another to patch it; right-click a part "
    "for what else can be done, press ? for the keys."
)
_EMPTY = "The graph is drawn as soon as a model has read a text."


class ModelGraph(Pane):
    """The graph of the session's model: folded layers, live pictures, and lines that patch."""

    reads: ClassVar = ("run", "baseline", "text_b")

    def __init__(self, session: Any, **params: Any):
        super().__init__(session, **params)
        self.view = View()
        self.graph: Any = None
        self.drawing: Drawing | None = None
        self._model: Any = None  # whose graph it is
        self._tokens: list[str] = []
        self._pictures = Pictures()
        self._size = (0.0, float(HEIGHT))  # px of the picture on the page
        self._is_fitted = False
        dark = self.param.dark
        self.flow = Flow(self._refuses, self._draw, self._erase, dark=dark)
        self.surface = Surface(self._gesture, dark=dark)
        self.controls = Controls(session, self._filter, self.go_to, self._fold_all, dark=dark)
        self.bar = SelectionBar(session, self._toggle_selected, self._toggle_positions, dark=dark)
        self.notes = NoteList(self.go_to, session.annotate, dark=dark)
        self.contributions = Contributions(session, self._decorate)
        over = {"position": "absolute", "bottom": "12px", "left": "64px", "right": "160px", "z-index": "10"}
        over["pointer-events"] = "none"
        self._why_not = Notice(dark=dark, tone="warning", styles=over)
        self._refusal = Notice(dark=dark, tone="warning", styles=over)
        self._over = (self._why_not, self._refusal)
        self._hint = Notice(text=_EMPTY, dark=dark)
        self._more = [
            session.param.watch(lambda event: self._arrange(), "interventions"),
            session.param.watch(lambda event: self._selection_changed(), "selection"),
            session.param.watch(lambda event: self._list_notes(), ["notes", "model"]),
            session.param.watch(lambda event: self._weigh(), ["run", "metric"]),
        ]
        self._heads: HeadNumbers | None = None  # what heads are coloured by
        self.colours = HeadColours(session, self._colour_heads, in_view=self.param.in_view)
        self.controls.from_b.param.watch(lambda event: self.refresh(), "value")
        self.controls.contributions.param.watch(lambda event: self._weigh(), "value")
        self.param.watch(lambda event: self.refresh(), "dark")
        self.param.watch(lambda event: self._weigh(), "in_view")
        if session.run is not None:  # the pictures follow
            self._take(session.run, self._parts_of(session.run.model))
        self.refresh()

    def close(self) -> None:
        """Stop watching the session."""
        super().close()
        self.controls.close()
        self.colours.close()
        self.contributions.forget()
        for watcher in self._more:
            self.session.param.unwatch(watcher)

    # What is to be seen

    def measure(self, run: Any, baseline: Any, text_b: str) -> Any:
        model, shown, trouble = run.model, run, ""
        if self.controls.from_b.value and text_b:
            try:
                ids = tuple(model.tokenize(text_b, run.question.bos))
                shown = model.answer(replace(run.question, token_ids=ids, interventions=()))
            except TranspectorError as error:
                trouble = f"Text B: {error}"
        parts = self._parts_of(model)
        view = self.view if self._model in (None, model) else View()
        return run, parts, paint(shown, run, baseline, parts, view, self.dark), trouble

    @staticmethod
    def _parts_of(model: Any) -> Any:
        from transpector.state.graph import graph  # brings torch, which is here only once a model is

        return graph(model)

    def show(self, numbers: Any) -> None:
        run, parts, self._pictures, trouble = numbers
        self._take(run, parts)
        self._refusal.text = trouble or self._refusal.text
        self._list_notes()

    def _take(self, run: Any, parts: Any) -> None:
        """Draw the graph of a run's model."""
        self._hint.text = _HINT
        self._tokens = visible(run.tokens)
        if run.model is not self._model:
            self.view = self.view if self._model is None else View()
            self._model, self.graph = run.model, parts
            self._is_fitted = False
            n_layers = run.model.spec.n_layers
            self.controls.offer(
                n_layers, [*map(card_of, range(n_layers)), *(node.id for node in parts.nodes)]
            )
        self._arrange()

    def _arrange(self) -> None:
        """Draw what there is to be seen, at once; pictures of it may follow."""
        if self.graph is None:
            return
        tokens = tuple(self._tokens) if self.view.by_position else ()
        drawing = lay_out(self.graph, self.view, tokens)
        if drawing != self.drawing:
            self.drawing = drawing
        self.flow.show(self.drawing, tuple(self._lines()), {"unembed": self._pictures.output})
        self._decorate()
        if not self._is_fitted:
            self._fit()

    def _decorate(self) -> None:
        """Give what changes without a new drawing: pictures, states, notes, contributions."""
        if self.drawing is None:
            return
        health = self._model.health
        unable = [
            box.id
            for box in self.drawing.boxes
            if box.kind in health.abilities and not health.can_write(box.kind)
        ]
        states = marks.states(self.graph, self.drawing, self.session.changes)
        noted = filter(None, (self._box_of(note.node) for note in self._notes_here()))
        rules = marks.rules(states, noted, unable, self.drawing, self.dark)
        weights = self.contributions.rules(self.drawing, self.dark)
        heads = "" if self._heads is None else marks.coloured(*self._heads[:2], self.drawing, self.dark)
        self.surface.css = "\n".join((self._pictures.css, rules, weights, heads))
        self._refusal.text = self.contributions.trouble or self._refusal.text
        self._selection_changed()

    def _weigh(self) -> None:
        """Estimate contributions, if they are to be seen."""
        if self.controls.contributions.value and self.in_view and self.session.model is not None:
            self.contributions.ask()
        else:
            self.contributions.forget()
            self._decorate()

    def _colour_heads(self, numbers: HeadNumbers | None, reason: str) -> None:
        self._heads = numbers
        self.controls.say(reason)
        self._decorate()

    def _lines(self) -> list[Line]:
        lines = []
        for at, patch in enumerate(self.session.interventions):
            if not isinstance(patch, Patch):
                continue
            source, target = (self._box_of_site(site) for site in (patch.source, patch.target))
            if source and target:
                label = marks.SIGNS["patched"] + ("" if patch.text is None else " B")
                lines.append(Line(f"patch {at}", source, target, label, patch.enabled))
        return lines

    def _box_of_site(self, site: Any) -> str | None:
        if str(site) in self.drawing:
            return str(site)
        homes = (self.drawing.home[node.id] for node in self.graph.touched(site))
        return next((home for home in homes if home is not None), None)

    def _box_of(self, id: str) -> str | None:
        """The box in which a part, or a layer, is to be seen."""
        return id if id in self.drawing else self.drawing.home.get(id.split("@")[0])

    # What is selected

    def _nodes(self) -> list[Any]:
        if self.graph is None:
            return []
        return [self.graph[id] for id in self.session.selection if id in self.graph]

    def _selected_layers(self) -> set[int]:
        of_nodes = {node.layer for node in self._nodes()}
        of_cards = {int(id[1:]) for id in self.session.selection if id[1:].isdecimal()}
        return (of_nodes | of_cards) - {None}

    def _selection_changed(self) -> None:
        if self.drawing is None:
            return
        ids = list(self.session.selection)
        self.surface.picked = [box for box in map(self._box_of, ids) if box]
        note = next((note.text for note in self._notes_here() if ids == [note.node]), "")
        self.bar.show(ids, bool(self._selected_layers()), note)
        abilities = self._model.health.abilities
        unable = [node for node in self._nodes() if node.site and not self._model.health.can_write(node.kind)]
        reasons = {f"{node.kind}: {abilities[node.kind].reason}" for node in unable}
        self._why_not.text = " ".join(sorted(reasons))

    def _pick(self, ids: list[str], more: bool) -> None:
        self._refusal.text = ""
        now = self.session.selection
        if more:  # what is selected already is let go of
            ids = [*(id for id in now if id not in ids), *(id for id in ids if id not in now)]
        self.session.selection = ids

    def step(self, key: str) -> None:
        """Go to the next head by an arrow key: left and right by layer, up and down within one."""
        if self._model is None:
            return
        spec, (layer, head) = self._model.spec, self.session.head
        layer += {"ArrowLeft": -1, "ArrowRight": 1}.get(key, 0)
        head += {"ArrowUp": -1, "ArrowDown": 1}.get(key, 0)
        layer, head = min(max(layer, 0), spec.n_layers - 1), min(max(head, 0), spec.n_heads - 1)
        self.session.selection = [f"L{layer}H{head}.z"]

    def go_to(self, id: str) -> None:
        """Select a part and unfold its layer, or select a layer, and bring it into sight."""
        if self.drawing is None:
            return
        if id in self.graph:
            layer = self.graph[id].layer
            if layer is not None and layer not in self.view.unfolded:
                self.unfold({layer})
            box = card_of(layer) if layer is not None else id
        else:
            box = id
        if box in self.drawing:
            self.session.selection = [id]
            self.flow.look_at(self.drawing.bounds({box}), self._size)

    # What is drawn

    def _refuses(self, source: str, target: str) -> str | None:
        try:
            self._patch(source, target)
        except TranspectorError as error:
            return str(error)
        return None

    def _patch(self, source: str, target: str) -> Patch:
        from transpector.state.graph import drawn

        for id in (source, target):
            if id not in self.graph:
                raise InterventionError(
                    f"{id} is a whole layer. Unfold it, and draw to or from a part of it."
                )
        run = self.session.run
        text = self.session.text_b if self.controls.from_b.value else None
        ends = self.graph[source], self.graph[target]
        return drawn(self._model, *ends, run.n_pos, text, run.question.bos)

    def _draw(self, source: str, target: str) -> None:
        try:
            patch = self._patch(source, target)
        except TranspectorError as error:
            self._refusal.text = str(error)
        else:
            self._refusal.text = ""
            self.session.add(patch)

    def _erase(self, ids: list[str]) -> None:
        places = {int(id.split()[1]) for id in ids if id.startswith("patch ")}
        kept = [each for at, each in enumerate(self.session.interventions) if at not in places]
        self.session.interventions = kept

    def _gesture(self, made: dict[str, Any]) -> None:
        match made["what"]:
            case "size":
                self._size = made["width"], made["height"]
                if not self._is_fitted:
                    self._fit()
            case "pick":
                self._pick(made["ids"], made.get("more", False))
            case "toggle" if made["id"][1:].isdecimal():
                self._toggle({int(made["id"][1:])})
            case "menu":
                if made["id"] not in self.session.selection:
                    self.session.selection = [made["id"]]
                self.surface.open_menu(self.bar.choices(), made["x"], made["y"])
            case "chosen":
                self.bar.choose(made["label"])
            case "refused":
                self._refusal.text = made["why"]
            case "arrow":
                self.step(made["key"])

    # How much of it

    def _look(self, **changes: Any) -> None:
        self.view = replace(self.view, **changes)
        self._arrange()
        self.refresh()

    def unfold(self, layers: Iterable[int]) -> None:
        """Show these layers in full."""
        self._look(unfolded=self.view.unfolded | set(layers))

    def _toggle(self, layers: set[int]) -> None:
        unfolded = self.view.unfolded
        self._look(unfolded=unfolded - layers if layers <= unfolded else unfolded | layers)

    def _toggle_selected(self) -> None:
        self._toggle(self._selected_layers())

    def _toggle_positions(self) -> None:
        layers, by_position = self._selected_layers(), self.view.by_position
        if layers <= by_position:
            self._look(by_position=by_position - layers)
        else:
            self._look(by_position=by_position | layers, unfolded=self.view.unfolded | layers)

    def _fold_all(self) -> None:
        self._look(unfolded=frozenset(), by_position=frozenset())
        self._fit()

    def _filter(self) -> None:
        if self.graph is not None:
            self._look(layers=self.controls.shown_layers, without=self.controls.without)
            self._fit()

    def _fit(self) -> None:
        if self.drawing is not None and self._size[0]:
            self._is_fitted = True
            self.flow.look_at(self.drawing.bounds(), self._size)

    # Notes

    def _notes_here(self) -> list[Any]:
        model = self.session.model
        return [note for note in self.session.notes if model is not None and note.model == model.name]

    def _list_notes(self) -> None:
        self.notes.rows = [{"id": note.node, "text": note.text} for note in self._notes_here()]
        self._decorate()

    def __panel__(self) -> Any:
        between = {
            "align_items": "center",
            "justify_content": "space-between",
            "gap": f"{theme.UNIT}px",
            "sizing_mode": "stretch_width",
        }
        return pn.Column(
            self.controls,
            pn.FlexBox(self.bar, self.controls.from_b, self.controls.contributions, **between),
            # The surface comes right after the diagram that it is of.
            pn.Column(self.flow, self.surface, *self._over, sizing_mode="stretch_width"),
            self._hint,
            self.notes,
            sizing_mode="stretch_width",
            styles={"gap": f"{theme.UNIT}px"},
        )
