"""Controls: what of the graph is to be seen, and a way to find a part by its name."""

from collections.abc import Callable
from typing import Any

import panel as pn
import panel_material_ui as pmui
from panel.viewable import Viewer

from transpector.components import theme
from transpector.components.graph.drawing import GROUPS
from transpector.components.parts.head_colours import choice
from transpector.components.parts.notice import Notice

_SMALL = {"size": "small", "margin": 0}
_QUIET = {
    "& .MuiButtonBase-root": {"padding": "2px 8px", "fontSize": 11, "whiteSpace": "nowrap", "minWidth": 0}
}
_SWITCH = {"& .MuiTypography-root, & .MuiFormControlLabel-label": {"fontSize": 12}}
_FROM_B = "The pictures are of text B, and a line patches from there"
_CONTRIBUTIONS = (
    "Wires as wide as what zeroing a head or an MLP would change of the metric, estimated from gradients"
)


class Controls(Viewer):
    """``filtered`` is called when other layers or parts are to be seen, ``found`` with the id of a part to go to."""

    def __init__(
        self,
        session: Any,
        filtered: Callable[[], None],
        found: Callable[[str], None],
        folded: Callable[[], None],
        dark: Any = False,
        **params: Any,
    ):
        super().__init__(**params)
        self._session = session
        self.find = pmui.AutocompleteInput(
            label="Find a part",
            placeholder="L5, L5H1, L9.mlp_out",
            options=[],
            case_sensitive=False,
            min_characters=1,
            restrict=True,
            width=136,
            **_SMALL,
        )
        self.layers = pmui.IntRangeSlider(label="Layers", start=0, end=1, value=(0, 1), width=104, **_SMALL)
        self.parts = pmui.CheckButtonGroup(
            options=list(GROUPS), value=list(GROUPS), variant="outlined", sx=_QUIET, **_SMALL
        )
        self.fold_all = pmui.Button(
            label="Fold all",
            icon="unfold_less",
            variant="text",
            description="Every layer to a card",
            **_SMALL,
        )
        self.from_b = pmui.Switch(
            label="Draw from text B", disabled=True, description=_FROM_B, sx=_SWITCH, **_SMALL
        )
        self.contributions = pmui.Switch(
            label="Contributions", description=_CONTRIBUTIONS, sx=_SWITCH, **_SMALL
        )
        self.heads_by = choice(session, 168)
        self._coloured = Notice(dark=dark)
        self.find.param.watch(lambda event: event.new and found(event.new), "value")
        self.layers.param.watch(lambda event: filtered(), "value_throttled")
        self.parts.param.watch(lambda event: filtered(), "value")
        self.fold_all.on_click(lambda event: folded())
        self._watcher = session.param.watch(self._offer_text_b, "text_b")
        self._offer_text_b()

    def close(self) -> None:
        """Stop watching the session."""
        self._session.param.unwatch(self._watcher)

    def offer(self, n_layers: int, ids: list[str]) -> None:
        """Offer the layers and the parts of a model, all of them in sight."""
        self.layers.param.update(end=max(1, n_layers - 1), value=(0, n_layers - 1), visible=n_layers > 1)
        self.find.param.update(options=ids, value=None)
        self.parts.value = list(GROUPS)

    def say(self, text: str) -> None:
        """Say why heads have no colours; nothing if all is well."""
        self._coloured.text = text

    @property
    def shown_layers(self) -> tuple[int, int] | None:
        """First and last layer to be seen; None for all."""
        first, last = self.layers.value
        return None if (first, last) == (self.layers.start, self.layers.end) else (first, last)

    @property
    def without(self) -> frozenset[str]:
        """The groups of parts that are left out."""
        return frozenset(GROUPS) - frozenset(self.parts.value)

    def _offer_text_b(self, *events: Any) -> None:
        has = bool(self._session.text_b)
        self.from_b.disabled = not has
        if not has:
            self.from_b.value = False

    def __panel__(self) -> Any:
        return pn.FlexBox(
            self.find,
            self.layers,
            self.parts,
            self.fold_all,
            self.heads_by,
            self._coloured,
            align_items="center",
            gap=f"{theme.UNIT}px",
            sizing_mode="stretch_width",
        )
