"""Keyboard: the keys that act on what is selected, and their list."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import panel_material_ui as pmui
import param
from panel.custom import JSComponent
from panel.viewable import Viewer

from transpector.components.parts.fact_table import FactTable
from transpector.state.interventions import Ablate, Freeze

KEYS = (
    ("← → ↑ ↓", "the next head: by layer, and within one (in the graph)"),
    ("a", "set what is selected to zero, or put it back"),
    ("f", "freeze what is selected, or let it go"),
    ("n", "write a note on it"),
    ("u", "undo"),
    ("r", "redo"),
    ("Delete", "delete the line that is selected in the graph"),
    ("?", "this list"),
)


class KeyListener(JSComponent):
    """Gives ``pressed`` the name of a key that was pressed, unless it was typed into something."""

    keys = param.List(default=[], item_type=str, doc="The keys to listen for, beside the arrows.")
    arrows = param.Boolean(default=False, doc="Whether to listen for the arrow keys.")
    everywhere = param.Boolean(default=False, doc="On the whole page, or in the same column only.")

    _esm = Path(__file__).parent / "keyboard.js"

    def __init__(self, pressed: Callable[[str], None], **params: Any):
        super().__init__(height=0, width=0, margin=0, **params)
        self._pressed = pressed

    def _handle_msg(self, message: dict[str, Any]) -> None:
        self._pressed(str(message.get("key")))


class Keyboard(Viewer):
    """Undoes, redoes, ablates and freezes by key; ``more`` says what other keys do, ``step`` follows the arrows."""

    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")

    def __init__(
        self, session: Any, more: Mapping[str, Callable[[], None]], step: Callable[[str], None], **params: Any
    ):
        super().__init__(**params)
        self._session, self._step = session, step
        self.help = pmui.Dialog(
            FactTable(rows=[list(row) for row in KEYS], dark=self.param.dark),
            title="Keys",
            close_on_click=True,
            show_close_button=True,
        )
        self._does = {
            "a": lambda: self._toggle(Ablate),
            "f": lambda: self._toggle(Freeze),
            "u": session.undo,
            "r": session.redo,
            "?": lambda: self.help.param.update(open=True),
            **more,
        }
        self.listener = KeyListener(self._press, keys=list(self._does))

    def _press(self, key: str) -> None:
        if key.startswith("Arrow"):
            self._step(key)
        elif self._session.model is not None and key in self._does:
            self._does[key]()

    def _toggle(self, kind: type[Ablate] | type[Freeze]) -> None:
        """Intervene on what is selected; where that has been done already, take it back."""
        session = self._session
        sites = [site for site in session.sites if session.model.health.can_write(site.kind)]
        done = [i for i in session.interventions if isinstance(i, kind) and i.site in sites]
        if done:
            session.interventions = [i for i in session.interventions if i not in done]
        elif sites:
            session.add(*map(kind, sites))

    def __panel__(self) -> Any:
        return self.help
