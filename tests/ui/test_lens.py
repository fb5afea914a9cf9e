"""The lens on the real page: what is in view is read, shown, selected and patched as the API does it."""

import math

import numpy as np
import pytest
from playwright.sync_api import expect

import transpector as tp
from transpector.components.base import visible

pytestmark = pytest.mark.browser

CELLS = """() => {
  const found = {}
  const roots = [document]
  while (roots.length) {
    const root = roots.pop()
    for (const each of root.querySelectorAll("*")) if (each.shadowRoot) roots.push(each.shadowRoot)
    for (const cell of root.querySelectorAll(".cell"))
      found[`${cell.dataset.row},${cell.dataset.column}`] =
        [cell.textContent, cell.classList.contains("unknown"), getComputedStyle(cell).backgroundColor]
  }
  return found
}"""


class LensDesk:
    def __init__(self, desk):
        self.desk, self.page = desk, desk.page
        desk.page.get_by_role("tab", name="Lens").click()
        desk.until(lambda: "Lens" in desk.board.late)
        self.await_cells()

    @property
    def session(self):
        return self.desk.session

    @property
    def pane(self):
        return self.desk.board.late["Lens"]

    def cells(self):
        return self.page.evaluate(CELLS)

    def await_cells(self, run=None):
        """Until all that is in view has been read, of this run."""
        run = run or self.session.run

        def is_there():
            cells = self.cells()
            of_run = self.pane._known is not None and self.pane._known.run is run
            return of_run and cells and not any(unknown for _, unknown, _ in cells.values())

        self.desk.until(is_there)
        self.desk.settle()

    def columns(self):
        """The positions that are in view as a whole."""
        return sorted({int(place.split(",")[1]) for place in self.cells()})[1:]

    def cell(self, row, column):
        return self.page.locator(f'.cell[data-row="{row}"][data-column="{column}"]')

    def middle(self, row, column):
        box = self.cell(row, column).bounding_box()
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def drag(self, source, target):
        self.page.mouse.move(*self.middle(*source))
        self.page.mouse.down()
        self.page.mouse.move(*self.middle(*target), steps=6)
        self.page.mouse.up()

    def expect_table(self, run):
        """Every cell in view has the token that the lens of this run reads there."""
        expected = tp.lens(run, k=1)

        def is_right():
            cells = self.cells()
            for place, (text, unknown, _) in cells.items():
                row, column = map(int, place.split(","))
                if unknown or text != visible([expected.tokens[row, column, 0]])[0]:
                    return False
            return bool(cells)

        self.desk.until(is_right)


@pytest.fixture
def lens_desk(desk):
    return LensDesk(desk)


def test_every_cell_in_view_has_its_token_and_the_last_row_is_the_output(lens_desk):
    run = lens_desk.session.run
    lens_desk.expect_table(run)
    n_layers = run.model.spec.n_layers
    last = {place: cell[0] for place, cell in lens_desk.cells().items() if place.startswith(f"{n_layers},")}
    assert last
    for place, text in last.items():
        column = int(place.split(",")[1])
        assert text == visible([run.next_tokens(column, 1)[0][0]])[0]


def test_only_what_is_in_view_is_read_and_more_when_it_comes_into_view(lens_desk):
    session = lens_desk.session
    lens_desk.desk.change(token_ids=[5 + n % 300 for n in range(60)])
    lens_desk.desk.until(lambda: session.run.n_pos == 60)
    lens_desk.await_cells()
    known = lens_desk.pane._known.known
    assert 0 < known.any(0).sum() < 40
    lens_desk.page.locator(".scroll").evaluate("e => { e.scrollLeft = 0 }")
    lens_desk.desk.until(lambda: lens_desk.pane._known.known[:, 0].all())
    lens_desk.await_cells()
    lens_desk.expect_table(session.run)


def test_the_pointer_is_told_the_likeliest_tokens_and_the_numbers(lens_desk):
    run = lens_desk.session.run
    row, column = 2, lens_desk.columns()[-2]
    found = tp.lens(run, layers=[row], positions=[column], k=5)
    lens_desk.cell(row, column).hover()
    label = lens_desk.page.get_by_role("tooltip").filter(has_text="KL to the output")
    expect(label).to_contain_text(f"L{row}")
    for piece, p in zip(found.tokens[0, 0], found.probabilities[0, 0], strict=True):
        expect(label).to_contain_text(visible([piece])[0])
        expect(label).to_contain_text(f"{p:.3f}")
    expect(label).to_contain_text(f"{found.entropy[0, 0]:.2f} nats")
    expect(label).to_contain_text(f"{found.divergence[0, 0]:.2f} nats")


def test_a_click_selects_the_stream_and_the_position_everywhere(lens_desk):
    column = lens_desk.columns()[-3]
    lens_desk.page.mouse.click(*lens_desk.middle(2, column))
    lens_desk.desk.until(lambda: lens_desk.session.selection == ["L2.resid_pre"])
    assert lens_desk.session.position == column
    expect(lens_desk.cell(2, column)).to_have_class("cell selected")
    expect(lens_desk.page.locator(".big", has_text="L2.resid_pre")).to_be_visible()
    lens_desk.page.locator(".scroll").focus()
    lens_desk.page.keyboard.press("ArrowUp")
    lens_desk.desk.until(lambda: lens_desk.session.selection == ["L1.resid_pre"])
    lens_desk.page.keyboard.press("ArrowLeft")
    lens_desk.desk.until(lambda: lens_desk.session.position == column - 1)


def test_a_cell_dropped_on_another_is_a_patch_and_the_lens_answers(lens_desk):
    session = lens_desk.session
    n = lens_desk.columns()[-1]
    lens_desk.drag((1, n - 4), (3, n - 2))
    patch = tp.Patch(f"L3.resid_pre@{n - 2}", source=f"L1.resid_pre@{n - 4}")
    lens_desk.desk.until(lambda: session.interventions == [patch])
    lens_desk.desk.until(lambda: session.run.interventions == (patch,))
    run = session.model.run(tp.Question(session.question.token_ids, (patch,)))
    lens_desk.await_cells()
    lens_desk.expect_table(run)
    expect(lens_desk.page.locator(".scroll .mark")).to_have_count(1)
    assert session.run.loss == pytest.approx(run.loss)


def test_what_can_t_be_patched_says_why(lens_desk):
    n = lens_desk.columns()[-1]
    lens_desk.drag((3, n - 2), (1, n - 2))
    expect(lens_desk.desk.warning.filter(has_text="is not upstream")).to_be_visible()
    n_layers = lens_desk.session.model.spec.n_layers
    lens_desk.drag((1, n - 2), (n_layers, n - 2))
    expect(lens_desk.desk.warning.filter(has_text="The output is no activation")).to_be_visible()
    assert lens_desk.session.interventions == []


def test_from_text_b_a_cell_is_patched_with_what_it_holds_there(lens_desk):
    session, desk = lens_desk.session, lens_desk.desk
    desk.change(text_b=session.text.replace(session.text.split()[0], session.text.split()[2]))
    lens_desk.page.get_by_role("switch", name="From text B").check()
    n = lens_desk.columns()[-1]
    lens_desk.drag((2, n - 3), (2, n - 2))
    patch = tp.Patch(f"L2.resid_pre@{n - 2}", f"L2.resid_pre@{n - 3}", session.text_b)
    desk.until(lambda: session.interventions == [patch])


def test_the_chosen_token_goes_through_the_layers_now_and_in_the_baseline(lens_desk):
    session, desk = lens_desk.session, lens_desk.desk
    token = session.run.tokens[2]
    lens_desk.page.get_by_label("Chosen token").fill(token)
    desk.change(interventions=[tp.Ablate("L0.mlp_out")])
    desk.until(lambda: session.run.interventions)
    at = session.position % session.run.n_pos

    def curve(run, name):
        return getattr(tp.lens(run, positions=[at], token=token), f"chosen_{name}")[:, 0]

    now, before = curve(session.run, "probability"), curve(session.baseline, "probability")
    assert not np.allclose(now, before)
    desk.until(lambda: np.allclose(desk.figure("probability").get("probability", []), now, atol=1e-6))
    np.testing.assert_allclose(desk.figure("probability")["before"], before, atol=1e-6)
    desk.until(lambda: np.array_equal(desk.figure("rank")["rank"], curve(session.run, "rank") + 1))
    lens_desk.page.get_by_label("Chosen token").fill("no one token at all")
    expect(desk.warning.filter(has_text="not one")).to_be_visible()


@pytest.mark.parametrize("dark", [False, True])
def test_a_colour_is_the_scale_s_for_the_number(lens_desk, dark):
    from transpector.components import theme

    if dark:
        lens_desk.page.get_by_label("Toggle theme").click()
    run = lens_desk.session.run
    scale = theme.sequential(dark)
    shares = {
        "Probability": lambda found: found.probabilities[..., 0],
        "Entropy": lambda found: found.entropy / math.log(run.model.spec.d_vocab),
    }
    found = tp.lens(run, k=1)
    for option, share in shares.items():
        lens_desk.desk.choose("Colour", option)

        expected = share(found)

        def is_right(expected=expected):
            for place, (_, _, colour) in lens_desk.cells().items():
                row, column = map(int, place.split(","))
                at = expected[row, column] * 255
                allowed = {
                    "rgb({}, {}, {})".format(*scale[min(255, max(0, each))])
                    for each in (round(at - 0.02), round(at + 0.02))
                }
                if colour not in allowed:
                    return False
            return True

        lens_desk.desk.until(is_right)


def test_layers_outside_a_range_are_skipped_and_come_back(lens_desk):
    session, desk = lens_desk.session, lens_desk.desk
    handles = lens_desk.page.get_by_role("slider", name="Layers run")
    last = session.model.spec.n_layers - 1
    handles = lens_desk.page.locator("input[type=range][aria-valuemax]") if not handles.count() else handles
    handles.first.focus()
    lens_desk.page.keyboard.press("ArrowRight")
    desk.until(lambda: session.interventions == [tp.Skip(0, 0)])
    handles.last.focus()
    lens_desk.page.keyboard.press("ArrowLeft")
    desk.until(lambda: session.interventions == [tp.Skip(0, 0), tp.Skip(last, last)])
    desk.await_answer()
    lens_desk.await_cells()
    lens_desk.expect_table(session.model.run(session.question))
    session.undo()
    session.undo()
    desk.until(lambda: session.interventions == [])
    desk.until(lambda: lens_desk.pane.layers.value == (0, last))


def test_another_model_s_lens_takes_the_place_of_this_one_s(lens_desk, random_directory):
    lens_desk.session.load(str(random_directory("gpt2")))
    lens_desk.desk.until(lambda: lens_desk.session.model.spec.n_layers == 3)
    lens_desk.desk.await_answer()
    lens_desk.await_cells()
    lens_desk.expect_table(lens_desk.session.run)


def test_where_there_is_no_lens_the_reason_is_said_and_the_table_goes(lens_desk, monkeypatch):
    from transpector.state import lens
    from transpector.state.errors import ModelError

    def refuse(run):
        raise ModelError("This architecture has no lens.")

    monkeypatch.setattr(lens, "_check", refuse)
    lens_desk.desk.change(text="another text that repeats and repeats")
    expect(lens_desk.desk.warning.filter(has_text="This architecture has no lens.")).to_be_visible()
    expect(lens_desk.page.locator(".cell")).to_have_count(0)
    monkeypatch.undo()
    lens_desk.desk.change(text="and a third one")
    lens_desk.desk.await_answer()
    lens_desk.await_cells()
    lens_desk.expect_table(lens_desk.session.run)
