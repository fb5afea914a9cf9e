"""Task: long work on a model that goes behind everybody's runs, a little at a time, and can be given up."""

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar, Self
from weakref import WeakSet

from transpector.state.errors import Cancelled, TranspectorError
from transpector.state.worker import BACKGROUND

if TYPE_CHECKING:
    from transpector.state.models import Model

_log = logging.getLogger(__name__)

TURN = 0.02  # s that a task takes before it lets others have their turn


class Task:
    """Work under way on a model's worker; a subclass does it in ``_walked``, and may stop at every ``yield``.

    It may be waited for with ``result``, or given up with ``cancel``; ``watch`` has a function told of what is new.
    """

    noun: ClassVar[str]

    def __init__(self, model: "Model", siblings: "WeakSet[Task]"):
        """``siblings`` are those of its session, which ends them all."""
        self.model = model
        self.state = "waiting"
        self.error: BaseException | None = None
        self._siblings = siblings
        siblings.add(self)
        self._began = self._ended = time.monotonic()
        self._changed = threading.Condition()
        self._watchers: list[Callable[[], None]] = []
        self._walk: Iterator[None] | None = self._walked()

    @property
    def done(self) -> int:
        """How much is done."""
        raise NotImplementedError

    @property
    def total(self) -> int:
        """How much there is to do."""
        raise NotImplementedError

    @property
    def elapsed(self) -> float:
        """Seconds since it was asked for, or that it took."""
        return (self._ended if self.is_over else time.monotonic()) - self._began

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ("done", "cancelled", "failed")

    def result(self, timeout: float | None = None) -> Self:
        """Wait until it is over and return it; raises what went wrong, Cancelled, or TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.is_over, timeout):
                raise TimeoutError(
                    f"The {self.noun} is not over after {timeout:g} s ({self.done} of {self.total})."
                )
        if self.error is not None:
            raise self.error
        if self.state == "cancelled":
            raise Cancelled(f"The {self.noun} was cancelled.")
        return self

    def cancel(self) -> None:
        """Give it up; what is known stays."""
        self._finish("cancelled")

    def watch(self, watcher: Callable[[], None]) -> None:
        """Have a function called, on the worker's thread, whenever there is something new."""
        self._watchers.append(watcher)

    def _walked(self) -> Iterator[None]:
        """Do it, on the worker; others may have their turn at each yield."""
        raise NotImplementedError

    def _submit(self) -> None:
        try:
            turn = self.model.worker.submit(self._turn, priority=BACKGROUND)
        except RuntimeError as error:  # the model was closed meanwhile
            self._finish("failed", error)
            return
        turn.add_done_callback(lambda turn: turn.cancelled() and self._finish("cancelled"))

    def _turn(self) -> None:
        """Go on for a little while; on the worker, where whoever has waited meanwhile comes next."""
        until = time.monotonic() + TURN
        with self._changed:
            if self.state == "waiting":
                self.state = "running"
        try:
            while not self.is_over:
                next(self._walk)
                if time.monotonic() > until or self.model.worker.queued:
                    break
        except StopIteration:
            self._finish("done")
        except BaseException as error:  # noqa: BLE001 - raised by result
            if not isinstance(error, TranspectorError):
                _log.error("A %s failed.", self.noun, exc_info=error)
            self._finish("failed", error)
        if self.is_over:
            self._walk = None  # and with it every tensor that it holds
            return
        self._submit()

    def _finish(self, state: str, error: BaseException | None = None) -> None:
        with self._changed:
            if self.is_over:
                return
            self.state, self.error, self._ended = state, error, time.monotonic()
        if error is not None:
            traceback.clear_frames(error.__traceback__)  # which would hold on to the tensors of its passes
        self._tell()

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()
        for watcher in self._watchers:
            watcher()
