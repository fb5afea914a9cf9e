"""The stream in a browser: every number is the API's, a click selects, and tokens are coloured by their saliency."""

import numpy as np
import pytest
from playwright.sync_api import expect

import transpector as tp
from transpector.components import theme
from transpector.components.base import figures
from transpector.components.parts.gradient import is_known
from transpector.components.parts.stream_view import NORMS, unable
from transpector.state import stream as module
from transpector.state.errors import Cancelled
from transpector.state.graph import NORMS as KNOWN_NORMS
from transpector.state.stream import cosines, cosines_to_last, cosines_to_next, gradients, stream

pytestmark = pytest.mark.browser

CLOSE = {"atol": 1e-6, "rtol": 1e-5}
BACKGROUNDS = "tokens => tokens.map((token) => getComputedStyle(token).backgroundColor)"
CELL = """([name, row, column]) => {
  const figures = [...Bokeh.documents[0]._all_models.values()].filter((m) => m.type === "Figure" && m.visible)
  const figure = figures.find((m) => m.renderers.some((r) => name in r.data_source.data))
  const view = figure && Bokeh.index.find_one_by_id(figure.id)
  if (!view) return null
  const box = view.el.getBoundingClientRect()
  return [box.x + view.frame.x_scale.compute(column + 0.5), box.y + view.frame.y_scale.compute(row + 0.5)]
}"""


@pytest.fixture
def stream_desk(desk):
    """The dashboard with the stream open."""
    yield opened(desk)
    desk.settle()  # a page that closes while it is written to is an error in the log


def opened(desk):
    desk.page.get_by_role("tab", name="Stream").click()
    desk.until(lambda: "Stream" in desk.board.late and pane(desk)._shown is not None)
    return desk


def ask(desk, text):
    """A text whose gradient no other test has asked for: the store's model keeps its runs, and they their gradients."""
    desk.change(text=text)
    desk.await_answer()
    desk.settle()


def pane(desk):
    return desk.board.late["Stream"]


def shown(desk, name="stream"):
    """A map's numbers as the browser has them."""
    data = desk.figure(name)
    return np.array(data[name][0], np.float32).reshape(data["height"][0], data["width"][0])


def expect_numbers(desk, wanted, name="stream", **tolerance):
    def is_right():
        values = shown(desk, name)
        return values.shape == wanted.shape and np.allclose(
            values, wanted, **(tolerance or CLOSE), equal_nan=True
        )

    desk.until(is_right)


def at_cell(desk, row, column, name="stream"):
    """The middle of a cell, in px of the page, once the figure has found its place."""
    before = None
    while before != (before := desk.page.evaluate(CELL, [name, row, column])) or before is None:
        desk.page.wait_for_timeout(200)
    return before


def click_cell(desk, row, column, name="stream"):
    expect(desk.page.locator(".MuiModal-backdrop:visible")).to_have_count(0)  # a closing menu takes the click
    desk.page.mouse.click(*at_cell(desk, row, column, name))


def say(desk):
    view = pane(desk)
    return view._site.text, view._says.text, view._says_too.text


def of_view(run, name, metric=None):
    """What the API says."""
    told = stream(run)
    if name.startswith("LayerNorm"):
        return np.concatenate([told.scales[name.split(": ")[1]], told.final_scale[None]])
    if name.startswith("Gradient"):
        found = gradients(run, metric)
        return found.norms if name == "Gradient norm" else found.dots
    return {
        "Norm": lambda: told.norms,
        "Cosine to the next layer": lambda: cosines_to_next(run),
        "Cosine to the output": lambda: cosines_to_last(run),
    }[name]()


CHEAP = [
    "Norm",
    "Cosine to the next layer",
    "Cosine to the output",
    "LayerNorm scale: ln1",
    "LayerNorm scale: ln2",
]


def test_the_norms_are_those_that_the_graph_knows():
    assert NORMS == KNOWN_NORMS


def test_every_number_is_the_api_s_now_before_and_between(stream_desk):
    desk, session = stream_desk, stream_desk.session
    for name in CHEAP:
        desk.choose("Show", name)
        expect_numbers(desk, of_view(session.run, name))
    desk.choose("Show", "Norm")
    desk.add(tp.Ablate("L1H3.z"), tp.Ablate("L2.resid_pre@4"))
    desk.await_answer()
    run, baseline = session.run, session.baseline
    expect_numbers(desk, stream(run).norms)
    assert not np.allclose(stream(run).norms, stream(baseline).norms)
    desk.choose("Run", "Baseline")
    expect_numbers(desk, stream(baseline).norms)
    desk.choose("Run", "Difference")
    for name in CHEAP:
        desk.choose("Show", name)
        expect_numbers(desk, of_view(run, name) - of_view(baseline, name), atol=1e-4)
    at = session.position
    expect_numbers(desk, cosines(run, at) - cosines(baseline, at), "between", atol=1e-5)
    # Without an intervention there is no baseline beside it
    desk.change(interventions=[])
    desk.await_answer()
    desk.until(lambda: pane(desk).of.value == "Now")
    expect_numbers(desk, of_view(baseline, CHEAP[-1]))


def test_gradients_are_those_of_the_metric_and_measured_only_where_they_are_shown(stream_desk, monkeypatch):
    desk, session, measured = stream_desk, stream_desk.session, []
    ask(desk, "Not one of the others has read this text, not one.")

    def counted(run, metric, **options):
        measured.append((run, metric))
        return gradients(run, metric, **options)

    monkeypatch.setattr(module, "gradients", counted)
    desk.change(position=3)
    desk.choose("Show", "Cosine to the output")
    expect_numbers(desk, cosines_to_last(session.run))
    assert measured == []
    desk.choose("Show", "Gradient norm")
    expect_numbers(desk, gradients(session.run, session.metric).norms)
    desk.choose("Show", "Gradient × stream")
    expect_numbers(desk, gradients(session.run, session.metric).dots)
    desk.page.get_by_role("radio", name="saliency").click()
    desk.until(lambda: desk.board.strip.strip.numbers["saliency"]["values"])
    assert len(measured) == 1
    token = desk.session.run.tokens[7]
    desk.change(metric=tp.Metric("log_prob", token, position=9))
    desk.await_answer()
    expect_numbers(desk, gradients(session.run, session.metric).dots)
    desk.add(tp.Ablate("L0H1.z"))
    desk.await_answer()
    expect_numbers(desk, gradients(session.run, session.metric).dots)
    before = gradients(session.baseline, session.metric).dots
    desk.choose("Run", "Baseline")
    expect_numbers(desk, before)
    desk.choose("Run", "Difference")
    expect_numbers(desk, gradients(session.run, session.metric).dots - before)
    # Under another metric an old picture has no place
    desk.change(metric=tp.Metric("log_prob"))
    desk.await_answer()
    desk.until(lambda: pane(desk)._trouble.text.startswith("The metric has no answer token."))
    desk.until(lambda: "Gradient norm" in pane(desk).view.disabled_options)
    desk.change(metric=tp.Metric())
    expect_numbers(
        desk, gradients(session.run, tp.Metric()).dots - gradients(session.baseline, tp.Metric()).dots
    )
    desk.until(lambda: not pane(desk)._trouble.text)


def test_a_click_selects_a_stream_and_a_position_and_says_its_number(stream_desk):
    desk, session = stream_desk, stream_desk.session
    norms = stream(session.run).norms
    click_cell(desk, 2, 7)
    desk.until(lambda: (session.selection, session.position) == (["L2.resid_pre"], 7))
    desk.until(lambda: say(desk) == ("L2.resid_pre@7", f"norm {figures(float(norms[2, 7]))}", ""))
    expect(desk.page.locator(".big", has_text="L2.resid_pre@7")).to_be_visible()
    expect_numbers(desk, cosines(session.run, 7), "between")
    desk.page.mouse.move(*at_cell(desk, 2, 9))
    label = desk.page.locator(".bk-Tooltip:visible")
    expect(label).to_contain_text("L2.resid_pre@9")
    expect(label).to_contain_text(f"norm {figures(float(norms[2, 9]))}")
    # The last row is no site
    click_cell(desk, 4, 11)
    desk.until(lambda: session.position == 11)
    assert session.selection == ["L2.resid_pre"]
    desk.until(lambda: say(desk)[:2] == ("the output@11", f"norm {figures(float(norms[4, 11]))}"))
    # Nor does the matrix know positions
    click_cell(desk, 1, 0, "between")
    desk.until(lambda: (session.selection, session.position) == (["L1.resid_pre"], 11))
    desk.until(lambda: say(desk)[0] == "L1.resid_pre@11")
    # A head is no stream
    desk.change(head=(1, 3))
    desk.until(lambda: say(desk)[0] == "position 11")
    # What is selected in the strip is so here
    desk.tokens.nth(3).click()
    expect_numbers(desk, cosines(session.run, 3), "between")


def test_what_is_changed_and_what_is_selected_are_framed(stream_desk):
    desk, session = stream_desk, stream_desk.session
    desk.change(selection=["L3.resid_pre"], position=5)
    desk.change(interventions=[tp.Ablate("L1.resid_pre@2"), tp.Freeze("L2.resid_pre")])
    desk.await_answer()
    n_pos = session.run.n_pos
    colours = theme.ground(False)

    def frames():
        data = pane(desk).map._frames.data
        return {
            *zip(*(data[edge] for edge in ("top", "bottom", "left", "right", "color")), strict=True)
        }  # rows first

    wanted = {
        (1, 2, 2, 3, colours.ablated),
        (2, 3, 0, n_pos, colours.frozen),
        (3, 4, 5, 6, colours.accent),
    }
    desk.until(lambda: wanted <= frames())


def colours_of(saliency):
    values = np.array([round(255 * float(each)) for each in saliency / saliency.max()])
    scale = theme.sequential(False)
    return ["rgba(0, 0, 0, 0)" if value == 0 else "rgb({}, {}, {})".format(*scale[value]) for value in values]


def expect_colours(desk, saliency):
    desk.until(lambda: desk.tokens.evaluate_all(BACKGROUNDS) == colours_of(saliency))


def test_the_strip_is_coloured_by_each_token_s_saliency(desk):
    session = desk.session
    ask(desk, "This text is new, and the text is short.")
    attended = desk.page.get_by_role("radio", name="attended by")
    expect(attended).to_be_visible()
    assert not is_known(session.run, session.metric)
    desk.page.get_by_role("radio", name="saliency").click()
    expect(attended).to_be_hidden()
    saliency = gradients(session.run, session.metric).saliency
    expect_colours(desk, saliency)
    expect(desk.page.locator(".controls")).to_contain_text(f"{saliency.max():.3g} nats per unit")
    desk.tokens.nth(4).hover()
    label = desk.page.locator(".label:popover-open")
    expect(label).to_contain_text(f"{saliency[4]:.3g} nats per unit")
    expect(label).to_contain_text(f"{100 * saliency[4] / saliency.max():.0f} % of the largest")
    expect(label).to_contain_text("norm of the gradient of the mean loss")
    desk.add(tp.Ablate("L1.resid_pre@4"))
    desk.await_answer()
    changed = gradients(session.run, session.metric).saliency
    assert not np.allclose(changed, saliency)
    expect_colours(desk, changed)
    desk.change(text="A dog ran to the door and the dog barked.")
    desk.await_answer()
    desk.expect_tokens(session.run)
    expect_colours(desk, gradients(session.run, session.metric).saliency)
    desk.change(metric=tp.Metric("log_prob"))
    expect(desk.page.locator(".controls")).to_contain_text("The metric has no answer token.")
    expect(desk.page.get_by_role("radio", name="saliency")).to_be_disabled()
    desk.page.get_by_role("radio", name="mean of all").click()
    expect(attended).to_be_visible()


def test_a_gradient_is_given_up_for_another_question_and_measured_in_the_end(stream_desk, gate, monkeypatch):
    desk, session, given_up = stream_desk, stream_desk.session, []

    def noted(run, metric, **options):
        try:
            return gradients(run, metric, **options)
        except Cancelled:
            given_up.append(run)
            raise

    monkeypatch.setattr(module, "gradients", noted)
    ask(desk, "Nobody has ever asked the model about this, nobody has.")
    first = session.run
    held = gate(session.model, layer=3)
    desk.choose("Show", "Gradient norm")
    desk.until(held.reached.is_set)
    desk.text.fill("")  # no question: the old answer stays
    desk.until(lambda: session.state == "queued")
    held.open()
    desk.until(lambda: session.error)
    assert session.run is first
    expect_numbers(desk, gradients(first, session.metric).norms)
    assert given_up == [first]
    # And when everything changes at once
    desk.change(metric=tp.Metric("log_prob", first.tokens[3]))
    desk.change(text="A dog ran to the door and the dog barked again.")
    desk.await_answer()
    expect_numbers(desk, gradients(session.run, session.metric).norms)


def expect_greyed_out(desk, label, option, is_so=True):
    desk.select(label).click()
    item = desk.page.get_by_role("menuitem", name=option, exact=True)
    item.wait_for()
    (expect(item).to_have_attribute if is_so else expect(item).not_to_have_attribute)("aria-disabled", "true")
    desk.page.keyboard.press("Escape")
    item.wait_for(state="hidden")


def test_what_there_is_not_is_greyed_out_with_the_reason(open_desk, random_directory, odd_lm):
    desk = open_desk(str(random_directory("gptj")))
    desk.change(text="the city in the city")
    desk.await_answer()
    opened(desk)
    view = pane(desk).view
    desk.until(lambda: len(view.disabled_options) == 3)
    desk.until_heard()
    assert "This model has no ln1_post that tells its scale." in view.description
    expect_greyed_out(desk, "Show", "LayerNorm scale: ln2")
    expect_greyed_out(desk, "Show", "LayerNorm scale: ln1", False)
    expect_greyed_out(desk, "Run", "Difference")
    desk.add(tp.Ablate("L1H1.z"))
    desk.await_answer()
    desk.until(lambda: not pane(desk).of.disabled_options)
    expect_greyed_out(desk, "Run", "Difference", False)
    hidden = unable(desk.session.run, tp.Metric(), frozenset())["LayerNorm scale: ln1"]
    assert hidden == "ln1 does not tell here what it divides by, position by position."
    # Layers that can't be walked one by one have no gradient
    desk.choose("Show", "Gradient norm")
    expect_numbers(desk, gradients(desk.session.run, desk.session.metric).norms)
    desk.change(interventions=[])
    desk.change(model=odd_lm)
    desk.await_answer()
    reason = "This architecture has no gradients here: its layers can't be done one by one."
    expect(desk.warning.filter(has_text=reason)).to_be_visible()
    desk.until_heard()
    assert reason in view.description
    expect_greyed_out(desk, "Show", "Gradient × stream")
    assert not desk.board.late["Stream"].map.figure.visible
    saliency = desk.page.get_by_role("radio", name="saliency")
    expect(saliency).to_be_disabled()
    expect(saliency).to_have_attribute("title", reason)
    desk.choose("Show", "Norm")
    expect_numbers(desk, stream(desk.session.run).norms)
    expect(desk.warning.filter(has_text=reason)).to_have_count(0)


def test_all_of_it_fits_on_the_page(stream_desk):
    height = stream_desk.page.evaluate("[document.documentElement.scrollHeight, innerHeight]")
    assert height[0] <= height[1]
    click_cell(stream_desk, 1, 4)  # what there is to click lies within the window
    stream_desk.until(lambda: stream_desk.session.position == 4)
