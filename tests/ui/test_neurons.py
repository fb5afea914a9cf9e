"""Neurons in a browser: every number is the API's, a click selects and colours the text, what can't be told says why."""

import re
import threading

import numpy as np
import pytest
from playwright.sync_api import expect

import transpector as tp
from transpector import serve as served
from transpector.components import theme
from transpector.components.base import figures, visible
from transpector.components.parts.unit_numbers import ACTIVATION, ADDS, EFFECT, RANKINGS, WRITTEN
from transpector.state.contributions import contributions
from transpector.state.errors import Cancelled
from transpector.state.neurons import dim_tokens, effects, neuron_tokens, neurons

pytestmark = pytest.mark.browser

LISTED = 20
BACKGROUNDS = "tokens => tokens.map((token) => getComputedStyle(token).backgroundColor)"
SECTIONS = """roots => roots.map((root) => [...root.querySelectorAll(".row")].map((row) =>
  [row.querySelector(".piece").textContent, row.querySelector(".number").textContent]))"""


@pytest.fixture
def units(desk):
    """The dashboard with the neurons open."""
    yield opened(desk)
    desk.settle()  # a page that closes while it is written to is an error in the log


def opened(desk):
    desk.page.get_by_role("tab", name="Neurons").click()
    expect(desk.page.get_by_text("Largest activations", exact=True)).to_be_visible()
    return desk


def rows(desk):
    """Each line of the list: what it is of, and its numbers as they are written."""
    lines = desk.page.get_by_role("group", name="Largest units").locator("button.row")
    return lines.evaluate_all(
        """lines => lines.map((line) =>
          [line.querySelector(".site").textContent, ...[...line.querySelectorAll(".number")].map((n) => n.textContent)])"""
    )


def row(desk, name):
    lines = desk.page.get_by_role("group", name="Largest units").locator("button.row")
    return lines.filter(has=desk.page.get_by_text(name, exact=True))


def expect_list(desk, letter, layer, values, before=None, signed=True):
    size = np.abs(values) if before is None else np.maximum(np.abs(values), np.abs(before))
    order = np.argsort(-size, kind="stable")[:LISTED]
    both = [values] if before is None else [values, before]
    wanted = [
        [f"L{layer}{letter}{at}", *(figures(float(each[at]), signed) for each in both)]
        for at in order.tolist()
    ]
    desk.until(lambda: rows(desk) == wanted)
    return order.tolist()


TITLES = {
    "neuron": ["Writes: promotes", "… and suppresses", "Reads: excited by"],
    "gated": [
        "Writes: promotes",
        "… and suppresses",
        "Reads: the gate opens for",
        "… and the value comes from",
    ],
    "dimension": ["Writes: promotes", "… and suppresses", "Most in the embedding of"],
}


def expect_tokens(desk, what, found):
    """The lists of tokens of the unit that is shown in full."""
    lists = [*found.writes, *([*high[:4], *low[1::-1]] for high, low in found.reads.values())]
    wanted = [
        [[visible([piece])[0], figures(number, signed=True)] for piece, number in tokens] for tokens in lists
    ]
    shown = desk.page.locator(".root:has(.row > .piece):visible")
    desk.until(lambda: shown.evaluate_all(SECTIONS)[: len(wanted)] == wanted)
    for title in TITLES["gated"] + TITLES["neuron"] + TITLES["dimension"]:
        expect(desk.page.get_by_text(title, exact=True)).to_be_visible(visible=title in TITLES[what])


def expect_strip(desk, values):
    """The text has the colours of these numbers, about zero, the strongest for the largest beyond the first token."""
    scale, top = theme.diverging(False), np.abs(values[1:]).max() or np.abs(values[0])
    share = np.clip(values / top, -1, 1) if top else 0 * values
    at = 128 + np.floor(127 * share + 0.5).astype(int)
    wanted = ["rgba(0, 0, 0, 0)" if i == 128 else "rgb({}, {}, {})".format(*scale[i]) for i in at]
    desk.until(lambda: desk.tokens.evaluate_all(BACKGROUNDS) == wanted)


def test_every_ranking_and_every_token_is_the_api_s(units, builtin):
    session, run = units.session, units.session.run
    layer, at = session.head[0], session.position % run.n_pos
    found = neurons(run, layer, at)
    first, *_ = order = expect_list(units, "N", layer, found.post)
    # Not selected yet, it is shown in full: as a gate and a value, and by its weights.
    expect(units.page.locator(".big:visible", has_text=f"L{layer}N{first}")).to_be_visible()
    numbers = [figures(float(each[first]), True) for each in (found.post, found.pre, found.value)]
    expect(
        units.page.get_by_text("activation {} = curve(gate {}) × value {}".format(*numbers), exact=True)
    ).to_be_visible()
    expect(
        units.page.get_by_text(f"vector of norm {figures(float(found.written[first]))} to the stream")
    ).to_be_visible()
    hint = row(units, f"L{layer}N{order[3]}").get_attribute("title")
    for name, values in (("gate", found.pre), ("value", found.value), ("activation", found.post)):
        assert f"{name} {figures(float(values[order[3]]), True)}" in hint
    of = neuron_tokens(builtin, layer, first, k=6)
    expect_tokens(units, "gated", of)
    units.choose("Rank by", WRITTEN)
    expect_list(units, "N", layer, found.written, signed=False)
    units.choose("Rank by", ADDS)
    added = contributions(run, session.metric, position=session.position, layer=layer)
    expect_list(units, "N", layer, added.neurons)
    expect(units.page.get_by_text(added.target)).to_be_visible()
    units.choose("Rank by", EFFECT)
    expect_list(units, "N", layer, effects(run, session.metric, "mlp_post", layer))
    # Another layer and another position
    units.fill_number("Layer", units.board.late["Neurons"].layer, 0)
    expect_list(units, "N", 0, effects(run, session.metric, "mlp_post", 0))
    units.choose("Rank by", ACTIVATION)
    units.tokens.nth(5).click()
    expect_list(units, "N", 0, neurons(run, 0, 5).post)


def test_a_click_selects_everywhere_and_the_text_takes_the_colours_of_what_is_selected(units, builtin):
    session, run = units.session, units.session.run
    layer = session.head[0]
    strip = units.page.get_by_role("radiogroup", name="Colour")
    expect(strip.get_by_role("radio", name="neuron")).to_be_disabled()
    name = rows(units)[2][0]
    row(units, name).focus()
    units.page.keyboard.press("Enter")
    units.until(lambda: session.selection == [f"{name}.mlp_post"])
    expect(units.page.locator(".big:visible", has_text=name)).to_have_count(2)  # here and in the inspector
    expect(row(units, name)).to_have_attribute("aria-pressed", "true")
    expect(row(units, name)).to_be_focused()
    expect(strip.get_by_role("radio", name=name)).to_have_attribute("aria-checked", "true")
    values = run.activation(f"{name}.mlp_post")
    expect_strip(units, values)
    units.tokens.nth(7).hover()
    expect(units.page.locator(".label:popover-open")).to_contain_text(figures(float(values[7]), signed=True))
    expect(units.page.locator(".label:popover-open")).to_contain_text(f"activation of {name}")
    # A dimension of the stream: what only neurons can be ranked by is greyed out.
    units.choose("Of", "Stream")
    stream = run.activation(f"L{layer}.resid_pre")
    dim = expect_list(units, "D", layer, stream[session.position])[1]
    row(units, f"L{layer}D{dim}").click()
    units.until(lambda: session.selection == [f"L{layer}D{dim}.resid_pre"])
    expect(units.page.locator(".big:visible", has_text=f"L{layer}D{dim}.resid_pre")).to_have_count(2)
    expect_strip(units, stream[:, dim])
    of = dim_tokens(builtin, dim, k=6)
    expect_tokens(units, "dimension", of)
    units.select("Rank by").click()
    for ranking in RANKINGS:
        item = units.page.get_by_role("menuitem", name=ranking, exact=True)
        (expect(item).to_be_disabled if ranking in (WRITTEN, ADDS) else expect(item).to_be_enabled)()
    item = units.page.get_by_role("menuitem", name=EFFECT, exact=True)
    item.click()
    item.wait_for(state="hidden")
    expect_list(units, "D", layer, effects(run, session.metric, "resid_pre", layer))
    # A head again
    units.change(selection=["L1H3.z"])
    expect(strip.get_by_role("radio", name="L1H3")).to_have_attribute("aria-checked", "true")
    expect(strip.get_by_role("radio", name="neuron")).to_be_disabled()
    expect_list(units, "D", 1, effects(run, session.metric, "resid_pre", 1))
    # A neuron that was selected elsewhere is shown here
    units.change(selection=["L3N7.mlp_post"])
    expect_list(units, "N", 3, effects(run, session.metric, "mlp_post", 3))
    expect(units.page.locator(".big:visible", has_text="L3N7")).to_have_count(2)
    units.until(lambda: session.head == (1, 3))


def test_an_ablation_in_the_inspector_is_seen_against_the_baseline(units):
    session = units.session
    layer, at = session.head[0], session.position
    before = neurons(session.run, layer, at)
    first = int(np.abs(before.post).argmax())
    name = f"L{layer}N{first}"
    row(units, name).click()
    units.until(lambda: session.selection == [f"{name}.mlp_post"])
    expect_strip(units, session.run.activation(f"{name}.mlp_post"))
    units.button("Set it to zero").locator("visible=true").click()
    units.until(lambda: session.interventions == [tp.Ablate(f"{name}.mlp_post")])
    units.await_answer()
    now = neurons(session.run, layer, at)
    assert now.post[first] == 0 and session.baseline is not session.run
    expect_list(units, "N", layer, now.post, before.post)
    assert rows(units)[0] == [name, "0", figures(float(before.post[first]), True)]
    rgb = ", ".join(str(int(theme.LIGHT.baseline[at : at + 2], 16)) for at in (1, 3, 5))
    expect(row(units, name).locator(".bar.before")).to_have_css("background-color", f"rgb({rgb})")
    gate, value = (figures(float(each[first]), True) for each in (now.pre, now.value))
    does = f"activation 0 in place of curve(gate {gate}) × value {value}"
    expect(units.page.get_by_text(does, exact=True)).to_be_visible()
    expect_strip(units, np.zeros(session.run.n_pos))
    expect(units.page.get_by_text("0 at every token")).to_be_visible()
    # What lies above is another than in the baseline, and both are told.
    units.change(selection=["L3.mlp_out"])
    above = [neurons(run, 3, at).post for run in (session.run, session.baseline)]
    expect_list(units, "N", 3, *above)
    units.choose("Rank by", EFFECT)
    expect_list(
        units,
        "N",
        3,
        *(effects(run, session.metric, "mlp_post", 3) for run in (session.run, session.baseline)),
    )


def test_an_estimate_is_given_up_for_a_new_question_and_says_that_it_takes_long(units, monkeypatch):
    session, begun, plain = units.session, threading.Event(), effects

    def slow(run, metric, kind, layer, *, cancelled):
        if "slow" not in "".join(run.tokens):
            return plain(run, metric, kind, layer)
        begun.set()
        while not cancelled():
            threading.Event().wait(0.01)
        raise Cancelled

    monkeypatch.setattr("transpector.state.neurons.effects", slow)
    units.change(text="This one is slow, so slow.")
    units.await_answer()
    expect_list(units, "N", 2, neurons(session.run, 2, units.at(session.run)).post)
    units.choose("Rank by", EFFECT)
    expect(units.page.get_by_text("Measuring…", exact=True)).to_be_visible()
    assert begun.is_set()
    expect(units.page.get_by_text("Largest activations", exact=True)).to_be_visible()  # which the numbers are
    units.change(text="And this is the next.")
    units.await_answer()
    expect_list(units, "N", 2, plain(session.run, session.metric, "mlp_post", 2))
    expect(units.page.get_by_text("Largest effects of zeroing", exact=True)).to_be_visible()
    expect(units.page.get_by_text("Measuring…", exact=True)).to_be_hidden()
    # For another ranking, too
    units.change(text="This one is slow again.")
    expect(units.page.get_by_text("Measuring…", exact=True)).to_be_visible()
    units.choose("Rank by", ACTIVATION)
    expect_list(units, "N", 2, neurons(session.run, 2, units.at(session.run)).post)
    expect(units.page.get_by_text("Measuring…", exact=True)).to_be_hidden()
    # And a metric that the text has not is told in place of the list
    units.change(metric=tp.Metric("log_prob"))
    units.await_answer()
    units.choose("Rank by", WRITTEN)
    written = neurons(session.run, 2, units.at(session.run)).written
    expect_list(units, "N", 2, written, signed=False)
    units.select("Rank by").click()
    for ranking in (ADDS, EFFECT):
        expect(units.page.get_by_role("menuitem", name=ranking, exact=True)).to_be_disabled()
    units.page.keyboard.press("Escape")


def test_a_neuron_without_a_gate_is_told_by_what_its_curve_is_given(open_desk, random_directory):
    desk = opened(open_desk(str(random_directory("gpt2"))))
    session, run = desk.session, desk.session.run
    layer = session.head[0]
    found = neurons(run, layer, session.position)
    assert found.value is None
    first = expect_list(desk, "N", layer, found.post)[0]
    post, pre = (figures(float(each[first]), True) for each in (found.post, found.pre))
    expect(desk.page.get_by_text(f"activation {post} = curve({pre})", exact=True)).to_be_visible()
    expect_tokens(desk, "neuron", neuron_tokens(session.model, layer, first, k=6))
    assert "gate" not in row(desk, f"L{layer}N{first}").get_attribute("title")
    desk.settle()


@pytest.fixture
def attention_desk(open_desk, attention_only, monkeypatch):
    monkeypatch.setattr(served, "FIRST_TEXT", "the city of the river")
    monkeypatch.setattr(tp.Session, "load", lambda session, name: session.adopt(attention_only))
    return opened(open_desk())


def test_a_model_without_neurons_says_so_and_shows_the_stream(attention_desk):
    desk = attention_desk
    session, layer = desk.session, desk.session.head[0]
    expect(desk.page.get_by_text("Neurons can't be read here: this model has no MLP")).to_be_visible()
    expect_list(desk, "D", layer, session.run.activation(f"L{layer}.resid_pre")[session.position])
    desk.page.get_by_role("combobox", name=re.compile("^Of Neurons")).click()
    expect(desk.page.get_by_role("menuitem", name="Neurons", exact=True)).to_be_disabled()
    desk.page.keyboard.press("Escape")
    desk.settle()
