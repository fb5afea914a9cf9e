"""Traffic: the bytes that a page in a browser exchanges with its server over websockets."""

import time
from typing import Any

from playwright.sync_api import Page, WebSocket


class Traffic:
    """Counts the websocket frames of a page from ``clear`` on; make it before the page is opened.

    Frames are counted as the application sees them: uncompressed, without the few bytes of framing.
    """

    def __init__(self, page: Page):
        self.page = page
        self.clear()
        page.on("websocket", self._listen)

    def clear(self) -> None:
        """Begin again from nothing."""
        self.received: list[int] = []  # bytes of each frame, server to browser
        self.sent: list[int] = []  # browser to server
        self._last = time.monotonic()

    @property
    def received_bytes(self) -> int:
        """Bytes from the server."""
        return sum(self.received)

    @property
    def sent_bytes(self) -> int:
        """Bytes to the server."""
        return sum(self.sent)

    def settle(self, quiet: float = 0.3, patience: float = 30) -> "Traffic":
        """Wait until nothing has come or gone for ``quiet`` s; raises TimeoutError after ``patience`` s."""
        end = time.monotonic() + patience
        while time.monotonic() - self._last < quiet:
            if time.monotonic() > end:
                raise TimeoutError(f"The page still talks after {patience:g} s.")
            self.page.wait_for_timeout(20)  # lets Playwright hand over what has happened
        return self

    def __str__(self) -> str:
        return (
            f"{self.received_bytes / 1e6:.3f} MB received in {len(self.received)} frames, "
            f"{self.sent_bytes / 1e6:.3f} MB sent in {len(self.sent)}"
        )

    def _listen(self, websocket: WebSocket) -> None:
        websocket.on("framereceived", lambda frame: self._count(self.received, frame))
        websocket.on("framesent", lambda frame: self._count(self.sent, frame))

    def _count(self, frames: list[int], frame: Any) -> None:
        payload = getattr(frame, "payload", frame)
        frames.append(len(payload.encode() if isinstance(payload, str) else payload))
        self._last = time.monotonic()
