"""Patch table: the interventions in order, what each does to the metric, and ways to take them back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import panel as pn
import panel_material_ui as pmui
import param
from panel.custom import JSComponent
from panel.viewable import Viewer

from transpector.components import theme
from transpector.components.base import short


class PatchRows(JSComponent):
    """The rows ``{site, verb, what, name, state, enabled, effect, hint}``; sends what is clicked."""

    rows = param.List(default=[], item_type=dict, doc="One a intervention, in order.")
    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")

    _esm = Path(__file__).parent / "patch_table.js"
    _constants = theme.constants()

    def __init__(self, **params):
        params.setdefault("sizing_mode", "stretch_width")
        super().__init__(**params)
        self.clicked = lambda message: None

    def _handle_msg(self, message: dict[str, Any]) -> None:
        self.clicked(message)


class PatchTable(Viewer):
    """The session's interventions; switch, rename, delete, clear, undo, redo."""

    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")

    def __init__(self, session: Any, **params: Any):
        super().__init__(**params)
        self.session = session
        self.rows = PatchRows(dark=self.param.dark)
        self.rows.clicked = self._clicked
        self._clear = pmui.Button(
            label="Clear",
            variant="text",
            size="small",
            margin=0,
            description="Delete all; undo brings them back",
        )
        self._clear.on_click(lambda event: session.param.update(interventions=[]))
        session.param.watch(lambda *events: self._show(), ["interventions", "effects"])
        self._show()

    def _show(self) -> None:
        session = self.session
        unit = session.metric.unit
        rows = []
        for at, intervention in enumerate(session.interventions):
            effect = session.effects.get(at) if intervention.enabled else None
            rows.append(
                {
                    "site": intervention.where,
                    "verb": intervention.verb,
                    "what": intervention.what,
                    "name": intervention.name,
                    "state": theme.STATES[intervention.verb],
                    "enabled": intervention.enabled,
                    "effect": "" if effect is None else short(effect, signed=True),
                    "hint": f"{session.metric.label} with it, less without it, the others in force ({unit})",
                }
            )
        self.rows.rows = rows
        self._clear.visible = bool(rows)

    def _clicked(self, message: dict[str, Any]) -> None:
        interventions = list(self.session.interventions)
        at = message.get("at")
        if not isinstance(at, int) or not 0 <= at < len(interventions):
            return  # a click on a row that has gone meanwhile
        if message["do"] == "remove":
            del interventions[at]
        elif message["do"] == "toggle":
            interventions[at] = replace(interventions[at], enabled=not interventions[at].enabled)
        elif message["do"] == "rename":
            interventions[at] = replace(interventions[at], name=str(message["name"])[:80])
        self.session.interventions = interventions

    def __panel__(self) -> Any:
        return pn.Column(self.rows, self._clear, sizing_mode="stretch_width")
