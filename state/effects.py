"""Effects: what the metric owes to each intervention, the others in force."""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING

from transpector.state.errors import Cancelled, TranspectorError
from transpector.state.interventions import Intervention, Question, active
from transpector.state.metric import Metric
from transpector.state.worker import BACKGROUND

if TYPE_CHECKING:
    from transpector.state.models import Model

_log = logging.getLogger(__name__)


def measure_effects(
    model: "Model",
    question: Question,
    metric: Metric,
    interventions: Sequence[Intervention],
    stop: threading.Event,
    tell: Callable[[dict[int, float]], None],
) -> None:
    """Find the metric with each intervention − without it, behind everybody's runs, one job each.

    ``question`` has all of them in force. ``tell`` is given what is known, by place, whenever there is more; on the
    worker's thread, and not once ``stop`` is set.
    """
    effects: dict[int, float] = {}

    def measure(place: int) -> None:
        if stop.is_set():
            return
        others = active(i for at, i in enumerate(interventions) if at != place)
        try:
            run = model.answer(question, cancelled=stop.is_set)
            without = model.answer(replace(question, interventions=others), cancelled=stop.is_set)
            effects[place] = metric.of(run) - metric.of(without)
        except (Cancelled, TranspectorError):
            return
        tell(dict(effects))

    for place, intervention in enumerate(interventions):
        if intervention.enabled:
            effect = model.worker.submit(lambda place=place: measure(place), priority=BACKGROUND)
            effect.add_done_callback(log_failure)


def log_failure(future: "Future") -> None:
    """Log what went wrong with a job that nobody waits for."""
    if not future.cancelled() and future.exception() is not None:
        _log.error("A job of the session failed.", exc_info=future.exception())
