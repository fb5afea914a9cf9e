"""Serve: one page a browser session, and the server that gives them out."""

import os
from collections.abc import Sequence
from typing import Any

import panel as pn

from transpector.dashboard import Dashboard
from transpector.state.session import Session

# Words in no order, twice: only a head that finds the first copy can foretell the second.
_WORDS = "ship music seven letter green captain garden water dance horse winter boat whale fire tea"
FIRST_TEXT = f"{_WORDS} {_WORDS}"


def open_page(model: str = "") -> Any:
    """A new session's page; the model loads once the page has been painted."""
    session = Session(text=FIRST_TEXT)
    dashboard = Dashboard(session)
    name = model or os.environ.get("TRANSPECTOR_MODEL", "builtin")
    pn.state.onload(lambda: session.load(name))
    pn.state.on_session_destroyed(lambda context: dashboard.close())
    return dashboard.page()


def serve(
    model: str = "builtin",
    port: int = 5006,
    address: str = "127.0.0.1",
    origins: Sequence[str] = (),
    show: bool = True,
) -> None:
    """Serve pages until interrupted; ``origins`` are further HOST:PORT under which browsers reach this server."""
    pn.serve(
        {"/": lambda: open_page(model)},
        title="Transpector",
        port=port,
        address=address,
        websocket_origin=[f"{address}:{port}", f"localhost:{port}", *origins],
        show=show,
        liveness=True,
        unused_session_lifetime_milliseconds=60_000,  # a slow machine may take long to connect
        admin=False,
    )
