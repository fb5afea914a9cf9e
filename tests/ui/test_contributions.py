"""Contributions in a browser: every number is the API's, all of them add up, and a click selects what it is of."""

import re

import numpy as np
import pytest
from playwright.sync_api import expect

import transpector as tp
from transpector import serve as served
from transpector.components import theme
from transpector.components.base import figures, visible
from transpector.components.parts.effect_figure import palette
from transpector.state import direct
from transpector.state.contributions import contributions
from transpector.state.errors import ModelError
from transpector.state.metric import Metric

pytestmark = pytest.mark.browser

PARTS, NEURONS = "Largest contributions", "Largest neurons"


@pytest.fixture
def sums(desk):
    """The dashboard with the contributions open."""
    yield opened(desk)
    desk.settle()  # a page that closes while it is written to is an error in the log


def opened(desk):
    desk.page.get_by_role("tab", name="Contributions").click()
    expect(desk.page.get_by_text("Largest parts", exact=True)).to_be_visible()
    return desk


def of(desk, run=None, **asked):
    """What the API says of the run, or of another, at the selected position."""
    metric = desk.session.metric
    position = desk.session.position if metric.kind == "loss" else None
    return contributions(run or desk.session.run, metric, position=position, **asked)


def cells(found):
    """Heads and MLPs as the map has them, where nothing else is added."""
    return np.concatenate([found.heads, found.mlps[:, None]], axis=1)


def shown(desk):
    """The map's numbers as the browser has them, and those it tells beside them."""
    data = desk.figure("place")
    shape = (int(data["height"][0]), int(data["width"][0]))
    return tuple(np.array(data[name][0], np.float32).reshape(shape) for name in ("change", "estimate"))


def expect_map(desk, numbers, beside=None):
    def is_right():
        here, there = shown(desk)
        if here.shape != numbers.shape or not np.allclose(here, numbers, atol=1e-6, equal_nan=True):
            return False
        return np.isnan(there).all() if beside is None else np.allclose(there, beside, atol=1e-6)

    desk.until(is_right)


def rows(desk, name):
    """Each line of a list: what it is of, and its numbers as they are written."""
    lines = desk.page.get_by_role("group", name=name).locator(".row:not(.top)")
    return lines.evaluate_all(
        """lines => lines.map((line) =>
          [line.querySelector(".site").textContent, ...[...line.querySelectorAll(".number")].map((n) => n.textContent)])"""
    )


def button(desk, list_name, name):
    return desk.page.get_by_role("group", name=list_name).get_by_role(
        "button", name=re.compile(rf"^{name}\b")
    )


def written(*numbers):
    return [figures(float(number), signed=True) for number in numbers]


def said(desk, pattern):
    """The numbers in a line of text."""
    line = desk.page.get_by_text(re.compile(pattern))
    expect(line).to_be_visible()
    return [float(n) for n in re.findall(r"-?\d[\d.]*(?:e-?\d+)?", line.text_content().replace("−", "-"))]


def click_cell(desk, row, column):
    def place():
        return desk.page.evaluate(
            """([row, column]) => {
              const figures = [...Bokeh.documents[0]._all_models.values()].filter((m) => m.type === "Figure" && m.visible)
              const figure = figures.find((m) => m.renderers.some((r) => r.glyph.type === "Image" && "place" in r.data_source.data))
              const view = Bokeh.index.find_one_by_id(figure.id)
              const box = view.el.getBoundingClientRect()
              return [box.x + view.frame.x_scale.compute(column + 0.5), box.y + view.frame.y_scale.compute(row + 0.5)]
            }""",
            [row, column],
        )

    before = None
    while before != (before := place()):  # a figure that is new is still being laid out
        desk.page.wait_for_timeout(200)
    desk.page.mouse.click(*before)


def test_every_number_is_the_api_s_and_they_add_up_to_the_logit(sums):
    found = of(sums)
    expect(sums.page.get_by_text(found.target[1:])).to_be_visible()
    expect_map(sums, cells(found))
    n_parts, total, logit, gap = said(sums, "parts add up to")
    assert n_parts == len(found.parts)
    assert abs(total - found.total) <= 1e-3 and abs(logit - found.logit) <= 1e-3
    assert gap <= 1e-3 and gap == pytest.approx(abs(found.gap), rel=0.1)
    listed = rows(sums, PARTS)
    order = sorted(found.parts, key=lambda part: -abs(found[part]))
    assert listed[:-1] == [[part, *written(found[part])] for part in order[:24]]
    rest = sum(found[part] for part in order[24:])
    assert listed[-1] == [f"{len(order) - 24} others", *written(rest)]
    title = button(sums, PARTS, order[0]).get_attribute("title")
    assert f"{found[order[0]]:+.4f} logits" in title
    expect(sums.page.get_by_role("combobox", name="Show")).to_have_count(0)  # there is only one run
    expect(sums.warning).to_have_count(0)


def test_an_intervention_is_shown_against_the_baseline_and_as_a_difference(sums):
    sums.change(interventions=[tp.Ablate("L2H2.z")])
    sums.await_answer()
    now, before = of(sums), of(sums, sums.session.baseline)
    assert abs(now.logit - before.logit) > 1e-2
    expect_map(sums, cells(now), cells(before))
    _, total, logit, _ = said(sums, "parts add up to")
    assert abs(total - now.total) <= 1e-3 and abs(logit - now.logit) <= 1e-3
    was, difference = said(sums, r"^Baseline .* difference")
    assert abs(was - before.logit) <= 1e-3 and difference == pytest.approx(now.logit - before.logit, rel=1e-2)
    # What was large stays in the list, with nothing now and grey for before.
    assert ["L2H2.z", "0", *written(before["L2H2.z"])] in rows(sums, PARTS)
    grey = button(sums, PARTS, "L2H2.z").locator(".bar.before")
    rgb = ", ".join(str(int(theme.LIGHT.baseline[at : at + 2], 16)) for at in (1, 3, 5))
    expect(grey).to_have_css("background-color", f"rgb({rgb})")
    sums.choose("Show", "Difference")
    change = cells(now) - cells(before)
    expect_map(sums, change)
    names = {*now.parts, *before.parts}
    values = {part: now[part] - before[part] for part in names}
    first = max(values, key=lambda part: abs(values[part]))
    assert rows(sums, PARTS)[0] == [first, *written(values[first])]
    sums.choose("Show", "Baseline")
    expect_map(sums, cells(before))
    # Without interventions there is nothing to choose from, and what is now is shown.
    sums.change(interventions=[])
    sums.await_answer()
    expect_map(sums, cells(of(sums)))
    expect(sums.page.get_by_role("combobox", name="Show")).to_have_count(0)


def test_a_click_on_a_bar_or_on_a_cell_selects_the_part_everywhere(sums):
    click_cell(sums, 1, 5)
    sums.until(lambda: sums.session.selection == ["L1H5.z"])
    assert sums.session.head == (1, 5)
    expect(sums.page.locator(".big:visible", has_text="L1H5")).to_be_visible()
    click_cell(sums, 3, 8)
    sums.until(lambda: sums.session.selection == ["L3.mlp_out"])
    expect(sums.page.locator(".big:visible", has_text="L3.mlp_out")).to_be_visible()
    expect(button(sums, PARTS, "L3.mlp_out")).to_have_attribute("aria-pressed", "true")
    sums.settle()
    run = sums.session.run
    promoted = direct.promoted(run, "L3.mlp_out", sums.session.position)
    lines = sums.page.locator(".row:has(.piece):visible")
    expect(lines.filter(has=sums.page.locator("css=.piece"))).to_have_count(10)
    seen = lines.locator(".piece").all_text_contents()
    assert seen == visible([piece for piece, _ in (*promoted[0], *promoted[1])])
    # By key
    first = sums.page.get_by_role("group", name=PARTS).get_by_role("button").nth(1)
    part = first.locator(".site").text_content()
    first.focus()
    sums.page.keyboard.press("Enter")
    sums.until(lambda: sums.session.selection == [part])
    expect(first).to_be_focused()
    expect(first).to_have_attribute("aria-pressed", "true")


def test_another_metric_or_position_is_another_logit(sums):
    sums.tokens.nth(20).click()
    sums.until(lambda: sums.session.position == 20)
    sums.settle()
    assert "after position 20" in of(sums).target
    expect(sums.page.get_by_text(of(sums).target[1:])).to_be_visible()
    expect_map(sums, cells(of(sums)))
    sums.choose("Metric", "Logit difference")
    expect(sums.warning.filter(has_text="The metric has no answer token.").last).to_be_visible()
    expect(sums.page.get_by_text("Largest parts", exact=True)).to_be_hidden()
    sums.page.get_by_label("Answer").fill(" tea")
    sums.page.get_by_label("Distractor").fill(" ship")
    wanted = Metric("logit_diff", " tea", " ship")
    sums.until(lambda: sums.session.metric == wanted)
    found = contributions(sums.session.run, wanted)
    expect(sums.page.get_by_text(found.target[1:])).to_be_visible()
    expect_map(sums, cells(found))
    expect(sums.page.get_by_text("Largest parts", exact=True)).to_be_visible()
    assert abs(said(sums, "parts add up to")[1] - found.logit) <= 1e-3


def test_the_neurons_of_the_selected_layer_add_up_to_its_mlp(sums):
    click_cell(sums, 3, 1)
    sums.until(lambda: sums.session.head == (3, 1))
    sums.settle()
    found = of(sums, layer=3)
    order = np.argsort(-np.abs(found.neurons), kind="stable")
    wanted = [[f"L3N{at}", *written(found.neurons[at])] for at in order[:12]]
    sums.until(lambda: rows(sums, NEURONS)[:12] == wanted)
    rest = found.neurons[order[12:]].sum()
    assert rows(sums, NEURONS)[12] == [f"{len(order) - 12} others", *written(rest)]
    in_all = said(sums, "^Neurons of layer 3: ")
    assert in_all == [3, pytest.approx(found["L3.mlp_out"], rel=1e-2)]
    # Another layer, by hand
    sums.fill_number("Layer", sums.board.late["Contributions"].layer, 0)
    sums.until(lambda: rows(sums, NEURONS)[0][0].startswith("L0N"))
    other = of(sums, layer=0)
    assert rows(sums, NEURONS)[0][1] == written(other.neurons[np.abs(other.neurons).argmax()])[0]
    # One of them, in full
    name = rows(sums, NEURONS)[0][0]
    button(sums, NEURONS, name).click()
    sums.until(lambda: sums.session.selection == [f"{name}.mlp_post"])
    expect(sums.page.locator(".big:visible", has_text=name)).to_be_visible()
    expect(button(sums, NEURONS, name)).to_have_attribute("aria-pressed", "true")
    sums.settle()
    run = sums.session.run
    np.testing.assert_allclose(
        sums.figure("activation")["activation"], run.activation(f"{name}.mlp_post"), rtol=1e-5
    )
    up, _ = direct.promoted(run, f"{name}.mlp_post", sums.session.position)
    expect(sums.page.locator(".piece:visible").first).to_have_text(
        visible([up[0][0]])[0], use_inner_text=False
    )
    sums.button("Set it to zero").locator("visible=true").click()
    sums.until(lambda: sums.session.interventions == [tp.Ablate(f"{name}.mlp_post")])
    sums.await_answer()
    sums.until(lambda: [name, "0"] in [row[:2] for row in rows(sums, NEURONS)])


def test_a_neuron_and_a_dimension_are_scaled_and_set_beside_their_numbers(sums):
    for id, title in (("L1N3.mlp_post", "L1N3"), ("L1D7.resid_pre", "L1D7.resid_pre")):
        sums.page.mouse.move(0, 0)  # the label by the pointer covers the button beside it
        sums.change(selection=[id], interventions=[])
        expect(sums.page.locator(".big:visible", has_text=title)).to_be_visible()
        sums.await_answer()
        sums.settle()
        values = sums.session.run.activation(id)
        np.testing.assert_allclose(sums.figure("activation")["activation"], values, rtol=1e-5)
        far = float(f"{2 * np.abs(values).max():.2g}")
        sums.button(f"Write {far:g} into it, twice as far from zero as it gets by itself").click()
        sums.until(lambda id=id, far=far: sums.session.interventions == [tp.Set(id, far)])
        expect(sums.rows).to_contain_text(f"set: to {far:g}")
        sums.page.mouse.move(0, 0)
        sums.button("Multiply it by 2; slide the factor in the table").click()
        sums.until(lambda id=id: sums.session.interventions[1:] == [tp.Scale(id, 2)])
        expect(sums.page.get_by_role("slider", name=f"Strength of {id}")).to_have_value("2")
        sums.await_answer()
        sums.settle()
        assert (sums.session.run.activation(id) == np.float32(2 * far)).all()
    # A whole part has the four that it always had
    sums.change(selection=["L1.mlp_out"])
    expect(sums.page.locator(".big:visible", has_text="L1.mlp_out")).to_be_visible()
    expect(sums.button("Multiply it by 2; slide the factor in the table")).to_have_count(0)


STRIPS = """canvas => {
  const {cell, strip, cells} = JSON.parse(canvas.dataset.geometry)
  const context = canvas.getContext("2d")
  return cells.map((row) => row.map(([x, y]) =>
    strip && Array.from(context.getImageData(x + Math.floor(cell / 2), y + cell + Math.floor(strip / 2), 1, 1).data.slice(0, 3))))
}"""


def colours(values, top):
    """The colour of each number, as the map looks it up."""
    scale = palette(False)
    at = np.clip(np.floor(len(scale) * (1 + values / top) / 2).astype(int), 0, len(scale) - 1)
    return [[[int(scale[i][c : c + 2], 16) for c in (1, 3, 5)] for i in row] for row in at]


def test_the_contact_sheet_takes_the_same_colours_while_that_is_wanted(desk):
    def strips():
        return desk.sheet.evaluate(STRIPS)

    assert strips() == [[0] * 8] * 4
    before = desk.sheet.evaluate("e => e.dataset.geometry")
    desk.choose("Colour heads by", "Contributions")
    heads = of(desk).heads
    top = float(np.abs(heads).max())
    desk.until(lambda: strips() == colours(heads, top))
    assert palette(False)[127] == theme.LIGHT.paper
    expect(desk.page.locator(".legend")).to_contain_text("adds (logits)")
    expect(desk.page.locator(".legend")).to_contain_text(f"+{top:.3g}")
    # They go with the run, the metric and the position; the scale is that of the map.
    layer, head = np.unravel_index(np.abs(heads).argmax(), heads.shape)
    desk.change(interventions=[tp.Ablate(f"L{layer}H{head}.z")])
    desk.await_answer()
    now, was = of(desk), of(desk, desk.session.baseline)
    desk.until(lambda: strips() == colours(now.heads, max(np.abs(now.heads).max(), np.abs(was.heads).max())))
    desk.choose("Metric", "Log-probability")
    expect(desk.page.locator(".legend")).to_contain_text("The metric has no answer token.")
    desk.until(lambda: strips() == [[0] * 8] * 4)
    desk.choose("Colour heads by", "Nothing")
    expect(desk.page.locator(".legend")).not_to_contain_text("no answer")
    desk.change(interventions=[])
    desk.await_answer()
    desk.until(lambda: desk.sheet.evaluate("e => e.dataset.geometry") == before)


def test_what_else_a_layer_adds_has_a_column_where_it_adds_anything(open_desk, random_directory):
    desk = opened(open_desk(str(random_directory("gpt2"))))
    found = of(desk)
    beside = np.array([[found[f"L{layer}.attn_bias"]] for layer in range(3)], np.float32)
    expect_map(desk, np.concatenate([cells(found), beside], axis=1))
    click_cell(desk, 1, found.heads.shape[1] + 1)
    desk.until(lambda: desk.session.selection == ["L1.attn_out"])
    names = [row[0] for row in rows(desk, PARTS)]
    assert {"embed", "pos_embed", "bias", "L1.attn_bias"} <= set(names)
    button(desk, PARTS, "bias").click()
    desk.until(lambda: desk.session.selection == ["unembed"])
    desk.settle()


@pytest.fixture
def attention_desk(open_desk, attention_only, monkeypatch):
    monkeypatch.setattr(served, "FIRST_TEXT", "the city of the river")
    monkeypatch.setattr(tp.Session, "load", lambda session, name: session.adopt(attention_only))
    return opened(open_desk())


def test_what_a_model_lacks_is_greyed_out_with_the_reason(attention_desk, monkeypatch):
    desk = attention_desk
    found = of(desk)
    beside = np.array([[found[f"L{layer}.attn_bias"]] for layer in range(3)], np.float32)
    expect_map(desk, np.concatenate([found.heads, beside], axis=1)[:, : shown(desk)[0].shape[1]])
    expect(desk.page.get_by_text("can't be told apart here: this model has no MLP")).to_be_visible()
    expect(desk.page.get_by_label("Layer", exact=True)).to_be_disabled()
    expect(desk.page.get_by_role("group", name=NEURONS)).to_be_hidden()

    # One that tells nothing at all
    def refused(*args, **asked):
        raise ModelError("What each part adds can't be told here.")

    monkeypatch.setattr("transpector.state.contributions.contributions", refused)
    desk.change(text="the river of the city")
    expect(desk.warning).to_have_text("What each part adds can't be told here.")
    expect(desk.page.get_by_text("Largest parts", exact=True)).to_be_hidden()
    desk.await_answer()
    desk.settle()
