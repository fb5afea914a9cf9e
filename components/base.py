"""Pane: a view that reads the session's answer, has its numbers computed off the event loop, and shows them."""

import logging
from typing import Any, ClassVar

import panel as pn
import param
from panel.reactive import Syncable
from panel.viewable import Viewer

from transpector.state.errors import Cancelled, TranspectorError
from transpector.state.session import Session

_log = logging.getLogger(__name__)

MILLION = 999_500  # and what is rounded to it

# What a page sends while its document is busy comes later, and without the document's lock unless told otherwise; but
# figures, which are Bokeh's, can't be changed without it.
for _late in (Syncable._change_coroutine, Syncable._event_coroutine):
    _late.lock = True


class Pane(Viewer):
    """One view of one session.

    A subclass names the session's parameters that it depends on in ``reads``; ``measure`` turns them into plain
    numbers on the model's worker, and ``show`` puts those on the page. Only the newest numbers are shown.
    """

    session = param.ClassSelector(class_=Session, doc="The question and its answer.")
    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")
    in_view = param.Boolean(
        default=True, allow_refs=True, doc="Whether its tab is open; until then what is new can wait."
    )

    reads: ClassVar[tuple[str, ...]] = ("run",)

    def __init__(self, session: Session, **params: Any):
        super().__init__(session=session, **params)
        self._asked = 0
        self._waits = False
        self._watcher = session.param.watch(lambda *events: self.refresh(), list(self.reads))
        self.param.watch(lambda event: self._waits and self.refresh(), "in_view")

    def measure(self, **read: Any) -> Any:
        """Numbers for ``show`` from the parameters in ``reads``; on the model's worker."""
        raise NotImplementedError

    def show(self, numbers: Any) -> None:
        """Put numbers on the page."""
        raise NotImplementedError

    def refuse(self, reason: str) -> None:
        """Say why there are no numbers of this run to show."""

    def refresh(self) -> None:
        """Measure and show anew, once there is a run."""
        run = self.session.run
        self._waits = not self.in_view
        if run is None or self._waits:
            return
        self._asked += 1
        asked = self._asked
        read = {name: getattr(self.session, name) for name in self.reads}

        def show(future: Any) -> None:
            if asked != self._asked or future.cancelled():
                return
            error = future.exception()
            if error is None:
                with pn.io.hold():
                    self.show(future.result())
            elif isinstance(error, TranspectorError):
                self.refuse(str(error))
            elif not isinstance(error, Cancelled):
                _log.error("%s could not be shown.", type(self).__name__, exc_info=error)
                notify(
                    f"{type(self).__name__} could not be shown ({type(error).__name__}). The log has the details."
                )

        future = run.model.worker.submit(lambda: self.measure(**read))
        future.add_done_callback(lambda done: self.session.inbox.post(lambda: show(done)))

    def close(self) -> None:
        """Stop watching the session."""
        self.session.param.unwatch(self._watcher)


def notify(message: str) -> None:
    """Show what went wrong as a notification, where there is a page for it."""
    if pn.state.notifications is not None:
        pn.state.notifications.error(message, duration=8000)


def visible(pieces: tuple[str, ...] | list[str]) -> list[str]:
    """Tokens with their spaces, line ends and control characters made visible."""
    return [
        "".join(_VISIBLE.get(c, c) if c.isprintable() or c in _VISIBLE else f"‹{ord(c):02X}›" for c in p)
        for p in pieces
    ]


def clip(text: str, length: int = 10) -> str:
    """A text for an axis or a title of a figure: not too long, and never typeset."""
    clipped = text if len(text) <= length else text[: length - 1] + "…"
    # Bokeh would typeset $$…$$ and the like; a text is only a text.
    return clipped.replace("$", "$\u200b").replace("\\", "\\\u200b")


_VISIBLE = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"}


def figures(number: float | None, signed: bool = False) -> str:
    """A number to three significant digits: 0.0120, 1,230, 1.5e7, 1.5e−4; with a true minus sign, a dash for none."""
    if number is None or number != number:
        return "–"
    sign = "+" if signed else ""
    rounded = float(f"{number:.3g}")
    size = abs(rounded)
    if size == float("inf"):
        text = f"{number:{sign}}".replace("inf", "∞")
    elif not size:
        text = "0"
    elif size < 1e-3 or size >= MILLION:
        mantissa, _, power = f"{number:{sign}.1e}".partition("e")
        text = f"{mantissa.removesuffix('.0')}e{int(power)}"
    elif size >= 1e3:
        text = f"{rounded:{sign},.0f}"
    else:
        text = f"{rounded:{sign}#.3g}".removesuffix(".")
    return text.replace("-", "−")
