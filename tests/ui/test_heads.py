"""The head finder on the page: its numbers are the API's, in the table, on the map, on the sheet and in the graph."""

import numpy as np
import pytest
from playwright.sync_api import expect

import transpector as tp
from transpector.state.heads import drawn_side, heads_with_pattern, on_random, pattern_of, similar_heads
from transpector.state.scores import SCORES

pytestmark = pytest.mark.browser


@pytest.fixture
def finder(desk):
    desk.page.get_by_role("tab", name="Heads", exact=True).click()
    expect(table(desk).locator("tbody tr")).to_have_count(32)
    pane = desk.board.late["Heads"]
    desk.until(lambda: pane._copying["model"] is not None)
    return desk


def table(desk):
    return desk.page.get_by_role("table", name="Scores of heads")


def rows(desk):
    """What the table says, by head, in its order."""
    found = {}
    for line in table(desk).locator("tbody tr").all():
        cells = line.locator("td").all_text_contents()
        found[line.locator("th").inner_text()] = [
            np.nan if cell == "–" else float(cell.replace("−", "-")) for cell in cells
        ]
    return found


def on_the_map(desk, expected):
    return np.allclose(np.array(desk.figure("score")["score"][0]).reshape(4, 8), expected, atol=1e-6)


def sort_by(desk, label):
    table(desk).get_by_role("button", name=label, exact=True).click()
    expect(table(desk).get_by_role("columnheader", name=label, exact=True)).to_have_attribute(
        "aria-sort", "descending"
    )


def name(layer, head):
    return f"L{layer}H{head}"


def test_every_score_is_the_api_s_and_the_induction_heads_come_first(finder):
    run = finder.session.run
    expected = tp.head_scores(run)
    found = rows(finder)
    assert list(found)[:8] == [name(*best[:2]) for best in expected.top("induction", 8)]
    assert all(head.startswith("L2") for head in list(found)[:8])
    for at, score in enumerate(SCORES):
        for layer, head in np.ndindex(4, 8):
            assert found[name(layer, head)][at] == pytest.approx(
                float(expected[score][layer, head]), abs=6e-4
            )
    like = similar_heads(run, *finder.session.head)
    for row in like.itertuples():
        assert found[name(row.layer, row.head)][len(SCORES)] == pytest.approx(row.similarity, abs=6e-4)


def test_a_column_sorts_and_colours_the_map_the_sheet_and_the_graph(finder):
    page, session = finder.page, finder.session
    sort_by(finder, "Previous")
    assert session.heads_by == "previous_token"
    expected = tp.head_scores(session.run)["previous_token"]
    assert set(list(rows(finder))[:3]) == {"L1H1", "L1H4", "L1H5"}
    finder.until(lambda: on_the_map(finder, expected))
    sheet = finder.board.sheet.sheet
    page.get_by_role("tab", name="Attention").click()
    finder.until(lambda: len(sheet.scores) == 4 * 32)
    assert np.allclose(np.frombuffer(sheet.scores, np.float32).reshape(4, 8), expected, atol=1e-6)
    expect(page.locator(".legend")).to_contain_text("previous token")
    page.get_by_role("tab", name="Graph").click()
    finder.until(lambda: "Graph" in finder.board.late)
    graph = finder.board.late["Graph"]
    finder.until(lambda: "linear-gradient(to right" in graph.surface.css)
    expect(finder.sheet).to_be_hidden()
    finder.choose("Colour heads by", "Nothing")
    finder.until(lambda: "linear-gradient(to right" not in graph.surface.css)
    assert session.heads_by == "" and sheet.scores == b""
    finder.settle()


def test_heads_are_scored_on_random_tokens_and_against_the_baseline(finder):
    finder.add(*[tp.Ablate(f"L1H{head}.z") for head in (1, 4, 5)])
    finder.await_answer()
    finder.choose("Score on", "Random tokens, twice")
    session, pane = finder.session, finder.board.late["Heads"]
    now, before = (tp.head_scores(on_random(run)) for run in (session.run, session.baseline))
    finder.until(lambda: np.allclose(pane._columns()["induction"], now["induction"]))
    assert now["induction"][2].max() < 0.4 < before["induction"][2].max()
    finder.choose("Run", "Difference")
    expected = now["induction"] - before["induction"]
    finder.until(lambda: np.allclose(pane._columns()["induction"], expected))
    finder.until(lambda: on_the_map(finder, expected))
    assert rows(finder)["L2H6"][2] == pytest.approx(float(expected[2, 6]), abs=6e-4)


def test_a_row_selects_its_head_and_heads_like_it_are_found(finder):
    page, session = finder.page, finder.session
    table(finder).locator("tbody tr", has_text="L1H5").click()
    finder.until(lambda: session.head == (1, 5))
    expect(table(finder).get_by_role("button", name="Like L1H5")).to_be_visible()
    sort_by(finder, "Like L1H5")
    best = similar_heads(session.run, 1, 5)
    expected = ["L1H5", *(name(row.layer, row.head) for row in best.head(4).itertuples())]
    finder.until(lambda: list(rows(finder))[:5] == expected)
    # By keys alone as well
    table(finder).locator("tbody tr").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    finder.until(lambda: name(*session.head) == expected[1])


def test_a_pattern_drawn_by_hand_finds_the_heads_that_have_it(finder):
    page, session = finder.page, finder.session
    grid = page.get_by_role("application", name="Pattern to look for")
    grid.scroll_into_view_if_needed()
    box = grid.bounding_box()
    side = drawn_side(session.run.n_pos)
    step = box["width"] / side
    first, last = (
        (box["x"] + 0.5 * step, box["y"] + 3.5 * step),
        (box["x"] + 0.5 * step, box["y"] + 9.5 * step),
    )
    page.mouse.move(*first)
    page.mouse.down()
    page.mouse.move(*last, steps=30)
    page.mouse.up()
    wanted = [(query, 0) for query in range(3, 10)]
    finder.until(lambda: session.drawn == wanted)
    best = heads_with_pattern(session.run, pattern_of(wanted, session.run.n_pos))
    expected = [name(row.layer, row.head) for row in best.head(5).itertuples()]
    finder.until(lambda: session.heads_by == "drawn")
    expect(table(finder).get_by_role("button", name="As drawn")).to_be_visible()
    finder.until(lambda: list(rows(finder))[:5] == expected)
    assert rows(finder)[expected[0]][-1] == pytest.approx(best.similarity[0], abs=6e-4)
    finder.button("Wipe the drawn pattern").click()
    finder.until(lambda: session.drawn == [] and session.heads_by == "")
    expect(table(finder).get_by_role("button", name="As drawn")).to_have_count(0)


def test_a_text_that_does_not_repeat_says_why_two_scores_are_missing(finder):
    finder.change(text="one two three")
    finder.await_answer()
    expect(finder.page.get_by_text("No token of the text is one that occurred before")).to_be_visible()
    finder.until(lambda: all(np.isnan(row[2]) for row in rows(finder).values()))
    assert not any(np.isnan(row[0]) for row in rows(finder).values())
