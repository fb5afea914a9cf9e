"""Worker: the one thread through which everything that touches a model goes, most urgent first."""

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

INTERACTIVE, BACKGROUND = 0, 1


class Worker:
    """A single daemon thread with a priority queue; a bridge is not thread-safe, so each model has just one."""

    def __init__(self, name: str):
        self.name = name
        self._queue: list[tuple[int, float, int, Future, Callable[[], Any]]] = []
        self._order = itertools.count()
        self._wakes = threading.Condition()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def submit(self, job: Callable[[], Any], *, priority: int = INTERACTIVE, delay: float = 0.0) -> Future:
        """Queue a job, to begin no sooner than ``delay`` seconds from now; lower priorities go first."""
        future: Future = Future()
        with self._wakes:
            if self._stopped:
                raise RuntimeError(f"The worker of {self.name} has stopped.")
            # Started late, so that a process may build a model and fork before any thread exists.
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name=f"transpector {self.name}", daemon=True
                )
                self._thread.start()
            self._queue.append((priority, time.monotonic() + delay, next(self._order), future, job))
            self._wakes.notify()
        return future

    def call(self, job: Callable[[], Any]) -> Any:
        """Run a job and wait for its result; from the worker's own thread it runs at once."""
        return job() if self.is_current else self.submit(job).result()

    @property
    def is_current(self) -> bool:
        """Whether the caller is on the worker's thread."""
        return threading.current_thread() is self._thread

    @property
    def stopped(self) -> bool:
        """Whether it takes no more jobs."""
        return self._stopped

    @property
    def queued(self) -> int:
        """Jobs that wait."""
        return len(self._queue)

    def stop(self) -> None:
        """Cancel what waits and end the thread after the job under way."""
        with self._wakes:
            self._stopped = True
            for *_, future, _job in self._queue:
                future.cancel()
            self._queue.clear()
            self._wakes.notify()

    def _next(self) -> tuple[Future, Callable[[], Any]] | None:
        with self._wakes:
            while not self._stopped:
                now = time.monotonic()
                due = [entry for entry in self._queue if entry[1] <= now]
                if due:
                    entry = min(due)
                    self._queue.remove(entry)
                    return entry[3], entry[4]
                soonest = min((entry[1] for entry in self._queue), default=None)
                self._wakes.wait(None if soonest is None else soonest - now)
        return None

    def _work(self) -> None:
        import torch  # here, so that a worker can exist before torch is imported

        with torch.no_grad():  # grad mode is a thread's own
            while (entry := self._next()) is not None:
                future, job = entry
                if not future.set_running_or_notify_cancel():
                    continue
                try:
                    future.set_result(job())
                except BaseException as error:  # noqa: BLE001 - handed to whoever waits on the future
                    future.set_exception(error)
                # Names kept here would keep the last answer's tensors alive until the next job.
                del entry, future, job
