"""Gradient: the metric's gradient in a run, gone back for once however many views show it, and given up for what is newer."""

import time
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from transpector.state.errors import TranspectorError

PATIENCE = 1.0  # s without a word

# By run, of the metric last asked for. A run is looked at by the views of one session or more, on one worker.
_known: "WeakKeyDictionary[Any, dict[Any, Any]]" = WeakKeyDictionary()


def is_known(run: Any, metric: Any) -> bool:
    """Whether the gradient of a metric in a run costs nothing any more."""
    return metric in _known.get(run, {})


def measured(session: Any, run: Any, metric: Any, slow: Callable[[], None] = lambda: None) -> Any:
    """The Gradients of a metric in a run; on the model's worker. ``slow`` is called there if it takes its time.

    Raises Cancelled where another question is asked meanwhile, for that is not to wait; once ``session`` is idle again
    it may be asked for anew. Raises what ``state.stream.gradients`` does.
    """
    from transpector.state.stream import gradients  # brings torch, which the first paint does not wait for

    known, began, told = _known.setdefault(run, {}), time.monotonic(), False

    def cancelled() -> bool:
        nonlocal told
        if not told and time.monotonic() - began > PATIENCE:
            told = True
            slow()
        return session.state in ("queued", "running")

    if metric not in known:
        found = gradients(run, metric, cancelled=cancelled)
        known.clear()
        known[metric] = found
    return known[metric]


def unable(run: Any, metric: Any) -> str:
    """Why there is no gradient of a metric in a run; nothing where there is."""
    if not run.model.wiring.by_layer:
        return "This architecture has no gradients here: its layers can't be done one by one."
    if not run.model.health.can_read("resid_pre"):
        return f"The residual stream can't be read here: {run.model.health.abilities['resid_pre'].reason}"
    try:
        metric.on(run.model.text, run.question.token_ids)
    except TranspectorError as error:
        return str(error)
    return ""
