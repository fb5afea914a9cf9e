"""Patch table: the interventions in order, what each does to the metric, and ways to take them back."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import panel as pn
import panel_material_ui as pmui
import param
from panel.custom import JSComponent

from transpector.components import theme
from transpector.components.base import Pane, figures
from transpector.state.interventions import Intervention


class PatchRows(JSComponent):
    """The rows ``{site, verb, what, name, state, enabled, effect, hint}``; sends what is clicked.

    A row that has a strength has ``strength``, ``neutral`` and ``reach``, and a slider of twice that.
    """

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


class PatchTable(Pane):
    """The session's interventions; switch, rename, delete, clear, undo, redo, and set strengths."""

    reads: ClassVar = ("run", "baseline")

    def __init__(self, session: Any, **params: Any):
        super().__init__(session, **params)
        # By intervention, whatever its strength: that at which it is as long as what the site holds.
        self._reaches: dict[Any, float] = {}
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
        session.param.watch(lambda event: self._reaches.clear(), "model")
        self._show()

    def measure(self, run: Any, baseline: Any) -> dict[Any, float]:
        added = [i for i in run.interventions if i.strength is not None and not i.neutral]
        if not added:
            return {}
        from transpector.state.steering import reach

        return {_key(i): _round(reach(baseline, i)) for i in added if _key(i) not in self._reaches}

    def show(self, numbers: dict[Any, float]) -> None:
        # A range stays as it was first found: it must not move while its slider does.
        self._reaches |= numbers
        if numbers:
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
                    "effect": "" if effect is None else figures(effect, signed=True),
                    "hint": f"{session.metric.label} with it, less without it, the others in force ({unit})",
                }
            )
            if intervention.strength is not None:
                rows[-1] |= {
                    "strength": intervention.strength,
                    "neutral": intervention.neutral,
                    # A factor is as it is; what is added is much or little beside what is there.
                    "reach": intervention.neutral or self._reaches.get(_key(intervention), 0),
                }
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
        elif message["do"] == "strength" and interventions[at].strength is not None:
            interventions[at] = interventions[at].at_strength(float(message["value"]))
        self.session.interventions = interventions

    def __panel__(self) -> Any:
        return pn.Column(self.rows, self._clear, sizing_mode="stretch_width")


def _key(intervention: Intervention) -> Intervention:
    return replace(intervention.at_strength(1.0), enabled=True)


def _round(number: float) -> float:
    """To two digits, for a scale."""
    return float(f"{number:.2g}")
