"""What one update costs the page: bytes over the websocket, and the time until the contact sheet is repainted.

    python tests/bench/bench_page.py [--model ID] [--rounds 15]

The bytes are those of one change of interventions, with every view that follows from it. The repaint is measured from
the assignment in Python to the moment the browser has drawn, on one clock. Run by hand, on a quiet machine.
"""

import argparse
import socket
import statistics
import sys
import threading
import time
from pathlib import Path

import numpy as np
import panel as pn
from playwright.sync_api import sync_playwright
from traffic import Traffic

sys.path.insert(0, str(Path(__file__).parents[1] / "ui"))
from conftest import FLAGS, chromium

import transpector as tp
from transpector.dashboard import Dashboard

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
LIMITS = {64: 1.5e6, 256: 2e6}  # bytes of an update, by tokens
REPAINT = 100  # ms

WATCH = """() => {
  const sheet = [...document.querySelectorAll('*')].flatMap(function deep(e) {
    return e.shadowRoot ? [...e.shadowRoot.querySelectorAll('*')].flatMap(deep).concat(e) : [e]
  }).find((e) => e.tagName === 'CANVAS' && e.classList.contains('picture'))
  window.drawn = []
  new MutationObserver(() => window.drawn.push(Date.now())).observe(sheet, {attributeFilter: ['data-drawn']})
}"""


def on_loop(board: Dashboard, function) -> None:
    """Run something where the page's parameters may be set, and wait for it."""
    done = threading.Event()

    def run():
        function()
        done.set()

    board.session.inbox.post(run)
    done.wait(30)


def answered(board: Dashboard, page, function) -> None:
    before = board.session.run
    on_loop(board, function)
    while board.session.run is before:
        page.wait_for_timeout(10)


def assign(board: Dashboard, pixels: bytes) -> float:
    """Give the contact sheet new pictures; returns when, in s since the epoch."""
    began = []

    def run():
        began.append(time.time())
        board.sheet.sheet.param.update(thumbnails=pixels)

    on_loop(board, run)
    return began[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--rounds", type=int, default=15)
    chosen = parser.parse_args()
    lm = tp.load_model(chosen.model)
    ids = np.random.default_rng(0).choice(lm.text.plain_ids(), 256).tolist()
    boards: list[Dashboard] = []

    def view():
        boards.append(Dashboard(tp.Session(token_ids=ids[:32])))
        pn.state.onload(lambda: boards[-1].session.param.update(model=lm))
        return boards[-1].page()

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pn.serve(view, port=port, threaded=True, show=False, address="127.0.0.1", admin=False, verbose=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        traffic = Traffic(page)
        page.goto(f"http://127.0.0.1:{port}")
        page.locator("canvas.picture").wait_for(timeout=120_000)
        board = boards[-1]
        page.evaluate(WATCH)
        traffic.settle(2.0)
        print(f"{lm.spec.n_layers} × {lm.spec.n_heads} heads")
        for n_pos, limit in LIMITS.items():
            answered(board, page, lambda n_pos=n_pos: board.session.param.update(token_ids=ids[:n_pos]))
            traffic.settle(2.0)
            sizes = []
            for head in range(5):
                traffic.clear()
                answered(
                    board,
                    page,
                    lambda head=head: board.session.param.update(interventions=[tp.Ablate(f"L1H{head}.z")]),
                )
                traffic.settle(2.0)
                sizes.append(traffic.received_bytes)
            verdict = "within" if max(sizes) <= limit else "OVER"
            print(
                f"one update at {n_pos:>3} tokens: {max(sizes) / 1e6:.2f} MB, {verdict} {limit / 1e6:.1f} MB"
            )
            times = []
            for _ in range(chosen.rounds):
                layers, heads, side = board.sheet.sheet.shape
                pixels = (
                    np.random.default_rng().integers(0, 256, (layers, heads, side, side), np.uint8).tobytes()
                )
                page.evaluate("window.drawn = []")
                times.append(-1e3 * assign(board, pixels))
                page.wait_for_function("window.drawn.length")
                times[-1] += page.evaluate("window.drawn.at(-1)")
            median, worst = statistics.median(times), max(times)
            verdict = "within" if median <= REPAINT else "OVER"
            print(
                f"repaint at {n_pos:>3} tokens: median {median:.0f} ms, worst {worst:.0f} ms, {verdict} {REPAINT} ms"
            )
        browser.close()
    pn.state.kill_all_servers()


if __name__ == "__main__":
    main()
