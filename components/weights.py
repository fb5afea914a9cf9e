"""Weights: what the weights of the selected head are for: tokens, earlier heads, and the matrices themselves."""

from functools import partial
from typing import Any, ClassVar

import panel as pn
import panel_material_ui as pmui

from transpector.components import theme
from transpector.components.base import Pane
from transpector.components.parts.composed_heads import KEYS, WAYS, ComposedHeads
from transpector.components.parts.head_matrices import HeadMatrices
from transpector.components.parts.notice import Notice
from transpector.components.parts.sweep_form import select
from transpector.components.parts.token_circuits import TokenCircuits
from transpector.components.parts.weight_numbers import Told, WeightNumbers
from transpector.state.errors import TextError

TOKENS, COMPOSITION, MATRICES = "Tokens", "Composition", "Matrices"
_EXPLAINED = {
    TOKENS: "What the weights alone make of a token, wherever it stands; only the attention by distance is measured on this "
    "text.",
    COMPOSITION: "How far this head reads what each earlier head writes, from the weights alone. Unrelated heads come to "
    "about chance.",
    MATRICES: "W_Q and W_K decide where the head attends (the QK circuit), W_V and W_O what it writes of that (the OV "
    "circuit).",
}
# As the scopes of the token strip.
_QUIET = {
    "& .MuiToggleButton-root": {"textTransform": "none", "fontSize": 13, "padding": "6px 8px"},
    "& .MuiToggleButton-root[aria-pressed=true]": {
        "color": "primary.main",
        "backgroundColor": "transparent",
        "fontWeight": 600,
        "boxShadow": "inset 0 0 0 1.5px var(--mui-palette-primary-main)",
    },
}
_COPYING = "Finding out how much each head of this model copies, once…"
_TOKEN = "The text of one token, with its space: ' Paris'. Empty: that at the selected position"


class WeightsPane(Pane):
    """Three faces, of which only the open one is computed: tokens, composition with earlier heads, matrices."""

    reads: ClassVar = ("run", "baseline", "head", "position")

    def __init__(self, session: Any, **params: Any):
        super().__init__(session, **params)
        dark = self.param.dark
        self._numbers = WeightNumbers(self._is_stale)
        self._typed = ""  # the token that was asked for; empty for that at the selected position
        self._good = ""  # the last of those that was one
        self._filled = ""  # what the field was filled with
        self._taking = False
        self._composed: dict[str, Any] | None = None
        self._title = Notice(tone="big", dark=dark, sizing_mode="fixed", width=96)
        self._explained = Notice(dark=dark)
        self._trouble = Notice(tone="warning", dark=dark)
        self.layer, self.head = (
            pmui.IntInput(
                label=label,
                value=value,
                start=0,
                width=96,
                size="small",
                margin=0,
                description="The head that is shown here and everywhere",
            )
            for label, value in zip(("Layer", "Head"), session.head, strict=True)
        )
        self.face = pmui.RadioButtonGroup(
            options=[TOKENS, COMPOSITION, MATRICES],
            value=TOKENS,
            variant="outlined",
            size="small",
            margin=0,
            width=280,
            sx=_QUIET,
        )
        self.token = pmui.TextInput(label="Token", description=_TOKEN, width=152, size="small", margin=0)
        self.way = select("Read by", WAYS, 136, "By which of its inputs the head reads what others write")
        self.way.param.update(value=KEYS, visible=False)
        self._faces: dict[str, Any] = {}
        self._content = pn.Column(sizing_mode="stretch_width")
        self.face.param.watch(lambda event: self.refresh(), "value")
        self.token.param.watch(self._type, "value")
        self.way.param.watch(lambda event: self._show_composed(), "value")
        for field in (self.layer, self.head):
            field.param.watch(self._choose, "value")
        self._watchers = [session.param.watch(lambda *events: self._offer(), ["head", "model"])]
        self._layout = self._laid_out()
        self._offer()
        self.refresh()

    def close(self) -> None:
        """Stop watching the session."""
        super().close()
        for watcher in self._watchers:
            self.session.param.unwatch(watcher)
        self._numbers.clear()
        self._composed = None

    # What is computed

    def measure(self, run: Any, baseline: Any, head: tuple[int, int], position: int) -> dict[str, Any]:
        model, face, name = run.model, self.face.value, "L{}H{}".format(*head)
        numbers: dict[str, Any] = {"face": face, "name": name, "head": head}
        knows = partial(self._numbers.knows, model=model, head=head)
        if face == COMPOSITION:
            if not knows("composition"):
                self._post_reading(name)
            return numbers | {"composition": self._numbers.of_composition(model, head)}
        if face == MATRICES:
            if not knows("eigenvalues"):
                self._post_reading(name)
            return numbers | self._numbers.of_matrices(model, head) | {"shared": _shared(model.spec, head[1])}
        token, numbers["trouble"] = self._token(model)
        if token is None:
            at = min(position, run.n_pos - 1)
            token = int(run.token_ids[at])
            numbers["fill"] = run.tokens[at]
        if not knows("copied"):
            self._post_reading(name)
        numbers |= self._numbers.of_tokens(model, head, token)
        numbers["distance"] = self._numbers.of_distance(run, baseline, head)
        if not knows("copied"):
            first = numbers | {"copied": Told(reason=_COPYING)}
            self.session.inbox.post(lambda: self._show_first(first))
        return numbers | {"copied": self._numbers.of_copying(model, head)}

    def _token(self, model: Any) -> tuple[int | None, str]:
        """The token that was asked for, None for that at the selected position; and what is wrong with what was typed."""
        trouble = ""
        for text in filter(None, (self._typed, self._good)):
            try:
                found = model.text.token_id(text)
                self._good = text
                return found, trouble
            except TextError as error:
                trouble = trouble or str(error)
        return None, trouble

    def _is_stale(self, head: tuple[int, int]) -> bool:
        return self.session.head != head or self.session.model is None

    # What is shown

    def show(self, numbers: dict[str, Any]) -> None:
        face = numbers["face"]
        self._title.text, self._explained.text = numbers["name"], _EXPLAINED[face]
        self._trouble.text = numbers.get("trouble", "")
        self.token.visible, self.way.visible = face == TOKENS, face == COMPOSITION
        if face not in self._faces:
            self._faces[face] = self._make(face)
            self._content.append(pn.Column(self._faces[face], sizing_mode="stretch_width"))
        if face == COMPOSITION:
            self._composed = numbers
            self._show_composed()
        else:
            self._faces[face].show(numbers)
        if "fill" in numbers:
            self._fill(numbers["fill"])
        for name, content in zip(self._faces, self._content, strict=True):
            content.visible = name == face

    def refuse(self, reason: str) -> None:
        self._title.text, self._explained.text = "L{}H{}".format(*self.session.head), ""
        self._trouble.text = reason
        for content in self._content:
            content.visible = False

    def _make(self, face: str) -> Any:
        dark = self.param.dark
        if face == COMPOSITION:
            return ComposedHeads(self._select, dark=dark)
        return TokenCircuits(dark=dark) if face == TOKENS else HeadMatrices(dark=dark)

    def _show_composed(self) -> None:
        shown = self._composed
        if shown is not None:
            self._faces[COMPOSITION].show(
                shown["composition"], shown["name"], shown["head"][0], self.way.value
            )

    def _show_first(self, numbers: dict[str, Any]) -> None:
        """Show what is known already, while the rest is still found out."""
        if numbers["head"] == self.session.head and numbers["face"] == self.face.value:
            with pn.io.hold():
                self.show(numbers)

    def _post_reading(self, name: str) -> None:
        says = f"Reading the weights of {name}…"
        self.session.inbox.post(lambda: self._explained.param.update(text=says))

    # What is chosen

    def _select(self, layer: int, head: int) -> None:
        self.session.head = layer, head

    def _choose(self, event: Any) -> None:
        chosen = self.layer.value, self.head.value
        if not self._taking and None not in chosen and chosen != self.session.head:
            self.session.head = chosen

    def _offer(self) -> None:
        """Show which head is selected, of those that there are."""
        session = self.session
        if session.model is None:
            return
        spec = session.model.spec
        self._taking = True
        try:
            for field, value, n in zip(
                (self.layer, self.head), session.head, (spec.n_layers, spec.n_heads), strict=True
            ):
                field.end = n - 1
                field.value = min(value, n - 1)
        finally:
            self._taking = False

    def _type(self, event: Any) -> None:
        """Take a token that was typed, and that at the selected position where the field was emptied."""
        if event.new != self._filled:
            self._typed = self._filled = event.new
            if not event.new:
                self._good = ""
            self.refresh()

    def _fill(self, text: str) -> None:
        """Show the token at the selected position, unless another is being typed."""
        if not self._typed and self.token.value_input == self._filled != text:
            self._filled = text
            self.token.param.update(value=text, value_input=text)

    def _laid_out(self) -> pn.Column:
        wide = {"sizing_mode": "stretch_width"}
        return pn.Column(
            pn.FlexBox(
                self._title,
                self.layer,
                self.head,
                self.face,
                self.token,
                self.way,
                align_items="center",
                gap=f"{theme.UNIT}px",
                **wide,
            ),
            self._explained,
            self._trouble,
            self._content,
            styles={"gap": f"{theme.UNIT}px"},
            **wide,
        )

    def __panel__(self) -> Any:
        return self._layout


def _shared(spec: Any, head: int) -> str:
    """Which heads have the same keys and values."""
    many = spec.n_heads // spec.n_kv_heads
    first = head // many * many
    return f", shared by H{first}–H{first + many - 1}" if many > 1 else ""
