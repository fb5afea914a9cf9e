"""Inbox: what other threads want done where parameters may be set, done there in order."""

import threading
import time
from collections import deque
from collections.abc import Callable

PATIENCE = 0.5  # s that a waiting thread leaves the inbox to the thread whose it is


class Inbox:
    """Functions posted by any thread, called one after another by the thread that may.

    ``schedule`` is given a function whenever something is posted and calls it on that thread: a page's event loop.
    Without one, what is posted waits for ``drain`` or ``wait_for``.
    """

    def __init__(self, schedule: Callable[[Callable[[], None]], None] | None = None):
        self.schedule = schedule
        self._posted: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._drainer: int | None = None  # the thread that empties the inbox just now
        self._home: int | None = None  # the thread that ``schedule`` leads to, once known
        self._closed = False

    def post(self, function: Callable[[], None]) -> None:
        """Have a function called, after those posted before it."""
        if self._closed:
            return
        with self._changed:
            self._posted.append(function)
            self._changed.notify_all()
        if self.schedule is not None:
            self.schedule(self._come_home)

    def drain(self) -> None:
        """Call what was posted, and what is posted meanwhile; if another thread is at it, leave it to that."""
        me = threading.get_ident()
        while True:
            with self._changed:
                if not self._posted or self._drainer not in (None, me):
                    return
                function = self._posted.popleft()
                outer, self._drainer = self._drainer, me
            try:
                function()
            finally:
                with self._changed:
                    self._drainer = outer
                    self._changed.notify_all()

    def wait_for(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
        """Block, draining, until ``done()`` and nothing is being called elsewhere; False after ``timeout`` s."""
        deadline = time.monotonic() + (threading.TIMEOUT_MAX / 2 if timeout is None else timeout)
        me = threading.get_ident()
        while True:
            left = max(0.0, deadline - time.monotonic())
            if self.schedule is not None and self._home not in (None, me):
                with self._changed:
                    self._changed.wait_for(lambda: not self._posted, min(PATIENCE, left))
            # The thread that should have drained may be the one that waits here, or wait for this one.
            self.drain()
            with self._changed:
                elsewhere = self._drainer not in (None, me)
                if not elsewhere and done():
                    return True
                if not elsewhere and self._posted:
                    continue
                if left <= 0:
                    return False
                self._changed.wait(left)

    def notify(self) -> None:
        """Have those who wait look again."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Forget what was posted, and take nothing more."""
        self._closed = True
        self._posted.clear()

    def _come_home(self) -> None:
        self._home = threading.get_ident()
        self.drain()
