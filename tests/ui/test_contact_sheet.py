"""The contact sheet: what is computed for it, and what a browser shows of it, pixel by pixel."""

import base64
import time

import numpy as np
import pytest

from transpector.components import theme
from transpector.components.contact_sheet import ContactSheet
from transpector.components.parts.effect_figure import palette

# How many pixels, at the centres of positions, differ from the scale as this looks it up.
COUNT_WRONG = """(canvas, {pixels, scale, shape: [layers, heads, side]}) => {
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0))
  const values = bytes(pixels), rgb = bytes(scale)
  const {cell, cells, width, height} = JSON.parse(canvas.dataset.geometry)
  const seen = canvas.getContext("2d").getImageData(0, 0, width, height).data
  let wrong = 0, k = 0
  for (let l = 0; l < layers; l++) for (let h = 0; h < heads; h++)
    for (let row = 0; row < side; row++) for (let col = 0; col < side; col++) {
      const x = cells[l][h][0] + Math.floor((col + 0.5) * cell / side)
      const y = cells[l][h][1] + Math.floor((row + 0.5) * cell / side)
      const at = 4 * (y * width + x), value = values[k++]
      if ([0, 1, 2].some((c) => seen[at + c] !== rgb[3 * value + c]) || seen[at + 3] !== 255) wrong++
    }
  return wrong
}"""
PIXEL = """(canvas, [x, y]) =>
  Array.from(canvas.getContext("2d").getImageData(Math.round(x), Math.round(y), 1, 1).data.slice(0, 3))"""


def causal(layers, heads, length, seed=0):
    """Random causal attention patterns, float32 [layer, head, query, key]."""
    weights = np.random.default_rng(seed).random((layers, heads, length, length), dtype=np.float32) ** 6
    weights = np.tril(weights) + 1e-6 * np.eye(length, dtype=np.float32)
    return weights / weights.sum(axis=-1, keepdims=True)


def thumbnails(patterns, side=64):
    """Bytes [layer, head, row, col], each the maximum over a square of positions, and the side of that square."""
    length = patterns.shape[-1]
    pooled = -(-length // side)
    largest = np.maximum.reduceat(patterns, range(0, length, pooled), axis=-1)
    largest = np.maximum.reduceat(largest, range(0, length, pooled), axis=-2)
    return np.rint(255 * np.clip(largest, 0, 1)).astype(np.uint8), pooled


def maxima(patterns):
    """Each head's maximum past the first query."""
    return patterns[:, :, 1:].max(axis=(2, 3)).astype(np.float32)


def shown(patterns, **params):
    pixels, pooled = thumbnails(patterns)
    tops = maxima(patterns)
    return dict(
        thumbnails=pixels.tobytes(), maxima=tops.tobytes(), shape=pixels.shape[:3], pooled=pooled, **params
    )


def sheet_of(patterns, **params):
    return ContactSheet(**shown(patterns, **params))


@pytest.fixture
def open_sheet(page, serve):
    """Serve a sheet; gives its canvas once it is drawn."""

    def opened(sheet):
        page.goto(serve(sheet))
        canvas = page.locator("canvas.picture")
        await_drawn(canvas)
        page.wait_for_function("() => Bokeh.documents[0].is_idle")
        return canvas

    return opened


def drawn(canvas):
    return int(canvas.get_attribute("data-drawn"))


def await_drawn(canvas, after=0):
    canvas.wait_for()
    handle = canvas.element_handle()
    canvas.page.wait_for_function("([e, n]) => Number(e.dataset.drawn) > n", arg=[handle, after])


def geometry(canvas):
    return canvas.evaluate("e => JSON.parse(e.dataset.geometry)")


def inside(canvas, layer, head, row, col, side):
    """The place of a thumbnail's pixel, px from the canvas's corner."""
    shape = geometry(canvas)
    x, y = shape["cells"][layer][head]
    return {
        "x": (x + (col + 0.5) * shape["cell"] / side) / shape["dpr"],
        "y": (y + (row + 0.5) * shape["cell"] / side) / shape["dpr"],
    }


def until(page, condition, patience=5):
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, "it never came"
        page.wait_for_timeout(10)


def count_wrong(canvas, pixels, dark=False):
    return canvas.evaluate(
        COUNT_WRONG,
        {
            "pixels": base64.b64encode(pixels.tobytes()).decode(),
            "scale": base64.b64encode(theme.sequential(dark).tobytes()).decode(),
            "shape": pixels.shape[:3],
        },
    )


def rgb(colour):
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


class Traffic:
    """The websocket frames a page sends and receives, from when `clear` was last called."""

    def __init__(self, page):
        self.clear()
        page.on("websocket", self._listen)

    def clear(self):
        self.sent, self.received = [], []

    def _listen(self, websocket):
        websocket.on("framesent", lambda frame: self.sent.append(frame))
        websocket.on("framereceived", lambda frame: self.received.append(frame))

    @property
    def size(self):
        return sum(map(len, self.sent + self.received))

    @property
    def patches(self):
        return sum('"PATCH-DOC"' in frame for frame in self.received if isinstance(frame, str))


# -- the scales --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dark", [False, True])
def test_the_scales_start_from_the_paper(dark):
    paper = theme.ground(dark).paper
    assert theme.palette("sequential", dark)[0] == paper
    assert theme.palette("diverging", dark)[128] == paper
    weights = np.array([0.2126, 0.7152, 0.0722])
    luminance = theme.sequential(dark) @ weights
    assert (np.diff(luminance) * (1 if dark else -1) >= 0).all()
    lower, upper = theme.diverging(dark)[:129] @ weights, theme.diverging(dark)[128:] @ weights
    assert (np.diff(lower) * (-1 if dark else 1) >= 0).all()
    assert (np.diff(upper) * (1 if dark else -1) >= 0).all()


# -- what is shown -----------------------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True])
def test_every_position_has_the_colour_of_its_probability(open_sheet, dark):
    patterns = causal(4, 8, 40)
    canvas = open_sheet(sheet_of(patterns, dark=dark))
    pixels, _ = thumbnails(patterns)
    assert geometry(canvas)["cell"] == 120
    assert count_wrong(canvas, pixels, dark) == 0
    assert count_wrong(canvas, pixels.swapaxes(2, 3), dark) > 10_000  # rows are queries, not keys


@pytest.mark.browser
def test_a_shrunk_thumbnail_keeps_its_brightest_position(open_sheet):
    patterns = np.zeros((30, 9, 64, 64), np.float32)
    places = np.random.default_rng(0).integers(0, 64, (30, 9, 2))
    for layer, head in np.ndindex(30, 9):
        patterns[layer, head, *places[layer, head]] = 1
    canvas = open_sheet(sheet_of(patterns))
    assert geometry(canvas)["cell"] < 64
    found = canvas.evaluate(
        """(canvas, [r, g, b]) => {
          const {cell, cells} = JSON.parse(canvas.dataset.geometry)
          const context = canvas.getContext("2d")
          return cells.map((row) => row.map(([x, y]) => {
            const seen = context.getImageData(x, y, cell, cell).data
            let count = 0
            for (let i = 0; i < seen.length; i += 4) {
              count += seen[i] === r && seen[i + 1] === g && seen[i + 2] === b
            }
            return count
          }))
        }""",
        rgb(theme.palette("sequential")[255]),
    )
    assert found == [[1] * 9] * 30


@pytest.mark.browser
def test_an_update_comes_in_one_message_and_is_drawn_once(page, open_sheet):
    traffic = Traffic(page)
    sheet = sheet_of(causal(4, 8, 40))
    canvas = open_sheet(sheet)
    before = drawn(canvas)
    traffic.clear()
    longer = causal(6, 4, 50, seed=1)
    sheet.param.update(**shown(longer, selected=(5, 3)))
    await_drawn(canvas, before)
    assert traffic.patches == 1
    assert drawn(canvas) == before + 1
    pixels, _ = thumbnails(longer)
    assert count_wrong(canvas, pixels) == 0


@pytest.mark.browser
def test_arrays_that_do_not_belong_together_leave_the_last_picture(page, open_sheet):
    patterns = causal(2, 3, 30)
    sheet = sheet_of(patterns)
    canvas = open_sheet(sheet)
    before = drawn(canvas)
    sheet.shape = (5, 5, 30)
    await_drawn(canvas, before)
    assert count_wrong(canvas, thumbnails(patterns)[0]) == 0


@pytest.mark.browser
def test_a_click_selects_the_head(page, open_sheet):
    sheet = sheet_of(causal(4, 8, 40))
    canvas = open_sheet(sheet)
    canvas.click(position=inside(canvas, 2, 6, 20, 3, 40))
    until(page, lambda: sheet.selected == (2, 6))
    assert isinstance(sheet.selected, tuple)
    shape = geometry(canvas)
    x, y = shape["cells"][2][6]
    page.wait_for_function(
        f"([e, [x, y], rgb]) => String(({PIXEL})(e, [x, y])) === String(rgb)",
        arg=[canvas.element_handle(), [x - 1, y + shape["cell"] / 2], rgb(theme.LIGHT.accent)],
    )


@pytest.mark.browser
def test_the_arrow_keys_move_the_selection_and_stop_at_the_edges(page, open_sheet):
    sheet = sheet_of(causal(30, 9, 20))
    canvas = open_sheet(sheet)
    page.keyboard.press("Tab")
    assert canvas.evaluate("e => e.getRootNode().activeElement === e")
    steps = [("ArrowDown", (0, 0)), ("ArrowDown", (1, 0)), ("ArrowRight", (1, 1)), ("ArrowLeft", (1, 0))]
    steps += [("ArrowLeft", (1, 0)), ("End", (1, 8)), ("PageDown", (29, 8)), ("ArrowDown", (29, 8))]
    steps += [("ArrowUp", (28, 8))]
    for key, selected in steps:
        page.keyboard.press(key)
        until(page, lambda selected=selected: sheet.selected == selected)
    assert page.locator(".spoken").text_content().startswith("Layer 28, head 8, maximum")


@pytest.mark.browser
def test_a_selection_from_python_is_framed(page, open_sheet):
    sheet = sheet_of(causal(4, 8, 40))
    canvas = open_sheet(sheet)
    before = drawn(canvas)
    sheet.selected = (3, 1)
    await_drawn(canvas, before)
    shape = geometry(canvas)
    x, y = shape["cells"][3][1]
    for edge in ([x - 1, y + 9], [x + shape["cell"], y + 9], [x + 9, y - 2], [x + 9, y + shape["cell"] + 1]):
        assert canvas.evaluate(PIXEL, edge) == rgb(theme.LIGHT.accent)


@pytest.mark.browser
def test_a_scale_of_its_own_colours_each_head_anew_without_traffic(page, open_sheet):
    traffic = Traffic(page)
    patterns = causal(4, 8, 40)
    patterns[:, 0] *= 0.5
    sheet = sheet_of(patterns)
    canvas = open_sheet(sheet)
    before = drawn(canvas)
    traffic.clear()
    page.get_by_role("button", name="scale each head").click()
    await_drawn(canvas, before)
    pixels, _ = thumbnails(patterns)
    stretched = np.clip(np.rint(pixels / maxima(patterns)[..., None, None]), 0, 255).astype(np.uint8)
    wrong = count_wrong(canvas, stretched)
    assert wrong <= 0.001 * pixels.size  # halves may round either way
    until(page, lambda: sheet.scale == "head")
    assert len(sheet.thumbnails) == 4 * 8 * 40 * 40
    assert traffic.size < 2_000


@pytest.mark.browser
def test_the_dark_page_is_drawn_without_traffic(page, open_sheet):
    traffic = Traffic(page)
    patterns = causal(4, 8, 40)
    sheet = sheet_of(patterns)
    canvas = open_sheet(sheet)
    before = drawn(canvas)
    traffic.clear()
    sheet.dark = True
    await_drawn(canvas, before)
    assert count_wrong(canvas, thumbnails(patterns)[0], dark=True) == 0
    assert traffic.size < 2_000


@pytest.mark.browser
def test_hovering_tells_head_positions_and_probability_and_sends_nothing(page, open_sheet):
    traffic = Traffic(page)
    patterns = causal(4, 8, 40)
    sheet = sheet_of(patterns, marks=[{"layer": 3, "head": 5, "state": "frozen"}])
    canvas = open_sheet(sheet)
    traffic.clear()
    label = page.locator(".label")
    assert not label.is_visible()
    tops = maxima(patterns)
    for layer, head, query, key, state in ((1, 2, 12, 7, ""), (3, 5, 39, 0, "frozen · ")):
        canvas.hover(position=inside(canvas, layer, head, query, key, 40))
        value = np.rint(255 * patterns[layer, head, query, key]) / 255
        assert label.text_content() == (
            f"L{layer}H{head} · {state}max {tops[layer, head]:.2f} · query {query} → key {key}: {value:.2f}"
        )
        assert label.is_visible()
    page.mouse.move(1400, 880)
    assert not label.is_visible()
    assert traffic.size == 0


@pytest.mark.browser
def test_hovering_shows_tokens_as_text_and_never_as_markup(page, open_sheet):
    pieces = ["<img src=x onerror=\"document.title='owned'\">"] * 10
    canvas = open_sheet(sheet_of(causal(1, 2, 10), pieces=pieces))
    canvas.hover(position=inside(canvas, 0, 1, 5, 2, 10))
    assert "<img src=x oner…" in page.locator(".label").text_content()
    assert page.locator(".sheet img").count() == 0
    assert page.title() != "owned"


@pytest.mark.browser
def test_a_pooled_thumbnail_says_so(page, open_sheet):
    patterns = causal(2, 4, 130)
    canvas = open_sheet(sheet_of(patterns, pieces=["x"] * 130))
    assert "each pixel: maximum over 3 × 3 positions" in page.locator(".legend").text_content()
    canvas.hover(position=inside(canvas, 1, 3, 43, 10, 44))
    value = thumbnails(patterns)[0][1, 3, 43, 10] / 255
    assert (
        page.locator(".label")
        .text_content()
        .endswith(
            f"query 129 x → keys 30–32: max in cell {value:.2f}"  # the last square holds one query, not three
        )
    )


@pytest.mark.browser
def test_marks_are_drawn_and_explained(page, open_sheet):
    sheet = sheet_of(np.zeros((2, 4, 40, 40), np.float32))
    canvas = open_sheet(sheet)
    before = drawn(canvas)
    sheet.marks = [
        {"layer": 0, "head": 0, "state": "ablated"},
        {"layer": 0, "head": 1, "state": "frozen"},
        {"layer": 1, "head": 2, "state": "patched"},
        {"layer": 1, "head": 3, "state": "steered"},
        {"layer": 7, "head": 9, "state": "frozen"},  # of a larger model: nothing to mark
    ]
    await_drawn(canvas, before)
    shape = geometry(canvas)
    cell = shape["cell"]

    def seen(layer, head, across, down):
        x, y = shape["cells"][layer][head]
        return canvas.evaluate(PIXEL, [x + across, y + down])

    struck = seen(0, 0, cell / 2 - 0.5, cell / 2 - 0.5)
    assert np.abs(np.subtract(struck, rgb(theme.LIGHT.ablated))).max() < 8  # a slanted line is smoothed
    assert seen(0, 1, 0, cell / 2) == rgb(theme.LIGHT.frozen)
    assert seen(1, 2, cell - 2, 1) == rgb(theme.LIGHT.patched)
    assert seen(1, 3, cell - 2, 1) == rgb(theme.LIGHT.steered)
    assert seen(1, 0, cell / 2, cell / 2) == rgb(theme.LIGHT.paper)
    legend = page.locator(".legend").text_content()
    assert all(state in legend for state in ("ablated", "frozen", "patched", "steered"))


STRIPS = """canvas => {
  const {cell, strip, cells} = JSON.parse(canvas.dataset.geometry)
  const context = canvas.getContext("2d")
  return cells.map((row) => row.map(([x, y]) =>
    Array.from(context.getImageData(x + Math.floor(cell / 2), y + cell + Math.floor(strip / 2), 1, 1).data.slice(0, 3))))
}"""


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("layers", "heads"), [(4, 8), (30, 9)])
def test_scores_colour_strips_below_the_thumbnails_and_hide_nothing_of_them(
    page, open_sheet, dark, layers, heads
):
    patterns = causal(layers, heads, 12)
    sheet = sheet_of(patterns, dark=dark, max_height=480)
    canvas = open_sheet(sheet)
    plain = geometry(canvas)
    assert plain["strip"] == 0 and "how strong" not in page.locator(".legend").text_content()
    scores = np.random.default_rng(1).normal(size=(layers, heads)).astype(np.float32)
    scores[0, 0], scores[1, 2], scores[1, 3] = 0, 9, np.nan
    before = drawn(canvas)
    sheet.param.update(scores=scores.tobytes(), scores_top=3.0, scores_label="how strong")
    await_drawn(canvas, before)
    page.wait_for_function("() => Bokeh.documents[0].is_idle")
    assert count_wrong(canvas, thumbnails(patterns)[0], dark) == 0
    assert page.locator(".sheet").bounding_box()["height"] <= 480
    scale = [rgb(colour) for colour in palette(dark)]
    assert scale[127] == rgb(theme.ground(dark).paper)
    at = np.floor(255 * (1 + np.nan_to_num(scores) / 3) / 2).astype(int).clip(0, 254)
    wanted = [[scale[i] for i in row] for row in at]
    seen = canvas.evaluate(STRIPS)
    wanted[1][3] = seen[1][3]  # unknown: nothing is drawn, and what lies below is clear
    assert seen == wanted
    assert "−3+3how strong" in page.locator(".legend").text_content()
    canvas.hover(position=inside(canvas, 1, 1, 5, 2, 12))
    number = f"{scores[1, 1]:+.4g}".replace("-", "−")
    assert page.locator(".label").text_content().endswith(f"how strong: {number}")
    # Those of another model are left out, and without any it is as it was.
    before = drawn(canvas)
    sheet.scores = scores[:2].tobytes()
    await_drawn(canvas, before)
    assert geometry(canvas) == plain
    assert count_wrong(canvas, thumbnails(patterns)[0], dark) == 0


@pytest.mark.browser
def test_many_layers_stand_side_by_side_within_the_height(page, open_sheet):
    canvas = open_sheet(sheet_of(causal(30, 9, 64), max_height=480))
    shape = geometry(canvas)
    assert shape["blocks"] > 1
    assert page.locator(".sheet").bounding_box()["height"] <= 480
    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.browser
def test_a_narrower_window_makes_smaller_cells(page, open_sheet):
    patterns = causal(4, 8, 20)
    canvas = open_sheet(sheet_of(patterns))
    before = drawn(canvas)
    assert geometry(canvas)["cell"] == 120
    page.set_viewport_size({"width": 700, "height": 900})
    await_drawn(canvas, before)
    assert geometry(canvas)["cell"] < 90
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert count_wrong(canvas, thumbnails(patterns)[0]) == 0


@pytest.mark.browser
def test_a_busy_sheet_dims_and_keeps_its_picture(page, open_sheet):
    patterns = causal(4, 8, 40)
    sheet = sheet_of(patterns)
    canvas = open_sheet(sheet)
    sheet.busy = True
    page.wait_for_function(
        "e => getComputedStyle(e.parentElement).opacity < 0.9", arg=canvas.element_handle()
    )
    assert canvas.get_attribute("aria-busy") == "true"
    assert count_wrong(canvas, thumbnails(patterns)[0]) == 0


@pytest.mark.browser
def test_a_sheet_that_changed_out_of_sight_is_right_when_it_shows_again(page, open_sheet):
    sheet = sheet_of(causal(4, 8, 40))
    canvas = open_sheet(sheet)
    sheet.visible = False
    canvas.wait_for(state="hidden")
    other = causal(4, 8, 40, seed=1)
    sheet.param.update(**shown(other))
    page.wait_for_timeout(100)
    before = drawn(canvas)
    sheet.visible = True
    await_drawn(canvas, before)
    assert count_wrong(canvas, thumbnails(other)[0]) == 0
