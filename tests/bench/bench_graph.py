"""What the graph costs the page: time to its edges, bytes, frames while dragging, and how soon it follows a run.

    python tests/bench/bench_graph.py [--model ID] [--tokens 64] [--unfolded 3] [--rounds 9]

On the real page: its graph tab is opened, and then some layers are unfolded at once. Frames are the browser's own
animation frames while the mouse drags a node, and while it draws a line. A picture is followed from the moment the run
is published in Python to the first frame that has it, on one clock. Run by hand, on a quiet machine.
"""

import argparse
import socket
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import panel as pn
from playwright.sync_api import Page, sync_playwright
from traffic import Traffic

sys.path.insert(0, str(Path(__file__).parents[1] / "ui"))
from conftest import FLAGS, chromium

import transpector as tp
from transpector.dashboard import Dashboard

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
FIRST_EDGE, FRAME, FOLLOWS = 2.0, 20, 300  # s, ms, ms
TRAFFIC = 400e3  # bytes
STEPS = 120  # of the mouse in a drag

FRAMES = """() => {
  window.frames_seen = []
  let last = performance.now()
  window.frames_on = true
  const frame = (now) => { window.frames_seen.push(now - last); last = now; if (window.frames_on) requestAnimationFrame(frame) }
  requestAnimationFrame(frame)
}"""
PICTURE = "(node) => getComputedStyle(node.querySelector('.rf-node-content')).backgroundImage"
AWAIT_PICTURE = """(node, before) => new Promise((found) => {
  const content = node.querySelector(".rf-node-content")
  const look = () => getComputedStyle(content).backgroundImage !== before ? found(Date.now()) : requestAnimationFrame(look)
  look()
})"""


def verdict(value: float, limit: float) -> str:
    return "reached" if value <= limit else "MISSED"


def drag(page: Page, source: str, dx: float, dy: float, from_edge: bool) -> list[float]:
    """Milliseconds of each frame while the mouse drags a node, or a line from its edge, there and back."""
    box = page.locator(f'.react-flow__node[data-id="{source}"]').bounding_box()
    x, y = box["x"] + box["width"] * (1 if from_edge else 0.8), box["y"] + box["height"] / 2
    page.mouse.move(x - 3, y)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 8, y + 8, steps=3)
    page.wait_for_timeout(500)
    page.evaluate(FRAMES)
    for step in range(STEPS):
        way = np.sin(np.pi * step / STEPS)
        page.mouse.move(x + 8 + dx * way, y + 8 + dy * way)
    frames = page.evaluate("() => { window.frames_on = false; return window.frames_seen }")
    page.mouse.up()
    return frames[2:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--unfolded", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=9)
    chosen = parser.parse_args()
    lm = tp.load_model(chosen.model)
    ids = np.random.default_rng(0).choice(lm.text.plain_ids(), chosen.tokens).tolist()
    unfolded = frozenset(range(2, 2 + chosen.unfolded))
    boards: list[Dashboard] = []
    published: list[float] = []

    def view():
        board = Dashboard(tp.Session(token_ids=ids))
        board.session.param.watch(lambda event: published.append(time.time()), "run")
        pn.state.onload(lambda: board.session.param.update(model=lm))
        boards.append(board)
        return board.page()

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pn.serve(view, port=port, threaded=True, show=False, address="127.0.0.1", admin=False, verbose=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        firsts, unfolds, sizes = [], [], []
        for _ in range(3):
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            traffic = Traffic(page)
            page.goto(f"http://127.0.0.1:{port}")
            page.locator("canvas.picture").wait_for(timeout=120_000)
            session, board = boards[-1].session, boards[-1]
            traffic.settle(2.0).clear()
            began = time.monotonic()
            page.get_by_role("tab", name="Graph").click()
            page.locator(".react-flow__edge").first.wait_for(state="attached", timeout=60_000)
            firsts.append(time.monotonic() - began)
            traffic.settle(1.0)
            began = time.monotonic()
            session.inbox.post(lambda board=board: board.late["Graph"].unfold(unfolded))
            last = page.locator(
                f'.react-flow__edge[data-id="L{max(unfolded)}.mlp_post>L{max(unfolded)}.mlp_out"]'
            )
            last.wait_for(state="attached")
            unfolds.append(time.monotonic() - began)
            sizes.append(traffic.settle(1.0).received_bytes)
        page.get_by_role("button", name="Fit View").click()
        page.wait_for_timeout(500)
        n_nodes, n_edges = (page.locator(f".react-flow__{what}").count() for what in ("node", "edge"))
        print(
            f"{lm.spec.n_layers} × {lm.spec.n_heads} heads, {chosen.tokens} tokens, {chosen.unfolded} layers unfolded:"
        )
        print(f"{n_nodes} nodes, {n_edges} edges")
        first, size = statistics.median(firsts), max(sizes)
        print(f"tab to first edge: {first:.2f} s, {verdict(first, FIRST_EDGE)} (at most {FIRST_EDGE:g} s)")
        print(
            f"traffic to open and unfold: {size / 1e3:.0f} kB, {verdict(size, TRAFFIC)} (at most {TRAFFIC / 1e3:.0f} kB)"
        )
        layer = min(unfolded)
        for what, id, from_edge in (
            ("dragging a head", f"L{layer}H4.z", False),
            ("drawing a line", f"L{layer}H4.z", True),
        ):
            frames = drag(page, id, 60, 40, from_edge)
            median, slow = statistics.median(frames), float(np.quantile(frames, 0.95))
            print(
                f"{what}: median frame {median:.1f} ms, 95 % within {slow:.0f} ms, {verdict(median, FRAME)} (at most {FRAME} ms)"
            )
        last = page.locator(f'.react-flow__node[data-id="L{lm.spec.n_layers - 1}"]').element_handle()
        delays, bytes_each = [], []
        for head in range(chosen.rounds):
            traffic.settle(1.0).clear()
            before = last.evaluate(PICTURE)
            published.clear()
            session.inbox.post(
                lambda head=head: session.param.update(interventions=[tp.Ablate(f"L1H{head}.z")])
            )
            seen = last.evaluate(AWAIT_PICTURE, before)
            delays.append(seen - 1e3 * published[-1])
            bytes_each.append(traffic.settle(1.0).received_bytes)
        median = statistics.median(delays)
        print(
            f"run to picture: median {median:.0f} ms, worst {max(delays):.0f} ms, {verdict(median, FOLLOWS)} (at most {FOLLOWS} ms), "
            f"{max(bytes_each) / 1e3:.0f} kB"
        )
        browser.close()
    pn.state.kill_all_servers()


if __name__ == "__main__":
    main()
