"""A real browser on a served view: nothing may leave this machine, and the console stays clean."""

import asyncio
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
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


def pytest_collection_modifyitems(items):
    """On CI's two cores a browser may miss a click: a test that drives one has a second try there, which is told."""
    if os.environ.get("CI"):
        for item in items:
            if item.get_closest_marker("browser"):
                item.add_marker(pytest.mark.flaky(reruns=1))


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
    """Serve a view, or a function that gives one; returns its address.

    A page may take long between its document and its websocket, and is not to be given up meanwhile.
    """

    def start(view, **options) -> str:
        port = free_port()
        options = {"unused_session_lifetime_milliseconds": 120_000, **options}
        pn.serve(
            view,
            port=port,
            threaded=True,
            show=False,
            address="127.0.0.1",
            admin=False,
            verbose=False,
            **options,
        )
        await_port(port)
        return f"http://127.0.0.1:{port}"

    yield start
    pn.state.kill_all_servers()


def is_hang_up(record: logging.LogRecord) -> bool:
    """Whether a log record only says that a browser closed its page while it was being written to."""
    cut_off = bool(record.exc_info) and record.exc_info[0] is asyncio.CancelledError
    return cut_off or "WebSocketClosedError" in record.getMessage()


@pytest.fixture
def open_desk(page, serve, monkeypatch, caplog):
    """A function: opens the dashboard on a model, as `transpector` serves it, in this process; gives the Desk.

    Whatever the server logs as an error fails the test.
    """
    from desk import Desk

    from transpector import serve as served

    boards = []

    class Dashboard(served.Dashboard):
        def __init__(self, *args, **params):
            super().__init__(*args, **params)
            boards.append(self)

    monkeypatch.setattr(served, "Dashboard", Dashboard)

    def open_desk(model: str = "builtin", **options) -> Desk:
        return Desk(page, serve({"/": lambda: served.open_page(model)}, **options), boards).open()

    yield open_desk
    records = [*caplog.get_records("setup"), *caplog.get_records("call")]
    errors = [
        _told(record) for record in records if record.levelno >= logging.ERROR and not is_hang_up(record)
    ]
    assert not errors, "\n".join(errors)


@pytest.fixture
def command():
    """A function: starts `python -m transpector` with arguments; gives its process and its address."""
    processes = []

    def start(*arguments: str) -> tuple[subprocess.Popen, str]:
        port = free_port()
        line = [sys.executable, "-m", "transpector", "--no-browser", "--port", str(port), *arguments]
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        processes.append(process)
        await_port(port, 60)
        return process, f"http://127.0.0.1:{port}"

    yield start
    for process in processes:
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture
def desk(open_desk):
    """The dashboard on the built-in model, open and running."""
    return open_desk()


class Gate:
    """Holds a model's passes in the middle: within the attention of a block, whose hooks are set."""

    def __init__(self, model, layer=1):
        self.reached, self._open = threading.Event(), threading.Event()
        self._hook = model.bridge.blocks[layer].attn.register_forward_pre_hook(self._hold)

    def _hold(self, *call):
        self.reached.set()
        assert self._open.wait(120)

    def open(self):
        self._open.set()
        self._hook.remove()


@pytest.fixture
def gate():
    """A function: sets a gate in a model; it is open at the end whatever happens."""
    gates = []

    def set_gate(model, layer=1):
        gates.append(Gate(model, layer))
        return gates[-1]

    yield set_gate
    for each in gates:
        each.open()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _told(record: logging.LogRecord) -> str:
    return logging.Formatter().format(record)


def _leaves(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in {"http", "https", "ws", "wss"} and parts.hostname not in LOCAL


def await_port(port: int, patience: float = 20) -> None:
    end = time.monotonic() + patience
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
