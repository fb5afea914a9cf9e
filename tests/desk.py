"""Desk: a page as `transpector` serves it, open in a browser, and the session behind it."""

import base64
import threading
import time
from typing import Any

import numpy as np
from playwright.sync_api import Locator, Page, TimeoutError, expect

from transpector.components import theme
from transpector.components.base import visible
from transpector.dashboard import Dashboard
from transpector.state.run import Run

PATIENCE = 60  # s for what a loaded machine may take; what goes well is seen at once
expect.set_options(timeout=1000 * PATIENCE)

# The one source of the page's figures that has a column, as lists; an image row by row.
FIGURE_DATA = """column => {
  const sources = [...Bokeh.documents[0]._all_models.values()].filter((model) => model.type === "ColumnDataSource")
  const source = sources.find((source) => column in source.data)
  return Object.fromEntries(Object.entries(source.data).map(([name, values]) =>
    [name, Array.from(values, (value) => ArrayBuffer.isView(value) ? Array.from(value) : value)]))
}"""

# How many pixels of the contact sheet, at the centres of positions, differ from the scale as this looks it up; heads
# that are selected or marked have a line drawn on them and are left out.
COUNT_WRONG = """(canvas, {pixels, scale, shape: [layers, heads, side], besides}) => {
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0))
  const values = bytes(pixels), rgb = bytes(scale)
  const {cell, cells, width, height} = JSON.parse(canvas.dataset.geometry)
  if (cells.length !== layers || cells[0].length !== heads) return Infinity
  const seen = canvas.getContext("2d").getImageData(0, 0, width, height).data
  let wrong = 0, k = 0
  for (let l = 0; l < layers; l++) for (let h = 0; h < heads; h++)
    for (let row = 0; row < side; row++) for (let col = 0; col < side; col++) {
      const x = cells[l][h][0] + Math.floor((col + 0.5) * cell / side)
      const y = cells[l][h][1] + Math.floor((row + 0.5) * cell / side)
      const at = 4 * (y * width + x), value = values[k++]
      if (besides.some(([layer, head]) => layer === l && head === h)) continue
      if ([0, 1, 2].some((c) => seen[at + c] !== rgb[3 * value + c]) || seen[at + 3] !== 255) wrong++
    }
  return wrong
}"""

# How many pixels of one head's thumbnail have a colour.
COUNT_COLOUR = """(canvas, {layer, head, colour: [r, g, b]}) => {
  const {cell, cells} = JSON.parse(canvas.dataset.geometry)
  const seen = canvas.getContext("2d").getImageData(...cells[layer][head], cell, cell).data
  let count = 0
  for (let at = 0; at < seen.length; at += 4) count += seen[at] === r && seen[at + 1] === g && seen[at + 2] === b
  return count
}"""


class Desk:
    """An open page, and what a test asks of it; ``boards`` are the dashboards of its server, the newest last."""

    def __init__(self, page: Page, address: str, boards: list[Dashboard]):
        page.set_default_timeout(1000 * PATIENCE)
        self.page, self.address, self.boards = page, address, boards
        self.board: Dashboard | None = None

    def open(self) -> "Desk":
        """Load the page and wait for the first picture."""
        n_before = len(self.boards)
        self.page.goto(self.address)
        self.until(lambda: len(self.boards) > n_before)
        self.board = self.boards[-1]
        self.await_sheet()
        self.settle()
        return self

    @property
    def session(self) -> Any:
        return self.board.session

    def until(self, condition) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, "it never came"
            self.page.wait_for_timeout(20)

    def await_sheet(self) -> None:
        self.sheet.wait_for()
        self.page.wait_for_function("e => Number(e.dataset.drawn) > 0", arg=self.sheet.element_handle())

    def await_answer(self) -> None:
        """Until nothing is under way: the newest question has been answered, well or not."""
        session = self.session
        self.until_heard()
        self.until(lambda: session.state in ("idle", "empty") and not session.loading[0])

    def until_heard(self) -> None:
        """Until the page's own thread is done with what it does now: a parameter is seen here before its watchers."""
        heard = threading.Event()
        self.session.inbox.post(heard.set)
        self.until(heard.is_set)

    def settle(self) -> None:
        """Until every view that the newest run called for has been computed and sent."""
        computed = self.session.run.model.worker.submit(lambda: None)
        self.until(computed.done)
        self.until_heard()

    def change(self, **question: Any) -> None:
        """Ask another question as if from the page, on its own thread: figures may only be changed there."""
        done = threading.Event()

        def do() -> None:
            self.session.param.update(**question)
            done.set()

        self.session.inbox.post(do)
        self.until(done.is_set)

    def add(self, *interventions: Any) -> None:
        """Append interventions, as if from the page."""
        self.change(interventions=[*self.session.interventions, *interventions])

    # What is on the page

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    @property
    def sheet(self) -> Locator:
        return self.page.locator("canvas.picture")

    @property
    def text(self) -> Locator:
        return self.page.get_by_placeholder("Type a text: the model reads it as you type.")

    @property
    def text_b(self) -> Locator:
        return self.page.get_by_placeholder("A second text, best of as many tokens.")

    @property
    def tokens(self) -> Locator:
        return self.page.locator(".strip .token")

    @property
    def says(self) -> Locator:
        return self.page.locator(".says")

    @property
    def error(self) -> Locator:
        return self.page.get_by_role("alert").locator("visible=true")

    @property
    def warning(self) -> Locator:
        return self.page.locator(".warning:visible")

    @property
    def rows(self) -> Locator:
        """The lines of the patch table."""
        return self.page.get_by_role("list", name="Interventions").get_by_role("listitem")

    def bars(self, which: str) -> list[tuple[str, str]]:
        """Piece and number of each line of "next", "promotes" or "suppresses"."""
        at = ["next", "promotes", "suppresses"].index(which)
        lines = self.page.locator(".root:has(.row > .track)").nth(at).locator(".row")
        return [tuple(line) for line in lines.evaluate_all(_PIECE_AND_NUMBER)]

    def figure(self, column: str) -> dict[str, list]:
        """The data of the figure that has a column of that name."""
        return self.page.evaluate(FIGURE_DATA, column)

    def choose(self, label: str, option: str) -> None:
        """Choose from a select."""
        item = self.page.get_by_role("menuitem", name=option, exact=True)
        for _ in range(5):  # a page that is busy with an answer may let go of a menu again
            self.select(label).locator("visible=true").click()
            try:
                item.wait_for(timeout=PATIENCE * 1000 / 6)
                break
            except TimeoutError:
                continue
        item.click()
        item.wait_for(state="hidden")  # until the menu has gone, it takes every click on the page

    def fill_number(self, label: str, widget: Any, number: float) -> None:
        """Type a number into a field, and leave it; a field that is being given its ends may forget what is typed."""
        field = self.page.get_by_label(label, exact=True).locator("visible=true")
        end = time.monotonic() + PATIENCE
        while widget.value != number:
            assert time.monotonic() < end, f"{label} is {widget.value}, not {number}"
            field.fill(str(number))
            field.press("Tab")
            self.page.wait_for_timeout(500 if widget.value != number else 0)

    def select(self, label: str) -> Locator:
        return self.page.get_by_role("combobox", name=label)

    def click_head(self, layer: int, head: int) -> None:
        shape = self.sheet.evaluate("e => JSON.parse(e.dataset.geometry)")
        x, y = shape["cells"][layer][head]
        half = shape["cell"] / 2
        self.sheet.click(position={"x": (x + half) / shape["dpr"], "y": (y + half) / shape["dpr"]})
        self.until(lambda: self.session.head == (layer, head))

    def has_colour(self, layer: int, head: int, colour: str) -> bool:
        """Whether a thumbnail has more than a few pixels of a colour."""
        rgb = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        return self.sheet.evaluate(COUNT_COLOUR, {"layer": layer, "head": head, "colour": rgb}) > 10

    # What it should be

    def expect_sheet(self, pixels: np.ndarray, *besides: tuple[int, int], dark: bool = False) -> None:
        """The contact sheet shows these thumbnails, pixel by pixel, but for heads with something drawn on them."""
        told = {
            "pixels": base64.b64encode(pixels.tobytes()).decode(),
            "scale": base64.b64encode(theme.sequential(dark).tobytes()).decode(),
            "shape": pixels.shape[:3],
            "besides": besides,
        }
        self.until(lambda: self.sheet.evaluate(COUNT_WRONG, told) == 0)

    def expect_tokens(self, run: Run) -> None:
        expect(self.tokens).to_have_text(visible(run.tokens), use_inner_text=False)

    def at(self, run: Run) -> int:
        """The position in a run that the views are about."""
        return min(self.session.position, run.n_pos - 1)

    def expect_next(self, run: Run, position: int | None = None) -> None:
        """The list of next tokens begins with the likeliest, at the selected position unless another is given."""
        at = self.at(run) if position is None else position
        wanted = [(visible([piece])[0], f"{probability:.3f}") for piece, probability in run.next_tokens(at)]
        self.until(lambda: self.bars("next")[:4] == wanted[:4])

    def expect_loss(self, run: Run, baseline: Run) -> None:
        """The figure draws these losses."""
        self.until(lambda: np.array_equal(self.figure("loss")["loss"], run.loss))
        np.testing.assert_array_equal(self.figure("loss")["before"], baseline.loss)

    def expect_metric(self, now: float, before: float, unit: str = "nats") -> None:
        """The readout is right to three digits."""
        self.expect_number(self.page.locator(".big", has_text=unit), now, unit)
        self.expect_number(self.page.locator(".quiet:visible", has_text="baseline"), before, "baseline")
        self.expect_number(
            self.page.locator(".quiet:visible", has_text="difference"), now - before, "difference"
        )

    def expect_number(self, locator: Locator, value: float, words: str = "") -> None:
        """A text is this number to three digits, with these words beside it."""

        def is_right() -> bool:
            if locator.count() != 1:
                return False
            text = (
                (locator.text_content() or "").replace(words, "").replace("−", "-").replace(",", "").strip()
            )
            try:
                return abs(float(text) - value) <= max(5.1e-3 * abs(value), 1e-5)
            except ValueError:
                return False

        self.until(is_right)


_PIECE_AND_NUMBER = """lines => lines.map((line) =>
  [line.querySelector(".piece").textContent, line.querySelector(".number").textContent])"""
