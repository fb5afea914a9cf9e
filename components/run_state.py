"""Run state: the line at the top that names the model and says what is being done, how far, and how to stop it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import param
from panel.custom import JSComponent

from transpector.components import theme


class RunState(JSComponent):
    """The model with its health badge, the run state with progress and cancel, undo and redo."""

    name_of_model = param.String(doc="The model's name.")
    health = param.String(doc="healthy, limited or broken; empty while there is no model.")
    hint = param.String(doc="What a pointer on the model's name is told.")
    says = param.String(doc="What is being done.")
    memory = param.String(doc="What the runs that are kept take.")
    memory_hint = param.String(doc="What a pointer on it is told.")
    busy = param.Boolean(doc="Whether there is something to cancel.")
    fraction = param.Number(default=-1, doc="How far it is, 0 to 1; negative if unknown.")
    can_undo = param.Boolean(doc="Whether a change can be taken back.")
    can_redo = param.Boolean(doc="Whether one can be made again.")
    dark = param.Boolean(default=False, doc="Whether the page is dark.")

    _esm = Path(__file__).parent / "run_state.js"
    _constants = theme.constants()

    def __init__(self, session: Any, choose: Callable[[], None], **params: Any):
        params.setdefault("sizing_mode", "stretch_width")
        super().__init__(**params)
        self._does = {"choose": choose, "cancel": session.cancel, "undo": session.undo, "redo": session.redo}
        self._session = session
        session.param.watch(
            self._tell, ["model", "state", "progress", "loading", "run", "can_undo", "can_redo", "error"]
        )
        self._tell()

    def _tell(self, *events: Any) -> None:
        session = self._session
        model = session.model
        loading, fraction = session.loading
        busy = bool(loading) or session.state in ("queued", "running")
        if loading:
            says = f"loading {loading}"
        elif session.state == "queued":
            says, fraction = "queued", None
        elif session.state == "running":
            says, fraction = f"running: {session.progress[0]}", session.progress[1]
        elif session.run is not None:
            says = _said(session.run, session.recalled)
        else:
            says = "no model yet" if model is None else ""
        self.param.update(
            name_of_model=model.name if model else (loading.split(":")[0] if loading else "Choose a model"),
            health=model.health.level if model else "",
            hint="\n".join(("Choose another model.", *(model.health.reasons if model else ()))),
            says=says,
            memory=f"{model.runs.nbytes / 1e6:,.0f} MB kept" if model else "",
            memory_hint=_MEMORY.format(model.runs.limit / 1e6) if model else "",
            busy=busy,
            fraction=-1 if fraction is None else fraction,
            can_undo=session.can_undo,
            can_redo=session.can_redo,
        )

    def _handle_msg(self, message: dict[str, Any]) -> None:
        self._does[message["do"]]()


_MEMORY = (
    "Runs are kept for undo, redo and a quick answer to the next change, at most {:,.0f} MB of them "
    "(TRANSPECTOR_RUN_CACHE, MB); the oldest leave first."
)


def _said(run: Any, recalled: bool) -> str:
    """How the newest answer was found, and what it is about."""
    last = run.model.spec.n_layers - 1
    done = "known already" if recalled else f"layers {run.first_layer}–{last}, {run.ms:,.0f} ms"
    n_changes = len(run.interventions)
    changes = f" · {n_changes} intervention{'s' * (n_changes != 1)}" if n_changes else ""
    return f"{done} · {run.n_pos:,} tokens{changes}"
