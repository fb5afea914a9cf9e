"""The weights in a browser: every number is the API's, they follow the head and the token, and a click goes to a head."""

import numpy as np
import pytest
from playwright.sync_api import expect

import transpector as tp
from transpector.components import theme
from transpector.components.base import figures, visible
from transpector.components.parts.weight_numbers import N_TOKENS, effective_rank, pooled
from transpector.state import circuits, composition
from transpector.state.distance import distance
from transpector.state.errors import ModelError

pytestmark = pytest.mark.browser

# The middle of a cell of a figure that is seen, in px of the page.
CELL = """([name, row, column]) => {
  const figures = [...Bokeh.documents[0]._all_models.values()].filter((m) => m.type === "Figure" && m.visible)
  const figure = figures.find((m) => m.renderers.some((r) => name in r.data_source.data))
  const view = figure && Bokeh.index.find_one_by_id(figure.id)
  if (!view) return null
  const box = view.el.getBoundingClientRect()
  return [box.x + view.frame.x_scale.compute(column + 0.5), box.y + view.frame.y_scale.compute(row + 0.5)]
}"""


def opened(desk):
    desk.page.get_by_role("tab", name="Weights", exact=True).click()
    desk.until(lambda: "Weights" in desk.board.late)
    expect_head(desk)
    expect(desk.page.get_by_text("Attention by distance", exact=True)).to_be_visible()
    return desk


def box(desk, label):
    """The field of that name that is seen."""
    return desk.page.get_by_label(label, exact=True).locator("visible=true")


def pane(desk):
    return desk.board.late["Weights"]


def face(desk, name):
    expect(desk.page.locator(".MuiModal-backdrop:visible")).to_have_count(0)  # a closing menu takes the click
    desk.page.get_by_role("button", name=name, exact=True).click()
    desk.until(lambda: name in pane(desk)._faces)
    desk.settle()
    return pane(desk)._faces[name]


def expect_head(desk):
    """The title and the numbers are those of the selected head."""
    desk.until(lambda: pane(desk)._title.text == "L{}H{}".format(*desk.session.head))
    desk.settle()


def lists(desk):
    """The lists of tokens in the page's middle, those that are seen: title -> rows as they are written."""
    found = desk.page.evaluate(
        """() => {
          const all = (root) => [...root.querySelectorAll("*")].flatMap((e) => [e, ...(e.shadowRoot ? all(e.shadowRoot) : [])])
          const seen = all(document).filter((e) => e.offsetParent !== null || e.getClientRects().length)
          const out = []
          let title = ""
          for (const e of seen) {
            if (e.classList.contains("heading")) title = e.textContent
            if (e.classList.contains("row") && e.querySelector(":scope > .piece") && e.querySelector(".number"))
              out.push([title, e.querySelector(".piece").textContent, e.querySelector(".number").textContent])
          }
          return out
        }"""
    )
    grouped: dict[str, list] = {}
    for title, piece, number in found:
        grouped.setdefault(title, []).append((piece, number))
    return grouped


def written(ranking):
    return [(visible([piece])[0], figures(value, signed=True)) for piece, value in ranking]


def of_tokens(desk, token):
    """What the API says of the selected head and a token, by the titles of the lists."""
    model, head = desk.session.model, desk.session.head
    up, down = circuits.ov_tokens(model, *head, token, N_TOKENS)
    said = visible(model.pieces([circuits.token_id(model, token)]))[0]
    return {
        f"Attending to “{said}” promotes": written(up),
        "… and suppresses": written(down),
        "Tokens it copies most": written(circuits.copied_tokens(model, *head, N_TOKENS)[0]),
        f"“{said}” attends most to": written(circuits.qk_tokens(model, *head, token, N_TOKENS)[0]),
        "… is attended to most by": written(
            circuits.qk_tokens(model, *head, token, N_TOKENS, as_key=True)[0]
        ),
    }


def expect_tokens(desk, token):
    wanted = of_tokens(desk, token)
    desk.until(lambda: {title: rows for title, rows in lists(desk).items() if title in wanted} == wanted)


def at_position(desk):
    return int(desk.session.run.token_ids[desk.at(desk.session.run)])


def type_token(desk, text):
    field = box(desk, "Token")
    field.fill(text)
    field.press("Enter")


def test_the_lists_of_tokens_are_the_api_s_and_follow_the_position_the_head_and_what_is_typed(desk):
    session = opened(desk).session
    field = box(desk, "Token")
    expect_tokens(desk, at_position(desk))
    expect(field).to_have_value(session.run.tokens[desk.at(session.run)])
    score = float(circuits.copying(session.model)[session.head])
    expect(desk.page.get_by_text(f"Copying score {figures(score, signed=True)}: ")).to_be_visible()
    desk.tokens.nth(4).click()
    desk.until(lambda: session.position == 4)
    expect_tokens(desk, at_position(desk))
    expect(field).to_have_value(session.run.tokens[4])
    # Another head, by its number
    box(desk, "Head").fill("5")
    desk.page.keyboard.press("Enter")
    desk.until(lambda: session.head == (2, 5))
    expect_head(desk)
    expect_tokens(desk, at_position(desk))
    # What is no token is told, and stays in the field
    type_token(desk, "Eiffel Tower")
    expect(desk.warning.filter(has_text="'Eiffel Tower' is ")).to_be_visible()
    expect_tokens(desk, at_position(desk))
    expect(field).to_have_value("Eiffel Tower")
    # One that is typed stays, whatever is selected
    type_token(desk, " tea")
    expect_tokens(desk, " tea")
    desk.tokens.nth(7).click()
    heads = []
    session.param.watch(lambda event: heads.append(event.new), "head")
    desk.change(head=(1, 3))
    expect_head(desk)
    assert heads == [(1, 3)]  # and no other on the way
    expect_tokens(desk, " tea")
    expect(box(desk, "Layer")).to_have_value("1")
    # What was good stays beside what is none
    type_token(desk, "Eiffel Tower")
    expect(desk.warning.filter(has_text="'Eiffel Tower' is ")).to_be_visible()
    expect_tokens(desk, " tea")
    expect(field).to_have_value("Eiffel Tower")
    field.fill("")
    box(desk, "Head").focus()  # as one leaves it
    expect_tokens(desk, at_position(desk))
    expect(desk.warning.filter(has_text="Eiffel")).to_have_count(0)
    expect(field).to_have_value(session.run.tokens[7])


def test_attention_by_distance_is_now_and_before_and_beside_it_the_closed_form(open_desk, random_directory):
    desk = open_desk(str(random_directory("gpt2")))
    desk.change(text="the city of the river in the city of the house", head=(1, 2))
    desk.await_answer()
    opened(desk)
    session = desk.session

    def expect_curves():
        now = distance(session.run, *session.head)
        desk.until(lambda: np.allclose(desk.figure("attention")["attention"], now.attention))
        drawn = desk.figure("closed_form")["closed_form"]
        np.testing.assert_allclose(drawn, now.scores, rtol=1e-5, atol=1e-5)
        assert pane(desk)._faces["Tokens"].curve.closed.visible
        return now

    now = expect_curves()
    expect(desk.page.get_by_text(now.how[1:])).to_be_visible()
    assert not pane(desk)._faces["Tokens"].curve._before.visible
    desk.add(tp.Ablate("L0.attn_out"))
    desk.await_answer()
    before = distance(session.baseline, *session.head).attention
    changed = expect_curves()
    assert not np.allclose(changed.attention, before)
    desk.until(lambda: np.allclose(desk.figure("attention")["before"], before))
    assert pane(desk)._faces["Tokens"].curve._before.glyph.line_color == theme.LIGHT.baseline
    # In the dark
    desk.page.get_by_label("Toggle theme").click()
    curve = pane(desk)._faces["Tokens"].curve
    desk.until(lambda: curve._now.glyph.line_color == theme.DARK.accent)
    face(desk, "Matrices")
    pictures = pane(desk)._faces["Matrices"].pictures
    assert pictures["W_Q"]._mapper.palette == theme.palette("diverging", True)


def test_composition_is_the_api_s_and_a_click_goes_to_a_head(desk):
    session = opened(desk).session
    desk.change(head=(3, 1))
    composed = face(desk, "Composition")
    found = composition.composition(session.model, 3, 1)
    for way, values in (("Queries", found.q), ("Keys", found.k), ("Values", found.v)):
        desk.choose("Read by", way)

        def is_right(values=values):
            data = desk.figure("composition")
            shape = data["height"][0], data["width"][0]
            here = np.array(data["composition"][0], np.float32).reshape(shape)
            return here.shape == values.shape and np.allclose(here, values)

        desk.until(is_right)
        rows = desk.page.get_by_role("group", name="Heads read most").get_by_role("button")
        order = np.argsort(-values.ravel(), kind="stable")[:10]
        names = ["L{}H{}".format(*np.unravel_index(at, values.shape)) for at in order]
        expect(rows.locator(".site")).to_have_text(names)
        expect(rows.locator(".number:not(.estimate)")).to_have_text(
            [figures(float(values.ravel()[at])) for at in order]
        )
    assert f"chance, {figures(found.chance)}" in composed.map._subtitle.text
    assert composed.map._mapper.low == pytest.approx(found.chance)
    # By key in the list, by hand in the map
    name = rows.first.locator(".site").text_content()
    rows.first.focus()
    desk.page.keyboard.press("Enter")
    desk.until(lambda: "L{}H{}".format(*session.head) == name)
    expect_head(desk)
    desk.change(head=(2, 4))
    expect_head(desk)
    before = None
    while before != (before := desk.page.evaluate(CELL, ["composition", 0, 6])) or before is None:
        desk.page.wait_for_timeout(200)
    desk.page.mouse.click(*before)
    desk.until(lambda: session.head == (0, 6))
    reason = "L0H6 is in the first layer: there is no earlier head that it could read."
    expect(desk.warning.filter(has_text=reason)).to_be_visible()
    expect(rows).to_have_count(0)


def test_the_spectra_and_the_matrices_are_the_api_s(desk):
    session = opened(desk).session
    desk.change(head=(1, 6))
    face(desk, "Matrices")
    expect_head(desk)
    model = session.model
    ov, qk = composition.singular_values(model, 1, 6)
    for name, values in (("OV", ov), ("QK", qk)):
        column = f"singular_{name}"
        desk.until(
            lambda column=column, values=values: np.allclose(desk.figure(column)[column], values, rtol=1e-4)
        )
        rank = figures(effective_rank(values))
        expect(desk.page.get_by_text(f"{name}: effective rank {rank} of {len(values)}")).to_be_visible()
    eigen, drawn = circuits.ov_eigenvalues(model, 1, 6), desk.figure("real")
    np.testing.assert_allclose(drawn["real"], eigen.real, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(drawn["imaginary"], eigen.imag, rtol=1e-5, atol=1e-6)
    for name, matrix in composition.weights(model, 1, 6).items():
        wanted, _ = pooled(matrix if name == "W_O" else matrix.T)
        here = np.array(desk.figure(name)[name][0], np.float32).reshape(wanted.shape)
        np.testing.assert_allclose(here, wanted, rtol=1e-6)
        mapper = pane(desk)._faces["Matrices"].pictures[name]._mapper
        assert mapper.high == -mapper.low == pytest.approx(np.quantile(np.abs(wanted), 0.99))
    # All of it is seen at once
    foot = desk.page.evaluate(CELL, ["W_O", 15, 127])
    assert 0 < foot[0] < 1440 - 296 and 0 < foot[1] < 900


def test_what_an_architecture_hides_is_said_in_its_place_and_the_rest_is_shown(
    open_desk, random_directory, monkeypatch
):
    desk = open_desk(str(random_directory("opt")))
    desk.change(text="the city of the river", head=(1, 1))
    desk.await_answer()
    opened(desk)
    expect(desk.page.get_by_text("query · key, by content alone")).to_have_count(2)
    expect_tokens(desk, at_position(desk))

    def hidden(*args, **asked):
        raise ModelError("The attention scores of this architecture are more than queries times keys.")

    monkeypatch.setattr(circuits, "qk_tokens", hidden)
    monkeypatch.setattr(composition, "composition", hidden)
    monkeypatch.setattr(composition, "singular_values", hidden)
    desk.change(head=(2, 1))
    reason = desk.page.get_by_text("are more than queries times keys").locator("visible=true")
    expect(reason).to_have_count(1)
    expect_head(desk)
    shown = lists(desk)
    assert len(shown["Tokens it copies most"]) == N_TOKENS
    assert "… is attended to most by" not in shown
    face(desk, "Composition")
    expect(reason).to_have_count(1)
    face(desk, "Matrices")
    expect(reason).to_have_count(2)
    desk.until(lambda: len(desk.figure("real")["real"]) > 0)
    expect(desk.page.get_by_text("W_Q, colours to")).to_be_visible()
    pictures = pane(desk)._faces["Matrices"].pictures
    assert all(picture.figure.visible for picture in pictures.values())


@pytest.mark.parametrize(("shape", "each"), [((4, 600), (1, 3)), ((520, 5), (3, 1)), ((256, 256), (1, 1))])
def test_a_large_matrix_is_pooled_by_what_is_furthest_from_zero(shape, each):
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found, pools = pooled(matrix)
    assert pools == each
    for row in range(found.shape[0]):
        for column in range(found.shape[1]):
            block = matrix[row * each[0] : (row + 1) * each[0], column * each[1] : (column + 1) * each[1]]
            assert found[row, column] == block.ravel()[np.abs(block).argmax()]


def test_the_effective_rank_is_the_number_of_equal_singular_values():
    assert effective_rank(np.float32([2, 2, 2, 0])) == pytest.approx(3)
    assert effective_rank(np.float32([5, 0])) == pytest.approx(1)
    assert effective_rank(np.zeros(3, np.float32)) == 0
