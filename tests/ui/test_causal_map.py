"""The causal map in a browser: its numbers are those of runs, it can be stopped, and what it finds can be kept."""

import re

import numpy as np
import pandas as pd
import pytest
from playwright.sync_api import expect

import transpector as tp
from transpector.serve import FIRST_TEXT
from transpector.state.grid import from_text
from transpector.state.sweep import sweep

pytestmark = pytest.mark.browser

OTHER = "A dog ran to the door and the dog barked."


@pytest.fixture
def map_desk(desk):
    """The dashboard with the causal map open."""
    yield opened(desk)
    desk.settle()  # a page that closes while it is written to is an error in the log


def opened(desk):
    desk.page.get_by_role("tab", name="Causal map").click()
    expect(desk.page.get_by_text("Which parts of the model does this text depend on?")).to_be_visible()
    return desk


def effect(model, *interventions, text=FIRST_TEXT, beside=()):
    """What interventions do to the mean loss, beside others, by runs of their own."""
    asked = [tp.Session(model, text, interventions=[*beside, *more]) for more in ((), interventions)]
    before, after = (float(session.wait(60).run.loss.mean()) for session in asked)
    return after - before


def run(desk):
    desk.button("Exact: a run for each site").click()


def estimate(desk):
    desk.button("From gradients: quick, first order").click()


def says(desk, words):
    return expect(desk.page.get_by_text(re.compile(words)).locator("visible=true")).to_have_count(1)


def shown(desk, shape):
    """The heat map's numbers as the browser has them."""
    data = desk.figure("place")
    return np.array(data["change"][0], np.float32).reshape(shape)


def cell(desk, row, column):
    """The middle of a cell, in px of the page."""
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


def click_cell(desk, row, column):
    expect(desk.page.locator(".MuiModal-backdrop:visible")).to_have_count(0)  # a closing menu takes the click
    before = None
    while before != (before := cell(desk, row, column)):  # a figure that is new is still being laid out
        desk.page.wait_for_timeout(200)
    desk.page.mouse.click(*before)


def test_every_head_is_set_to_zero_in_turn_and_the_map_shows_what_a_run_gives(map_desk, builtin):
    run(map_desk)
    says(map_desk, r"^32 sites in \d+\.\d s$")
    map_desk.until(lambda: np.isfinite(shown(map_desk, (4, 8))).all())
    values = shown(map_desk, (4, 8))
    for layer, head in [(0, 0), (1, 5), (2, 3), (3, 7)]:
        assert abs(values[layer, head] - effect(builtin, tp.Ablate(f"L{layer}H{head}.z"))) < 1e-3
    expect(map_desk.warning).to_have_count(0)
    # The pointer's label
    map_desk.page.mouse.move(*cell(map_desk, 1, 5))
    label = map_desk.page.locator(".bk-Tooltip")
    expect(label).to_contain_text("L1H5.z")
    expect(label).to_contain_text(f"{values[1, 5]:+.3g} nats")
    # The list begins with the largest
    largest = np.unravel_index(np.abs(values).argmax(), values.shape)
    first = map_desk.page.get_by_role("group", name="Largest changes").get_by_role("button").first
    expect(first).to_contain_text("L{}H{}.z".format(*largest))
    # And the other tab is as it was
    map_desk.page.get_by_role("tab", name="Attention").click()
    expect(map_desk.sheet).to_be_visible()
    map_desk.click_head(1, 3)
    expect(map_desk.page.get_by_text("L1H3: what each token attends to")).to_be_visible()
    map_desk.page.get_by_role("tab", name="Causal map").click()
    expect(map_desk.page.locator(".big", has_text="L1H3.z")).to_be_visible()


def test_a_click_selects_a_site_and_keeping_it_moves_the_metric_by_its_number(map_desk, builtin):
    run(map_desk)
    says(map_desk, r"^32 sites in")
    click_cell(map_desk, 1, 5)
    map_desk.until(lambda: map_desk.session.head == (1, 5))
    expect(map_desk.page.locator(".big", has_text="L1H5.z")).to_be_visible()
    number = float(shown(map_desk, (4, 8))[1, 5])
    expect(map_desk.page.locator(".quiet", has_text=f"{number:+.3g} nats")).to_be_visible()
    map_desk.button("Add this change to the interventions").click()
    expect(map_desk.rows.locator(".site")).to_have_text(["L1H5.z"])
    baseline = float(tp.Session(builtin, FIRST_TEXT).wait(60).run.loss.mean())
    map_desk.expect_metric(baseline + number, baseline)
    says(map_desk, "^This map is of the text, interventions and metric before; run it again.$")
    # Run again it begins where the run is now
    run(map_desk)
    map_desk.until(lambda: abs(shown(map_desk, (4, 8))[1, 5]) < 1e-5)
    expect(map_desk.page.get_by_text("This map is of the text")).to_have_count(0)
    wanted = effect(builtin, tp.Ablate("L1H1.z"), beside=[tp.Ablate("L1H5.z")])
    map_desk.until(lambda: abs(shown(map_desk, (4, 8))[1, 1] - wanted) < 1e-3)


def test_an_estimate_is_verified_and_a_row_for_each_site_can_be_downloaded(map_desk, builtin):
    estimate(map_desk)
    says(map_desk, "^32 sites estimated in")
    session = tp.Session(builtin, FIRST_TEXT).wait(60)
    guessed = sweep(session, estimate=True).result(60)
    np.testing.assert_allclose(shown(map_desk, (4, 8)), guessed.array, atol=1e-4)
    says(map_desk, r" nats \(estimate\)$")
    map_desk.fill_number("Largest", map_desk.board.late["Causal map"].n_verified, 5)
    map_desk.button("Run the largest of the estimate exactly").click()
    verified = guessed.verify(5).result(60)
    says(map_desk, f"^5 largest run exactly: rank correlation with the estimate {verified.agreement:.2f}$")
    known = np.isfinite(verified.array)
    np.testing.assert_allclose(
        shown(map_desk, (4, 8)), np.where(known, verified.array, guessed.array), atol=1e-3
    )
    listed = map_desk.page.get_by_role("group", name="Largest changes").get_by_role("button")
    expect(listed).to_have_count(5)
    listed.nth(1).click()
    order = sorted(zip(*np.nonzero(known), strict=True), key=lambda at: -abs(verified.array[at]))
    map_desk.until(lambda: map_desk.session.head == tuple(map(int, order[1])))
    with map_desk.page.expect_download() as download:
        map_desk.button("Every site, a row each").click()
    assert download.value.suggested_filename == "transpector-heads-z-zero-estimate.csv"
    frame = pd.read_csv(download.value.path())
    assert len(frame) == 32
    assert frame["change"].notna().sum() == 5
    np.testing.assert_allclose(frame["estimate"], guessed.array.ravel(), atol=1e-4)
    with map_desk.page.expect_download() as download:
        map_desk.button("The picture as it is").click()
    assert download.value.suggested_filename == "transpector-heads-z-zero-estimate.png"
    assert download.value.path().read_bytes().startswith(b"\x89PNG")


def hooks_on(model):
    points = model.bridge.hook_dict.values()
    return sum(len(point._forward_hooks) + len(point._forward_pre_hooks) for point in points)


def test_cancelling_in_mid_sweep_keeps_what_is_known_and_leaves_nothing_behind(
    map_desk, builtin, gate, monkeypatch
):
    monkeypatch.setenv("TRANSPECTOR_SWEEP_MEMORY", "2")  # MB: in several batches
    model = map_desk.session.model
    held = gate(model, layer=0)  # the sweep begins with the last layers
    run(map_desk)
    map_desk.until(held.reached.is_set)
    says(map_desk, r"^\d+ of 32 sites")
    map_desk.button("Stop here; what is known stays").click()
    says(map_desk, r"^Cancelled: \d+ of 32 sites")
    held.open()
    model.worker.submit(lambda: None).result(60)
    assert hooks_on(model) == 0
    values = shown(map_desk, (4, 8))
    assert 0 < np.isfinite(values).sum() < 32
    assert abs(values[3, 7] - effect(builtin, tp.Ablate("L3H7.z"))) < 1e-3
    run(map_desk)
    says(map_desk, "^32 sites in")
    assert abs(shown(map_desk, (4, 8))[0, 4] - effect(builtin, tp.Ablate("L0H4.z"))) < 1e-3


def test_another_question_is_answered_before_the_sweep_ends(map_desk, builtin, gate):
    session = map_desk.session
    held = gate(session.model, layer=0)
    map_desk.choose("Over", "Heads × positions")
    run(map_desk)
    map_desk.until(held.reached.is_set)
    under_way = map_desk.board.late["Causal map"].sweep
    over = []
    session.param.watch(lambda event: over.append(under_way.is_over), "run")
    map_desk.button("Set it to zero").click()
    map_desk.until(lambda: session.state == "queued")
    held.open()
    wanted = tp.Session(builtin, FIRST_TEXT, interventions=[tp.Ablate("L{}H{}.z".format(*session.head))])
    wanted.wait(60)
    map_desk.expect_metric(wanted.run.loss.mean(), wanted.baseline.loss.mean())
    assert over == [False]
    says(map_desk, "^960 sites in")


def test_patching_asks_for_a_text_b_of_as_many_tokens(map_desk, builtin):
    map_desk.page.get_by_role("combobox", name="Do").nth(1).click()
    map_desk.page.get_by_role("menuitem", name="Patch from text B").click()
    expect(map_desk.warning).to_contain_text("Text B is empty.")
    expect(map_desk.button("Exact: a run for each site")).to_be_disabled()
    map_desk.text_b.fill(OTHER)
    expect(map_desk.warning).to_have_count(0)
    run(map_desk)
    expect(map_desk.warning).to_contain_text(
        f"Text B has {len(builtin.tokenize(OTHER))} tokens, this one 30."
    )
    other = FIRST_TEXT.replace("letter green", "green letter", 1)
    map_desk.text_b.fill(other)
    map_desk.choose("Over", "Layers × positions")
    run(map_desk)
    says(map_desk, "^120 sites in")
    expect(map_desk.warning).to_have_count(0)
    wanted = sweep(tp.Session(builtin, FIRST_TEXT).wait(60), "layers_positions", change=from_text(other))
    np.testing.assert_allclose(shown(map_desk, (4, 30)), wanted.result(60).array, atol=1e-3)
    click_cell(map_desk, 2, 4)
    expect(map_desk.page.locator(".big", has_text="L2.resid_pre@4")).to_be_visible()
    map_desk.until(lambda: map_desk.session.position == 4)


def test_a_map_of_another_text_or_metric_says_so(map_desk):
    stale = map_desk.page.get_by_text(
        "This map is of the text, interventions and metric before; run it again."
    )
    run(map_desk)
    says(map_desk, "^32 sites in")
    expect(stale).to_have_count(0)
    map_desk.text.fill(OTHER)
    expect(stale).to_be_visible()
    map_desk.text.fill(FIRST_TEXT)
    expect(stale).to_have_count(0)
    map_desk.choose("Metric", "Log-probability")
    expect(stale).to_be_visible()
    expect(map_desk.page.get_by_text("change of mean loss")).to_have_count(0)  # drawn, not written
    run(map_desk)
    expect(map_desk.warning.first).to_contain_text("The metric has no answer token.")


def test_layers_neurons_and_positions_of_heads_have_pictures_of_their_own(map_desk, builtin):
    session = tp.Session(builtin, FIRST_TEXT).wait(60)
    map_desk.choose("Over", "Layers")
    run(map_desk)
    says(map_desk, "^4 sites in")
    bars = map_desk.figure("way")
    np.testing.assert_allclose(bars["change"], sweep(session, "layers").result(60).array, atol=1e-3)
    assert bars["site"] == [f"L{layer}.mlp_out" for layer in range(4)]
    map_desk.choose("Over", "Neurons of one layer")
    estimate(map_desk)
    says(map_desk, f"^{builtin.spec.d_mlp} sites estimated in")
    layer = map_desk.session.head[0]
    wanted = sweep(session, "neurons", estimate=True, layer=layer).result(60)
    np.testing.assert_allclose(map_desk.figure("way")["change"], wanted.array, atol=1e-4)
    map_desk.choose("Over", "Heads × positions")
    estimate(map_desk)
    says(map_desk, "^960 sites estimated in")
    array = sweep(session, "heads_positions", estimate=True).result(60).array
    np.testing.assert_allclose(np.abs(shown(map_desk, (4, 8))), np.abs(array).max(-1), atol=1e-4)
    map_desk.tokens.nth(7).click()
    map_desk.choose("Position", "The selected one")
    map_desk.until(lambda: np.allclose(shown(map_desk, (4, 8)), array[:, :, 7], atol=1e-4))
    click_cell(map_desk, 2, 1)
    expect(map_desk.page.locator(".big", has_text="L2H1.z@7")).to_be_visible()
