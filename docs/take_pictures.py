"""Take the pictures of the README and of the tutorial from the real page.

    python docs/take_pictures.py [name …]

Wants Chromium (on the path, or named in CHROMIUM), Playwright, and SmolLM2 on this computer.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright
from tutorial_steps import STEPS

DOCS = Path(__file__).parent
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
PATIENCE = 180_000  # ms; the first load converts


@contextmanager
def server(model: str) -> Iterator[str]:
    """`transpector` on a free port; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = [sys.executable, "-m", "transpector", "--no-browser", "--port", str(port), "--model", model]
    process = subprocess.Popen(line)
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def first_sight(page: Page, address: str) -> None:
    """Open the page and wait until the guide says what there is to see."""
    page.goto(address)
    page.get_by_text("This text repeats").wait_for(timeout=PATIENCE)
    settle(page)


def settle(page: Page) -> None:
    """Wait until nothing runs and the pictures stand still."""
    page.locator(".says", has_text=" tokens").wait_for(timeout=PATIENCE)
    page.wait_for_timeout(3000)


def light(page: Page, address: str) -> None:
    """SmolLM2 as it opens."""
    first_sight(page, address)
    page.screenshot(path=DOCS / "smollm2-light.png")


def causal_map(page: Page, address: str) -> None:
    """SmolLM2, every head set to zero in turn, the head that matters most selected."""
    first_sight(page, address)
    page.get_by_role("tab", name="Causal map").click()
    page.get_by_role("button", name="Exact: a run for each site").click()
    page.get_by_text("270 sites in").wait_for(timeout=PATIENCE)
    page.get_by_role("button", name="L1H4.z").click()
    page.mouse.move(1080, 880)
    settle(page)
    page.screenshot(path=DOCS / "causal-map.png")


def graph(page: Page, address: str) -> None:
    """SmolLM2's graph: an early layer unfolded, one of its heads patched from another, contributions on the wires."""
    page.set_viewport_size({"width": 1440, "height": 1000})
    first_sight(page, address)
    page.get_by_role("tab", name="Graph").click()
    part = lambda id: page.locator(f'.react-flow__node[data-id="{id}"]')  # noqa: E731
    part("L2").locator(".rf-node-label").click()
    part("L2H0.z").wait_for()
    settle(page)
    source, target = part("L2H1.z").bounding_box(), part("L2H7.z").bounding_box()
    page.mouse.move(source["x"] + source["width"] - 2, source["y"] + source["height"] / 2)
    page.mouse.move(source["x"] + source["width"], source["y"] + source["height"] / 2)
    page.mouse.down()
    page.mouse.move(source["x"] + source["width"] + 40, source["y"] + 20, steps=5)
    page.locator(".rf-handle-valid").first.wait_for(state="attached")
    page.mouse.move(target["x"] + target["width"] / 2, target["y"] + target["height"] / 2, steps=8)
    page.mouse.up()
    page.locator(".react-flow__edge.patch").wait_for(state="attached")
    page.get_by_role("switch", name="Contributions").check()
    part("L2.mlp_out").click()
    settle(page)
    page.mouse.move(1080, 990)
    settle(page)
    page.screenshot(path=DOCS / "graph.png")


def dark(page: Page, address: str) -> None:
    """The built-in model in the dark: the induction head zeroed, another frozen, a layer's output patched."""
    first_sight(page, address)
    page.get_by_label("Toggle theme").click()
    page.get_by_role("button", name="Set it to zero").click()
    settle(page)
    page.locator("canvas.picture").focus()
    page.keyboard.press("ArrowUp")
    settle(page)
    page.get_by_role("button", name="Hold the value").click()
    settle(page)
    page.mouse.move(720, 880)
    settle(page)
    page.screenshot(path=DOCS / "builtin-dark.png")


def tutorial(page: Page, address: str) -> None:
    """The steps of the tutorial, a picture of each."""
    (DOCS / "tutorial").mkdir(exist_ok=True)
    first_sight(page, address)
    for step in STEPS:
        step.do(page)
        page.mouse.move(640, 20)
        settle(page)
        page.screenshot(path=DOCS / "tutorial" / f"{step.name}.png")


def lens(page: Page, address: str) -> None:
    """The lens of SmolLM2 on a fact, with the token that it tells through the layers."""
    about_eiffel(page, address)
    page.get_by_role("tab", name="Lens").click()
    page.get_by_label("Chosen token").fill(" Paris")
    page.set_viewport_size({"width": 1440, "height": 1000})
    page.mouse.move(1080, 20)
    settle(page)
    page.screenshot(path=DOCS / "lens.png")


def contributions(page: Page, address: str) -> None:
    """What each part of SmolLM2 adds to Paris over Rome."""
    about_eiffel(page, address)
    page.get_by_role("tab", name="Contributions").click()
    page.set_viewport_size({"width": 1440, "height": 1000})
    page.get_by_text("add up to").wait_for(timeout=PATIENCE)
    page.mouse.move(1080, 20)
    settle(page)
    page.screenshot(path=DOCS / "contributions.png")


def stream(page: Page, address: str) -> None:
    """The norms of SmolLM2's residual stream."""
    about_eiffel(page, address)
    page.get_by_role("tab", name="Stream").click()
    page.mouse.move(1080, 20)
    settle(page)
    page.screenshot(path=DOCS / "stream.png")


def heads(page: Page, address: str) -> None:
    """Every head of SmolLM2 scored, the induction heads first."""
    first_sight(page, address)
    page.get_by_role("tab", name="Heads", exact=True).click()
    page.get_by_role("table", name="Scores of heads").wait_for(timeout=PATIENCE)
    page.wait_for_timeout(4000)  # what heads copy follows
    page.mouse.move(1080, 20)
    settle(page)
    page.screenshot(path=DOCS / "heads.png")


def weights(page: Page, address: str) -> None:
    """What a late head of SmolLM2 writes and looks for."""
    who_writes_paris(page, address)
    page.get_by_role("group", name="Heads").locator("button.row").first.click()
    page.get_by_role("tab", name="Weights", exact=True).click()
    page.set_viewport_size({"width": 1440, "height": 1000})
    page.mouse.move(1080, 20)
    settle(page)
    page.screenshot(path=DOCS / "weights.png")


def neurons(page: Page, address: str) -> None:
    """The most active neurons of a layer of SmolLM2, one of them selected."""
    who_writes_paris(page, address)
    page.get_by_role("group", name="Neurons").locator("button.row").first.click()
    page.get_by_role("tab", name="Neurons", exact=True).click()
    page.set_viewport_size({"width": 1440, "height": 1000})
    page.mouse.move(1080, 20)
    settle(page)
    page.screenshot(path=DOCS / "neurons.png")


def search(page: Page, address: str) -> None:
    """Which heads and neurons of SmolLM2 write Paris."""
    who_writes_paris(page, address)
    page.mouse.move(1080, 20)
    settle(page)
    page.screenshot(path=DOCS / "search.png")


def steered(page: Page, address: str) -> None:
    """SmolLM2 steered, in the dark: the continuation beside the baseline's."""
    first_sight(page, address)
    page.get_by_placeholder("Type a text").fill("I went to the shop today and")
    settle(page)
    page.get_by_label("Toggle theme").click()
    choose(page, "Do", "Steer")
    page.get_by_label("Site", exact=True).fill("L12.resid_pre")
    page.get_by_label("Towards", exact=True).fill("I love the sea")
    page.get_by_label("Away from", exact=True).fill("I love the city")
    page.get_by_role("button", name="Add", exact=True).click()
    page.get_by_role("slider", name="Strength of L12.resid_pre").wait_for(timeout=PATIENCE)
    page.get_by_role("tab", name="Generate").click()
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_text("64 tokens, ").wait_for(timeout=PATIENCE)
    page.mouse.move(1080, 20)
    settle(page)
    page.screenshot(path=DOCS / "generate-dark.png")


def about_eiffel(page: Page, address: str) -> None:
    """SmolLM2 on a fact, with Paris over Rome as the metric."""
    first_sight(page, address)
    page.get_by_placeholder("Type a text").fill("The Eiffel Tower is in the city of")
    choose(page, "Metric", "Logit difference")
    page.get_by_label("Answer", exact=True).fill(" Paris")
    page.get_by_label("Distractor", exact=True).fill(" Rome")
    settle(page)


def who_writes_paris(page: Page, address: str) -> None:
    """SmolLM2 on the same fact, all its heads and neurons searched for those that write Paris."""
    about_eiffel(page, address)
    page.get_by_role("tab", name="Search", exact=True).click()
    page.get_by_role("button", name="Search", exact=True).click()
    page.get_by_text("30 layers in").wait_for(timeout=PATIENCE)


def choose(page: Page, label: str, option: str) -> None:
    """Choose from a select."""
    page.get_by_role("combobox", name=label).click()
    item = page.get_by_role("menuitem", name=option, exact=True)
    item.click()
    item.wait_for(state="hidden")


def main() -> None:
    """Take them all, or those that are named."""
    takes = {
        take.__name__: take
        for take in (
            *(light, causal_map, graph, lens, contributions, stream, steered, dark, tutorial),
            *(heads, weights, neurons, search),
        )
    }
    named = sys.argv[1:] or list(takes)
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        for name in named:
            with server("builtin" if name in ("dark", "tutorial") else SMOLLM2) as address:
                takes[name](browser.new_page(viewport={"width": 1440, "height": 900}), address)
        browser.close()


if __name__ == "__main__":
    main()
