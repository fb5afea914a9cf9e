"""The graph on the page: it unfolds, a line that is drawn is a patch, and every way to change something agrees."""

import re

import numpy as np
import pytest
from desk import Desk
from playwright.sync_api import Locator, expect

import transpector as tp
from transpector.components.base import visible

pytestmark = pytest.mark.browser


class Diagram:
    """The graph of an open page, with its tab open."""

    def __init__(self, desk: Desk):
        self.desk, self.page = desk, desk.page
        self.page.get_by_role("tab", name="Graph").click()
        self.node("embed").wait_for()
        self.desk.until(lambda: self.pane.graph is not None and self.pane._is_fitted)
        self.await_edges()

    @property
    def pane(self):
        return self.desk.board.late["Graph"]

    @property
    def session(self):
        return self.desk.session

    def node(self, id: str) -> Locator:
        return self.page.locator(f'.react-flow__node[data-id="{id}"]')

    def edge(self, id: str) -> Locator:
        return self.page.locator(f'.react-flow__edge[data-id="{id}"]')

    def ids(self) -> set[str]:
        of_nodes = "nodes => nodes.map((node) => node.dataset.id)"
        return set(self.page.locator(".react-flow__node").evaluate_all(of_nodes))

    def await_edges(self) -> None:
        self.page.locator(".react-flow__edge").first.wait_for(state="attached")

    def unfold(self, *layers: int) -> None:
        for layer in layers:
            self.node(f"L{layer}").locator(".rf-node-label").click()
            self.node(f"L{layer}.resid_pre").wait_for()
            self.fit()

    def fit(self) -> None:
        self.page.get_by_role("button", name="Fit View").click()
        self.at_rest()

    def at_rest(self) -> None:
        """Until nothing moves any more."""
        before = None
        while before != (before := self.node("embed").bounding_box()):
            self.page.wait_for_timeout(100)

    def middle(self, id: str) -> tuple[float, float]:
        box = self.node(id).bounding_box()
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def pull(self, source: str, target: str) -> None:
        """Draw a line as far as the target, and hold it there."""
        mouse, box = self.page.mouse, self.node(source).bounding_box()
        mouse.move(*self.middle(source))
        mouse.move(box["x"] + box["width"], box["y"] + box["height"] / 2, steps=3)
        mouse.down()
        mouse.move(box["x"] + box["width"] + 12, box["y"] + box["height"] / 2 + 4, steps=3)
        self.page.locator(".rf-handle-valid, .rf-handle-invalid").first.wait_for(state="attached")
        mouse.move(*self.middle(target), steps=8)

    def draw(self, source: str, target: str) -> None:
        self.pull(source, target)
        self.node(target).locator(".rf-handle-valid").wait_for()
        self.page.mouse.up()

    def await_interventions(self, n: int) -> None:
        self.desk.until(lambda: len(self.session.interventions) == n)
        self.desk.until(lambda: len(self.session.run.interventions) == n)
        self.desk.await_answer()
        self.desk.settle()

    def says(self, id: str) -> str:
        return self.node(id).locator(".rf-node-label").inner_text()

    def style(self, id: str, name: str, pseudo: str | None = None) -> str:
        return self.node(id).evaluate(
            "(node, [name, pseudo]) => getComputedStyle(node, pseudo)[name]", [name, pseudo]
        )


@pytest.fixture
def diagram(desk):
    return Diagram(desk)


def test_layers_are_folded_and_unfold_to_every_part(diagram):
    assert diagram.ids() == {"embed", "L0", "L1", "L2", "L3", "ln_final", "unembed", "turn0"}
    diagram.unfold(1, 2)
    wanted = {node.id for layer in (1, 2) for node in diagram.pane.graph.layer(layer)}
    assert wanted <= diagram.ids()
    diagram.node("L1").locator(".rf-node-label").click()
    diagram.node("L1.resid_pre").wait_for(state="detached")
    expect(diagram.node("L2.resid_pre")).to_be_visible()
    diagram.desk.button("Every layer to a card").click()
    diagram.node("L2.resid_pre").wait_for(state="detached")


def test_a_line_from_a_head_to_a_later_one_is_a_patch_and_every_picture_answers(diagram):
    session, desk = diagram.session, diagram.desk
    diagram.unfold(0, 2)
    before = session.run.loss
    output = diagram.says("unembed")
    diagram.draw("L0H3.z", "L2H2.z")
    diagram.await_interventions(1)
    assert session.interventions == [tp.Patch("L2H2.z", source="L0H3.z")]

    by_api = tp.Session(model=session.model, text=session.text, interventions=session.interventions).wait()
    assert np.array_equal(session.run.loss, by_api.run.loss)
    assert np.abs(session.run.loss - before).max() > 0.1
    expect(desk.rows).to_have_count(1)
    diagram.edge("patch 0").wait_for(state="attached")
    expect(diagram.node("L2H2.z")).to_be_visible()
    desk.until(lambda: "⇄" in diagram.style("L2H2.z", "content", "::after"))
    desk.until(lambda: diagram.says("unembed") != output)
    piece, probability = session.run.next_tokens(-1, 1)[0]
    assert f"{probability:.2f}  {visible([piece])[0][:14]}" in diagram.says("unembed")
    desk.page.get_by_role("tab", name="Attention").click()
    desk.expect_loss(session.run, session.baseline)


def test_targets_light_up_and_a_line_that_can_be_no_patch_says_why(diagram):
    session = diagram.session
    diagram.unfold(0, 1)
    diagram.pull("L1H0.z", "L0H2.z")
    lit = diagram.page.locator(".rf-handle-valid").evaluate_all(
        "all => all.map((each) => each.closest('.react-flow__node').dataset.id)"
    )
    # The others of its layer, which are read and written in one tensor; what is before it can't be reached.
    assert set(lit) == {f"L1H{head}.z" for head in range(1, session.model.spec.n_heads)}
    handle = diagram.node("L0H2.z").locator(".rf-handle-invalid")
    assert "not upstream" in handle.get_attribute("aria-label")
    diagram.page.mouse.up()
    expect(diagram.desk.warning.filter(has_text="not upstream")).to_be_visible()
    diagram.pull("L0H0.z", "L1.mlp_out")
    diagram.page.mouse.up()
    expect(diagram.desk.warning.filter(has_text="the target has shape")).to_be_visible()
    diagram.pull("L0H0.z", "L2")
    diagram.page.mouse.up()
    expect(diagram.desk.warning.filter(has_text="Unfold it")).to_be_visible()
    assert session.interventions == [] and diagram.page.locator(".react-flow__edge.patch").count() == 0


def test_a_line_can_follow_a_wire_that_is_there_already(diagram):
    diagram.unfold(1)
    diagram.draw("L1.resid_pre", "L1.resid_mid")
    diagram.await_interventions(1)
    assert diagram.session.interventions == [tp.Patch("L1.resid_mid", source="L1.resid_pre")]


def test_deleting_a_line_restores_the_baseline_and_wires_cannot_be_deleted(diagram):
    session = diagram.session
    diagram.unfold(0, 1)
    n_wires = diagram.page.locator(".react-flow__edge").count()
    diagram.draw("L0H0.z", "L1H1.z")
    diagram.await_interventions(1)
    assert not np.array_equal(session.run.loss, session.baseline.loss)
    diagram.edge("patch 0").locator(".react-flow__edge-textbg").click()
    diagram.page.keyboard.press("Delete")
    diagram.await_interventions(0)
    assert np.array_equal(session.run.loss, session.baseline.loss)
    expect(diagram.page.locator(".react-flow__edge")).to_have_count(n_wires)

    for selector in ('.react-flow__edge[data-id="L0>L1"]', '.react-flow__edge[data-id="embed>L0.resid_pre"]'):
        wire = diagram.page.locator(selector)
        if wire.count():
            wire.dispatch_event("click")
            diagram.page.keyboard.press("Delete")
    diagram.node("L1.attn_out").click()
    diagram.page.keyboard.press("Delete")
    diagram.page.wait_for_timeout(200)
    expect(diagram.page.locator(".react-flow__edge")).to_have_count(n_wires)
    expect(diagram.node("L1.attn_out")).to_be_visible()


def test_lines_agree_with_the_table_under_undo_redo_switching_off_and_deleting(diagram):
    session, desk = diagram.session, diagram.desk
    diagram.unfold(0, 1)
    diagram.draw("L0H0.z", "L1H1.z")
    diagram.await_interventions(1)
    line = diagram.edge("patch 0")
    line.wait_for(state="attached")
    diagram.page.keyboard.press("u")
    line.wait_for(state="detached")
    expect(desk.rows).to_have_count(0)
    diagram.page.keyboard.press("r")
    line.wait_for(state="attached")
    desk.rows.get_by_role("switch").click()
    diagram.page.locator(".react-flow__edge.patch.off").wait_for(state="attached")
    assert not session.interventions[0].enabled
    desk.until(lambda: "⇄" not in diagram.style("L1H1.z", "content", "::after"))
    desk.rows.get_by_role("button", name="Delete").click()
    line.wait_for(state="detached")


def test_from_text_b_a_part_can_be_patched_onto_itself(diagram):
    session, desk = diagram.session, diagram.desk
    words = session.text.split()
    desk.text_b.fill(" ".join([*words[:2], words[3], words[2], *words[4:]]))
    desk.until(lambda: session.text_b)
    diagram.unfold(1)
    switch = diagram.page.get_by_role("switch", name="Draw from text B")
    desk.until(switch.is_enabled)
    switch.check()
    desk.until(lambda: diagram.pane.controls.from_b.value)
    desk.settle()
    # Downstream too: the line comes from another run.
    diagram.draw("L1.mlp_out", "L1.resid_pre")
    diagram.await_interventions(1)
    diagram.draw("L1.attn_out", "L1.attn_out")
    diagram.await_interventions(2)
    assert session.interventions == [
        tp.Patch("L1.resid_pre", source="L1.mlp_out", text=session.text_b),
        tp.Patch("L1.attn_out", source="L1.attn_out", text=session.text_b),
    ]


def test_a_text_b_that_cannot_be_read_is_said_and_the_pictures_stay(diagram):
    session, desk = diagram.session, diagram.desk
    desk.text_b.fill("boat " * 900)
    desk.until(lambda: session.text_b)
    switch = diagram.page.get_by_role("switch", name="Draw from text B")
    desk.until(switch.is_enabled)
    switch.check()
    expect(desk.warning.filter(has_text="Text B: The text has")).to_be_visible()
    desk.text_b.fill("")
    desk.until(lambda: not diagram.pane.controls.from_b.value)


def test_a_single_position_can_be_patched_by_drawing(diagram):
    session, desk = diagram.session, diagram.desk
    diagram.unfold(1)
    diagram.node("L1.resid_pre").click()
    desk.until(lambda: session.selection == ["L1.resid_pre"])
    diagram.page.get_by_role("button", name="The residual stream of its layer").click()
    diagram.node("L1.resid_pre@0").wait_for()
    expect(diagram.page.locator(".react-flow__node-position")).to_have_count(session.run.n_pos)
    assert diagram.says("L1.resid_pre@1").split() == ["1", visible(session.run.tokens)[1]]
    diagram.fit()
    diagram.draw("L1.resid_pre@3", "L1.resid_pre@7")
    diagram.await_interventions(1)
    assert session.interventions == [tp.Patch("L1.resid_pre@7", source="L1.resid_pre@3")]
    desk.until(lambda: "⇄" in diagram.style("L1.resid_pre@7", "content", "::after"))


def test_several_parts_are_ablated_by_one_choice_of_the_menu_and_one_undo_brings_them_back(diagram):
    session, desk = diagram.session, diagram.desk
    diagram.unfold(1)
    diagram.node("L1H2.z").click()
    desk.until(lambda: session.selection == ["L1H2.z"])
    diagram.page.keyboard.down("Shift")
    diagram.node("L1.mlp_post").click()
    diagram.page.keyboard.up("Shift")
    desk.until(lambda: set(session.selection) == {"L1H2.z", "L1.mlp_post"})
    diagram.node("L1.mlp_post").click(button="right")
    diagram.page.get_by_role("menuitem", name="Zero", exact=True).click()
    diagram.await_interventions(2)
    assert set(session.interventions) == {tp.Ablate("L1H2.z"), tp.Ablate("L1.mlp_post")}
    for id in ("L1H2.z", "L1.mlp_post"):
        desk.until(lambda id=id: "⊘" in diagram.style(id, "content", "::after"))
    session_sheet = desk.board.sheet.sheet
    assert {"layer": 1, "head": 2, "state": "ablated"} in session_sheet.marks
    desk.button("↶ Undo").click()
    diagram.await_interventions(0)
    expect(diagram.page.get_by_role("menuitem")).to_have_count(0)


def test_keys_go_from_head_to_head_ablate_freeze_undo_and_redo(diagram):
    session, desk, keys = diagram.session, diagram.desk, diagram.page.keyboard
    diagram.unfold(1)
    diagram.node("L1H2.z").click()
    desk.until(lambda: session.head == (1, 2))
    for key, head in (
        ("ArrowDown", (1, 3)),
        ("ArrowRight", (2, 3)),
        ("ArrowUp", (2, 2)),
        ("ArrowLeft", (1, 2)),
    ):
        keys.press(key)
        desk.until(lambda head=head: session.head == head)
    place = diagram.node("L1H2.z").bounding_box()
    keys.press("a")
    diagram.await_interventions(1)
    assert session.interventions == [tp.Ablate("L1H2.z")]
    keys.press("a")
    diagram.await_interventions(0)
    keys.press("f")
    diagram.await_interventions(1)
    assert isinstance(session.interventions[0], tp.Freeze)
    keys.press("u")
    diagram.await_interventions(0)
    keys.press("r")
    diagram.await_interventions(1)
    keys.press("?")
    expect(diagram.page.get_by_role("dialog").get_by_text("undo", exact=True)).to_be_visible()
    diagram.page.keyboard.press("Escape")
    diagram.page.get_by_role("dialog").wait_for(state="hidden")
    # What is typed into a text is only typed.
    desk.text.click()
    keys.type("auf")
    desk.until(lambda: "auf" in session.text)
    desk.await_answer()
    assert len(session.interventions) == 1
    diagram.fit()
    assert diagram.node("L1H2.z").bounding_box()["width"] == pytest.approx(place["width"], rel=0.3)


def test_a_note_is_written_marked_listed_and_taken_away(diagram):
    session, desk, keys = diagram.session, diagram.desk, diagram.page.keyboard
    diagram.unfold(1)
    diagram.node("L1.mlp_out").click()
    desk.until(lambda: session.selection == ["L1.mlp_out"])
    keys.press("n")
    expect(diagram.page.get_by_placeholder("note, then Enter")).to_be_focused()
    keys.type("<b>here</b> it is\n")
    desk.until(lambda: session.notes)
    assert session.notes == [tp.Note("builtin", "L1.mlp_out", "<b>here</b> it is")]
    listed = diagram.page.get_by_role("list", name="Notes").get_by_role("listitem")
    expect(listed).to_contain_text("<b>here</b> it is")
    desk.until(lambda: "✎" in diagram.style("L1.mlp_out", "content", "::after"))
    diagram.desk.button("Every layer to a card").click()
    diagram.node("L1.mlp_out").wait_for(state="detached")
    desk.until(lambda: "✎" in diagram.style("L1", "content", "::after"))
    listed.get_by_role("button", name="L1.mlp_out", exact=True).click()
    diagram.node("L1.mlp_out").wait_for()
    listed.get_by_role("button", name="Delete the note on L1.mlp_out").click()
    expect(listed).to_have_count(0)
    assert session.notes == []


def test_what_is_to_be_seen_can_be_narrowed_by_layer_and_kind_and_a_part_found_by_name(diagram):
    desk = diagram.desk
    diagram.unfold(1)
    diagram.page.get_by_role("button", name="Norms", exact=True).click()
    diagram.node("L1.ln1").wait_for(state="detached")
    diagram.edge("L1.resid_pre>L1H0.q").wait_for(state="attached")
    diagram.page.get_by_role("button", name="Norms", exact=True).click()
    diagram.node("L1.ln1").wait_for()

    first = diagram.page.get_by_role("slider").first
    first.focus()
    diagram.page.keyboard.press("ArrowRight")
    diagram.node("L0").wait_for(state="detached")
    diagram.edge("embed>turn0").wait_for(state="attached")
    diagram.edge("turn0>L1.resid_pre").wait_for(state="attached")
    first.focus()
    diagram.page.keyboard.press("ArrowLeft")
    diagram.node("L0").wait_for()

    find = diagram.page.get_by_role("combobox", name="Find a part")
    find.fill("L3.mlp_o")
    diagram.page.get_by_role("option", name="L3.mlp_out", exact=True).click()
    desk.until(lambda: diagram.session.selection == ["L3.mlp_out"])
    expect(diagram.node("L3.mlp_out")).to_be_in_viewport()
    find.fill("L2")
    diagram.page.get_by_role("option", name="L2", exact=True).click()
    desk.until(lambda: diagram.session.selection == ["L2"])
    expect(diagram.node("L2")).to_be_in_viewport()


def test_a_part_that_is_no_head_is_shown_in_full_beside_the_graph(diagram):
    session, desk = diagram.session, diagram.desk
    diagram.unfold(1)
    diagram.node("L1.mlp_post").click()
    expect(diagram.page.locator(".big", has_text="L1.mlp_post")).to_be_visible()
    desk.settle()
    values = session.run.activation("L1.mlp_post")
    image = np.array(desk.figure("values")["values"][0]).reshape(len(values), -1)
    assert np.abs(image).max() == pytest.approx(np.abs(values).max(), rel=1e-5)
    row = values[min(session.position, session.run.n_pos - 1)]
    largest = diagram.page.locator(".piece:visible", has_text=re.compile(r"^N\d+$")).first
    expect(largest).to_have_text(f"N{int(np.abs(row).argmax())}")
    diagram.node("L1.ln2").click()
    expect(diagram.page.locator(".big", has_text="L1.ln2")).to_be_visible()
    desk.settle()
    mid = session.run.activation("L1.resid_mid")
    bridge = session.model.bridge
    eps = bridge.original_model.config.rms_norm_eps
    scale = np.sqrt((mid**2).mean(-1) + eps)
    desk.until(lambda: len(desk.figure("scale")["scale"]) == len(scale))
    np.testing.assert_allclose(desk.figure("scale")["scale"], scale, rtol=1e-4)


def test_pictures_follow_the_run(diagram):
    session, desk = diagram.session, diagram.desk
    diagram.unfold(2)
    desk.settle()

    def picture(id):
        return (
            diagram.node(id)
            .locator(".rf-node-content")
            .evaluate("each => getComputedStyle(each).backgroundImage")
        )

    def thumbnails(id):
        return picture(id).split(", ")[0]

    desk.until(lambda: picture("L3") != "none" and picture("L2.mlp_out") != "none")
    folded, head, early = picture("L3"), picture("L2H0.z"), thumbnails("L0")
    session_now = session.run
    diagram.node("L2.resid_pre").click()
    desk.until(lambda: session.selection == ["L2.resid_pre"])
    diagram.page.keyboard.press("a")
    desk.until(lambda: picture("L3") != folded and picture("L2H0.z") != head)
    assert session.run is not session_now and thumbnails("L0") == early


def test_contributions_are_what_zeroing_would_change_and_are_drawn_on_the_wires(diagram):
    session, desk = diagram.session, diagram.desk
    diagram.unfold(2)
    plain = diagram.edge("L2H0.z>L2.attn_out").locator(".react-flow__edge-path")
    width = lambda: float(plain.evaluate("e => getComputedStyle(e).strokeWidth").removesuffix("px"))  # noqa: E731
    assert width() == 1
    diagram.page.get_by_role("switch", name="Contributions").check()
    desk.until(lambda: diagram.pane.contributions.values)
    values = diagram.pane.contributions.values
    heads = tp.sweep(session, "heads", "z", "zero", estimate=True).result().array
    mlps = tp.sweep(session, "layers", "mlp_out", "zero", estimate=True).result().array
    assert values["L2H0.z"] == pytest.approx(-heads[2, 0]) and values["L1.mlp_out"] == pytest.approx(-mlps[1])
    top = max(np.abs(heads).max(), np.abs(mlps).max())
    desk.until(lambda: width() == pytest.approx(1 + 8 * abs(heads[2, 0]) / top, abs=0.06))
    diagram.page.get_by_role("switch", name="Contributions").uncheck()
    desk.until(lambda: width() == 1)


def test_another_model_brings_its_own_graph(diagram, random_directory):
    session, desk = diagram.session, diagram.desk
    diagram.unfold(1)
    session.inbox.post(lambda: session.load(str(random_directory("gpt_neox"))))
    desk.until(lambda: session.model is not None and session.model.spec.architecture == "GPTNeoXForCausalLM")
    desk.await_answer()
    diagram.node("L3").wait_for(state="detached")
    diagram.node("L2").wait_for()
    diagram.unfold(1)
    assert "L1.resid_mid" not in diagram.ids()
    for wire in ("L1.resid_pre>L1.ln2", "L1.mlp_out>L2", "L1.attn_out>L2", "L1.resid_pre>L2"):
        source = wire.split(">")[0]
        # On to the next layer, or to the turn of the row.
        edges = diagram.page.locator(f'.react-flow__edge[data-id^="{source}>"]')
        assert edges.count() >= 1
    assert session.selection == ["L{}H{}.z".format(*session.head)]
