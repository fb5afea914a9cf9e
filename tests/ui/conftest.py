"""A real browser on a served view: nothing may leave this machine, and the console stays clean."""

import os
import shutil
import socket
import time
from urllib.parse import urlsplit

import panel as pn
import pytest

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LOCAL = {"localhost", "127.0.0.1"}


def chromium() -> str | None:
    """Find Chromium: the CHROMIUM of the environment, else the first of its usual names on the path."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="session")
def browser():
    """One Chromium for the whole run."""
    path = chromium()
    if path is None:
        reason = "no Chromium: install chromium, or name one in the environment variable CHROMIUM"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A fresh page of 1440 × 900; a request to elsewhere or an error on the console fails the test."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    wrongs = []

    def guard(route):
        wrongs.append(f"request to {route.request.url}")
        route.abort()

    context.route(_leaves, guard)
    page = context.new_page()
    page.set_default_timeout(15_000)
    page.on("websocket", lambda opened: _leaves(opened.url) and wrongs.append(f"websocket to {opened.url}"))
    page.on("console", lambda said: said.type == "error" and wrongs.append(f"console: {said.text}"))
    page.on("pageerror", lambda error: wrongs.append(f"page error: {error}"))
    yield page
    context.close()
    assert not wrongs, "\n".join(wrongs)


@pytest.fixture
def serve():
    """Serve a view, or a function that gives one; returns its address."""

    def start(view) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        pn.serve(view, port=port, threaded=True, show=False, address="127.0.0.1", admin=False, verbose=False)
        _await_port(port)
        return f"http://127.0.0.1:{port}"

    yield start
    pn.state.kill_all_servers()


def _leaves(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in {"http", "https", "ws", "wss"} and parts.hostname not in LOCAL


def _await_port(port: int, patience: float = 20) -> None:
    end = time.monotonic() + patience
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
