"""Selection bar: what is selected in the graph, one part or several, and what can be done with it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import panel as pn
import panel_material_ui as pmui
import param
from panel.viewable import Viewer

from transpector.components.parts.notice import Notice
from transpector.components.parts.site_actions import SiteActions

NOTE = "Note…"
_WRITE, _NO_NOTE = "note, then Enter", "select, then note"
_SMALL = {"size": "small", "margin": 0}


class SelectionBar(Viewer):
    """Buttons that ablate, freeze and patch all that is selected, unfold its layers, and a note on it."""

    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")

    def __init__(
        self,
        session: Any,
        unfold: Callable[[], None],
        by_position: Callable[[], None],
        **params: Any,
    ):
        super().__init__(**params)
        self._session = session
        self._chosen = Notice(
            tone="heading", dark=self.param.dark, sizing_mode="fixed", width=112, align="center"
        )
        self.actions = SiteActions(session, lambda: session.sites, icons_only=True)
        self.unfold = self._icon("Unfold", "unfold_more", "Unfold its layer, or fold it", unfold)
        self.by_position = self._icon(
            "By position",
            "view_week",
            "The residual stream of its layer as a node for each token",
            by_position,
        )
        self._does = {"Unfold": unfold, "By position": by_position}
        self._does |= {label: partial(self.actions.do, label) for label in self.actions.makes}
        self.note = pmui.TextInput(label="", placeholder=_NO_NOTE, width=148, **_SMALL)
        self._does[NOTE] = self._begin_note
        self.note.param.watch(self._annotate, "enter_pressed")

    def show(self, ids: list[str], has_layers: bool, note: str) -> None:
        """Say what is selected, and offer what can be done with it."""
        self._chosen.text = ids[0] if len(ids) == 1 else f"{len(ids)} selected" if ids else "Nothing selected"
        self.unfold.disabled = self.by_position.disabled = not has_layers
        # Never disabled: what becomes enabled and is given the focus at once does not take it.
        self.note.param.update(placeholder=_WRITE if ids else _NO_NOTE, value=note)
        self.actions.offer()

    def choices(self) -> list[dict[str, str]]:
        """The same as entries of a menu."""
        buttons = (*self.actions.buttons, self.unfold, self.by_position)
        able = [{"label": b.label, "icon": b.icon} for b in buttons if not b.disabled]
        return [*able, {"label": NOTE, "icon": "edit_note"}]

    def choose(self, label: str) -> None:
        """Do what an entry of the menu says."""
        if label in self._does:
            self._does[label]()

    def _begin_note(self) -> None:
        if self._session.selection:
            self.note.focus()

    def _annotate(self, event: Any) -> None:
        for id in self._session.selection:
            self._session.annotate(id, self.note.value_input)

    def _icon(self, label: str, icon: str, says: str, do: Callable[[], None]) -> pmui.IconButton:
        button = pmui.IconButton(label=label, icon=icon, description=says, **_SMALL)
        button.on_click(lambda event: do())
        return button

    def __panel__(self) -> Any:
        return pn.Row(
            self._chosen,
            *self.actions.buttons,
            self.unfold,
            self.by_position,
            self.note,
            styles={"align-items": "center", "gap": "2px"},
        )
