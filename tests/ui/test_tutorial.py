"""The tutorial tells the truth: its steps, done on the real page as its pictures are, show what it says of them."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import transpector as tp
from transpector.state import measure
from transpector.state.heads import attention_scores

pytestmark = pytest.mark.browser

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "tutorial.md").read_text()


@pytest.fixture(scope="module")
def steps():
    found = importlib.util.spec_from_file_location("tutorial_steps", DOCS / "tutorial_steps.py")
    module = sys.modules["tutorial_steps"] = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    yield {step.name: step.do for step in module.STEPS}
    del sys.modules["tutorial_steps"]


def test_every_step_of_the_text_has_its_picture(steps):
    pictures = re.findall(r"\(tutorial/(.+)\.png\)", TEXT)
    assert pictures == list(steps)
    assert re.findall(r"^## (\d+)\.", TEXT, re.M) == [name.split("-")[0] for name in steps]
    for name in steps:
        assert (DOCS / "tutorial" / f"{name}.png").stat().st_size > 20_000, name


def test_the_circuit_is_found_step_by_step(desk, steps, monkeypatch):
    drawn = np.random.default_rng(
        100
    )  # the same tokens each time: of 24 draws all but two tell it as clearly
    monkeypatch.setattr(np.random, "default_rng", lambda *seed: drawn)
    session = desk.session

    def do(name):
        """Do a step, and wait until the page has answered it."""
        steps[name](desk.page)
        desk.await_answer()
        desk.settle()

    def losses(run):
        """Mean loss of the first copy, and of the second from its second token on."""
        return run.loss[:24].mean(), run.loss[25:].mean()

    do("1-repeat")
    plain = session.run
    ids = plain.token_ids
    assert plain.n_pos == 49 and np.array_equal(ids[1:25], ids[25:])
    first, second = losses(plain)
    assert first == pytest.approx(np.log(4096), abs=0.5) and second < 2
    desk.expect_loss(plain, plain)

    do("2-stripes")
    at = 30 + int(plain.loss[30:45].argmin())
    desk.until(lambda: session.head == (2, 3) and session.position == at)
    scores = attention_scores(plain)["induction"]
    assert (scores[2] > 0.35).all() and (np.delete(scores, 2, axis=0) < 0.2).all()
    attended = np.mean([plain.pattern(2, head)[at] for head in range(8)], axis=0)
    assert attended.argmax() == at - 24 + 1  # the token after its first copy

    do("3-lens")
    right = int(ids[at + 1])
    seen = tp.lens(plain, positions=[at], token=right)
    assert seen.chosen_rank[-1, 0] == 0
    of_copy = [tp.lens(plain, positions=[p], token=int(ids[p + 1])).chosen_rank[:, 0] for p in range(30, 46)]
    before, after, output = np.median(of_copy, axis=0)[2:]
    assert before > 300 and after < 30 and output == 0
    pane = desk.board.late["Lens"]
    desk.until(lambda: pane._known is not None and pane._known.known[:, at].all())
    assert pane._known.token_ids[-1, at, 0] == right
    desk.until(lambda: np.array_equal(desk.figure("rank").get("rank", []), seen.chosen_rank[:, 0] + 1))

    do("4-contributions")
    found = tp.contributions(plain, session.metric, position=at)
    assert abs(found.gap) <= 1e-3
    assert found.mlps.argmax() == 3 and found.mlps[3] > 2 * np.nanmax(found.heads)

    do("5-one-head")
    assert session.interventions == [tp.Ablate("L2H3.z")]
    desk.until(lambda: session.run.interventions == (tp.Ablate("L2H3.z"),))
    assert losses(session.run)[1] < 5
    desk.expect_loss(session.run, plain)

    do("6-layer")
    assert session.interventions[1] == tp.Ablate("L2.z")
    desk.until(lambda: len(session.run.interventions) == 2)
    without = losses(session.run)
    assert without[1] == pytest.approx(np.log(4096), abs=0.5)
    assert without[0] == pytest.approx(first, abs=0.5)
    assert tp.contributions(session.run, session.metric, position=at).mlps[3] < 0.3 * found.mlps[3]

    do("7-causal-map")
    sweep = desk.board.late["Causal map"].sweep
    array = sweep.result(60).array
    layer, _ = divmod(int((-array).ravel().argsort()[0]), 8)
    assert layer == 1
    assert array.max() > 2 * array[2].max()

    do("8-previous-token")
    assert session.head == (1, 5)
    to_previous = [plain.pattern(1, head)[np.arange(2, 49), np.arange(1, 48)].mean() for head in (1, 4, 5)]
    assert min(to_previous) > 0.9

    do("9-proof")
    desk.until(lambda: len(session.run.interventions) == 3)
    heads = {i.site.head for i in session.interventions}
    assert heads == {1, 4, 5} and {i.site.layer for i in session.interventions} == {1}
    left = attention_scores(session.run)["induction"][2]
    assert (left < 0.4).all() and left.mean() < 0.3 * scores[2].mean()
    desk.expect_sheet(measure.thumbnails(session.run)[0], (2, 3), (1, 1), (1, 4), (1, 5))

    do("10-generate")
    pane = desk.board.late["Generate"]
    desk.until(lambda: not pane.busy)
    third = ids[1:13].tolist()
    with_it = sum(a == b for a, b in zip(pane.before.generation.new_ids, third, strict=True))
    without_it = sum(a == b for a, b in zip(pane.now.generation.new_ids, third, strict=True))
    assert with_it >= 3 > without_it

    do("11-heads")
    finder = desk.board.late["Heads"]
    found = tp.head_scores(session.run)
    induction, previous = (
        [best[:2] for best in found.top(name, 8)] for name in ("induction", "previous_token")
    )
    assert {layer for layer, _ in induction} == {2}
    assert set(previous[:3]) == {(1, 1), (1, 4), (1, 5)} and found["previous_token"][1, [1, 4, 5]].min() > 0.9
    assert (found["copying"][2] > 0.9).all() and np.sort(found["induction"].ravel())[-9] < 0.2
    desk.until(lambda: np.allclose(finder._columns()["copying"], found["copying"]))
    lines = desk.page.get_by_role("table", name="Scores of heads").locator("tbody th")
    assert lines.all_text_contents()[:8] == ["L{}H{}".format(*head) for head in induction]

    do("12-composition")
    assert session.head == (2, 6)
    keys = tp.composition(session.model, 2, 6)
    best = np.argsort(-keys.k.ravel())
    assert {divmod(int(at), 8) for at in best[:3]} == {(1, 1), (1, 4), (1, 5)}
    assert keys.k.ravel()[best[2]] > 1.4 * keys.k.ravel()[best[3]] > 0
    assert 2.4 < keys.k.ravel()[best[0]] / keys.chance < 3.6
