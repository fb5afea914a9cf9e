"""The token strip in a browser: what the boxes' colours say, and what a click does."""

import time
from itertools import pairwise

import numpy as np
import pytest

from transpector.components import theme
from transpector.components.token_strip import TokenStrip

PIECES = ["<bos>", "·The", "·cat", "·sat", "·on", "·the", "·mat", "⏎", "⇥", "·and", "·slept", "."]

BACKGROUNDS = "tokens => tokens.map((token) => getComputedStyle(token).backgroundColor)"


def patterns(length, seed=0):
    """Random causal attention, uint8 [scope, query, key]."""
    weights = np.tril(np.random.default_rng(seed).random((3, length, length)) ** 4 + 1e-6)
    return np.rint(255 * weights / weights.sum(axis=-1, keepdims=True)).astype(np.uint8)


def strip_of(pieces=PIECES, seed=0, **params):
    length = len(pieces)
    return TokenStrip(
        pieces=pieces, ids=list(range(100, 100 + length)), patterns=patterns(length, seed).tobytes(), **params
    )


def colours(values, dark=False):
    """What a browser says of the backgrounds: a zero is left to the page."""
    scale = theme.sequential(dark)
    return ["rgba(0, 0, 0, 0)" if value == 0 else "rgb({}, {}, {})".format(*scale[value]) for value in values]


def until(page, condition, patience=5):
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, "it never came"
        page.wait_for_timeout(10)


@pytest.fixture
def open_strip(page, serve):
    """Serve a strip; gives it once it is drawn."""

    def opened(strip):
        page.goto(serve(strip))
        return await_drawn(page.locator(".strip"))

    return opened


def drawn(strip):
    return int(strip.get_attribute("data-drawn"))


def await_drawn(strip, after=0):
    strip.wait_for()
    handle = strip.element_handle()
    strip.page.wait_for_function("([e, n]) => Number(e.dataset.drawn) > n", arg=[handle, after])
    return strip


def hover(strip, position):
    before = drawn(strip)
    strip.locator(".token").nth(position).hover()
    await_drawn(strip, before)


def backgrounds(strip):
    return strip.locator(".token").evaluate_all(BACKGROUNDS)


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("scope", ["head", "layer", "all"])
def test_the_token_under_the_pointer_shows_what_it_attends_to(open_strip, scope, dark):
    strip = open_strip(strip_of(scope=scope, dark=dark))
    assert backgrounds(strip) == colours([0] * len(PIECES))
    hover(strip, 9)
    row = patterns(len(PIECES))[["head", "layer", "all"].index(scope), 9]
    assert row[:10].any()
    assert backgrounds(strip) == colours(row, dark)


@pytest.mark.browser
def test_attended_by_colours_the_tokens_that_look_back(page, open_strip):
    component = strip_of()
    strip = open_strip(component)
    page.get_by_role("radio", name="attended by").click()
    hover(strip, 2)
    assert backgrounds(strip) == colours(patterns(len(PIECES))[0, :, 2])
    until(page, lambda: component.direction == "to")


@pytest.mark.browser
def test_the_scope_is_chosen_in_the_strip_and_known_in_python(page, open_strip):
    component = strip_of(position=6, head="L5H1")
    strip = open_strip(component)
    assert page.get_by_role("radio", name="L5H1").get_attribute("aria-checked") == "true"
    before = drawn(strip)
    page.get_by_role("radio", name="mean of layer").click()
    await_drawn(strip, before)
    assert backgrounds(strip) == colours(patterns(len(PIECES))[1, 6])
    until(page, lambda: component.scope == "layer")
    before = drawn(strip)
    page.keyboard.press("ArrowRight")
    await_drawn(strip, before)
    assert backgrounds(strip) == colours(patterns(len(PIECES))[2, 6])
    until(page, lambda: component.scope == "all")


def told(values, **more):
    values = np.asarray(values, np.float32)
    plain = {"top": float(np.abs(values[1:]).max()), "beyond": "", "signed": False, "unit": "", "says": ""}
    return {"values": values.tobytes(), "name": "L5N311", "hint": "why", "unable": "", **plain, **more}


ACTS = [-400.0, -2.5, 0.0, 1.25, 0.6, -0.01, 0.0, 2.0, 0.1, -1.3, 0.0, 2.4999]


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True])
def test_a_number_of_each_token_colours_it_about_zero_or_from_zero(page, open_strip, dark):
    of_neuron = told(ACTS, signed=True, says="activation of L5N311", beyond="first token −400")
    of_metric = told(np.abs(ACTS), unit="nats", says="gradient", name="saliency")
    numbers = {"activation": of_neuron, "saliency": of_metric}
    component = strip_of(scope="activation", numbers=numbers, dark=dark, position=3)
    strip = open_strip(component)
    share = np.clip(np.array(ACTS) / 2.5, -1, 1)
    at = 128 + np.floor(127 * share + 0.5).astype(int)
    scale = theme.diverging(dark)
    wanted = ["rgba(0, 0, 0, 0)" if i == 128 else "rgb({}, {}, {})".format(*scale[i]) for i in at]
    assert backgrounds(strip) == wanted
    key = page.locator(".controls .key:visible")
    assert key.locator("span").all_text_contents() == ["−2.50", "+2.50 · first token −400"]
    assert page.get_by_role("radiogroup", name="Direction").is_hidden()
    hover(strip, 0)
    lines = page.locator(".label div").all_text_contents()
    assert lines[1:] == ["−400", "activation of L5N311"]
    hover(strip, 3)
    assert page.locator(".label div").all_text_contents()[1] == "+1.25"
    before = drawn(strip)
    page.get_by_role("radio", name="saliency").click()
    await_drawn(strip, before)
    until(page, lambda: component.scope == "saliency")
    assert backgrounds(strip) == colours(np.floor(255 * np.abs(share) + 0.5).astype(int), dark)
    assert key.locator("span").all_text_contents() == ["0", "2.50 nats"]


@pytest.mark.browser
def test_numbers_that_are_missing_or_of_another_text_colour_nothing_and_say_why(page, open_strip):
    component = strip_of(scope="activation", numbers={"activation": told(ACTS)})
    strip = open_strip(component)
    assert set(backgrounds(strip)) != {"rgba(0, 0, 0, 0)"}
    for numbers in (
        told(ACTS[:5]),
        told(ACTS) | {"values": b"", "unable": "None is selected."},
        told(0 * np.array(ACTS)),
    ):
        before = drawn(strip)
        component.numbers = {"activation": numbers}
        await_drawn(strip, before)
        assert set(backgrounds(strip)) == {"rgba(0, 0, 0, 0)"}
        says = page.locator(".controls .key:visible").text_content()
        button = page.get_by_role("radio", name="L5N311")
        assert button.is_disabled() == bool(numbers["unable"])
        assert button.get_attribute("title") == (numbers["unable"] or "why")
        assert says.endswith(numbers["unable"] or ("measuring…" if numbers["top"] else "0 at every token"))


@pytest.mark.browser
def test_a_click_holds_a_token_and_a_second_click_lets_it_go(page, open_strip):
    component = strip_of()
    strip = open_strip(component)
    strip.locator(".token").nth(4).click()
    until(page, lambda: component.position == 4)
    page.mouse.move(1400, 880)
    page.wait_for_function("e => e.matches('.held')", arg=strip.locator(".token").nth(4).element_handle())
    assert backgrounds(strip) == colours(patterns(len(PIECES))[0, 4])
    strip.locator(".token").nth(4).click()
    until(page, lambda: component.position is None)


@pytest.mark.browser
def test_the_arrow_keys_move_the_position_and_escape_clears_it(page, open_strip):
    component = strip_of()
    strip = open_strip(component)
    strip.focus()
    last = len(PIECES) - 1
    steps = [("ArrowRight", 0), ("ArrowRight", 1), ("ArrowLeft", 0), ("ArrowLeft", 0), ("End", last)]
    steps += [("ArrowRight", last), ("Home", 0), ("Escape", None), ("ArrowLeft", last)]
    for key, position in steps:
        page.keyboard.press(key)
        until(page, lambda position=position: component.position == position)
    assert strip.get_attribute("aria-activedescendant") == f"token-{last}"


@pytest.mark.browser
def test_a_position_from_python_colours_the_strip(open_strip):
    component = strip_of()
    strip = open_strip(component)
    before = drawn(strip)
    component.position = 7
    await_drawn(strip, before)
    assert backgrounds(strip) == colours(patterns(len(PIECES))[0, 7])


@pytest.mark.browser
def test_a_new_text_replaces_the_tokens(open_strip):
    component = strip_of(position=11)
    strip = open_strip(component)
    before = drawn(strip)
    component.param.update(pieces=["a", "b"], ids=[1, 2], patterns=patterns(2, seed=5).tobytes(), position=1)
    await_drawn(strip, before)
    assert strip.locator(".token").all_text_contents() == ["a", "b"]
    assert backgrounds(strip) == colours(patterns(2, seed=5)[0, 1])


@pytest.mark.browser
def test_patterns_of_another_text_colour_nothing(open_strip):
    component = strip_of(position=5)
    strip = open_strip(component)
    before = drawn(strip)
    component.patterns = patterns(5).tobytes()
    await_drawn(strip, before)
    assert backgrounds(strip) == colours([0] * len(PIECES))


@pytest.mark.browser
def test_the_label_tells_position_id_piece_and_the_strongest(page, open_strip):
    strip = open_strip(strip_of())
    hover(strip, 6)
    row = patterns(len(PIECES))[0, 6].astype(int)
    strongest = [i for i in np.argsort(-row, kind="stable")[:5] if row[i] > 1]
    label = page.locator(".label")
    assert label.locator("div").first.text_content() == "position 6 · id 106 · ·mat"
    rows = label.locator(".row").all_text_contents()
    assert rows == [f"{row[i] / 255:.2f}{PIECES[i]}@{i}" for i in strongest]
    page.mouse.move(1400, 880)
    page.wait_for_function("e => !e.matches(':popover-open')", arg=label.element_handle())


@pytest.mark.browser
def test_hovering_sends_nothing(page, open_strip):
    frames = []
    page.on("websocket", lambda websocket: websocket.on("framesent", frames.append))
    strip = open_strip(strip_of())
    page.wait_for_function("() => Bokeh.documents[0].is_idle")
    frames.clear()
    for position in (3, 5, 8):
        hover(strip, position)
    assert frames == []


@pytest.mark.browser
def test_pieces_are_text_and_never_markup(page, open_strip):
    wicked = "<img src=x onerror=\"document.title='owned'\">"
    script = "</span><script>document.title='owned'</script>"
    strip = open_strip(strip_of(["<i>a</i>", wicked, script, "⏎" + wicked, "<i>b</i>"]))
    assert strip.locator(".token").nth(1).text_content() == wicked
    hover(strip, 4)
    hover(strip, 1)
    assert page.locator(".label .row").count() > 1  # the strongest, among them the first
    assert page.locator(".root img, .root script, .root i").count() == 0
    assert page.title() != "owned"


@pytest.mark.browser
def test_other_scripts_keep_the_order_and_the_lines(open_strip):
    pieces = ["·one", "·שלום", "مرحبا", "\u202e", "·עולם", "👩‍👩‍👧", "Z̷̢̛a̸l̵g̴o̷", "·日本", "·end"]
    strip = open_strip(strip_of(pieces))
    boxes = strip.locator(".token").evaluate_all(
        """tokens => tokens.map((token) => {
          const {left, right, top, height} = token.getBoundingClientRect()
          return [left, right, top, height]
        })"""
    )
    assert all(after[0] >= before[1] for before, after in pairwise(boxes))
    assert {box[3] for box in boxes} == {24}
    assert len({box[2] for box in boxes}) == 1


@pytest.mark.browser
def test_a_line_ends_after_a_line_end(open_strip):
    strip = open_strip(strip_of())
    tops = strip.locator(".token").evaluate_all("tokens => tokens.map((t) => t.getBoundingClientRect().top)")
    assert len(set(tops[:8])) == 1
    assert tops[8] > tops[7]


@pytest.mark.browser
def test_a_long_text_scrolls_within_six_lines_and_one_long_token_is_cut(page, open_strip):
    strip = open_strip(strip_of(["-" * 500, *PIECES * 40]))
    assert strip.bounding_box()["height"] <= 6 * 28 + 8
    assert strip.evaluate("e => e.scrollHeight > e.clientHeight")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
