"""Steering, skipping, continuing and chatting, on the real page: what is shown is what the API says."""

import io

import numpy as np
import pytest
from playwright.sync_api import expect

import random_models
import transpector as tp
from transpector.components.base import visible

pytestmark = pytest.mark.browser


def fill(desk, label, text):
    desk.page.get_by_label(label, exact=True).fill(text)


def flow(desk, which):
    """The tokens of a continuation on the page, quiet dots and all."""
    return desk.page.get_by_role("log", name=f"Continuation, {which}").locator(".token")


def open_generate(desk, n, temperature=0):
    desk.page.get_by_role("tab", name="Generate").click()
    desk.until(lambda: "Generate" in desk.board.late)
    pane = desk.board.late["Generate"]
    desk.fill_number("New tokens", pane.n_tokens, n)
    desk.fill_number("Temperature", pane.temperature, temperature)


def generated(desk):
    pane = desk.board.late["Generate"]
    desk.until(lambda: pane.now.generation is not None and not pane.busy)
    return pane.now.generation, pane.before.generation


def steer_towards(desk, token):
    desk.choose("Do", "Steer")
    desk.choose("Direction", "Token: unembedding")
    fill(desk, "Token", token)
    desk.button("Add").click()
    desk.until(lambda: len(desk.session.interventions) == 1)
    desk.await_answer()


def test_a_token_is_steered_towards_and_its_strength_slides(desk):
    token = desk.session.run.tokens[3]
    steer_towards(desk, token)
    (steer,) = desk.session.interventions
    assert steer.direction == tp.TokenVector(token) and steer.strength > 0
    assert steer.site.kind == "resid_pre"
    slider = desk.page.get_by_role("slider", name=f"Strength of {steer.site}")
    expect(slider).to_be_visible()
    box = slider.bounding_box()
    desk.page.mouse.move(box["x"] + box["width"] * 0.62, box["y"] + box["height"] / 2)
    desk.page.mouse.down()
    for share in (0.7, 0.8, 0.9):
        desk.page.mouse.move(box["x"] + box["width"] * share, box["y"] + box["height"] / 2)
        desk.page.wait_for_timeout(120)
    desk.page.mouse.up()
    desk.until(lambda: desk.session.interventions[0].strength > 1.5 * steer.strength)
    desk.page.wait_for_timeout(200)
    desk.await_answer()
    (stronger,) = desk.session.interventions
    run = desk.session.model.run(tp.Question(desk.session.question.token_ids, (stronger,)))
    desk.expect_metric(run.loss.mean(), desk.session.baseline.loss.mean())
    expect(desk.rows.first).to_contain_text(stronger.what[:6])
    desk.page.get_by_role("button", name="↶ Undo").click()
    desk.until(lambda: desk.session.interventions == [steer])
    expect(slider).to_have_value(
        f"{float(slider.get_attribute('step')) * round(steer.strength / float(slider.get_attribute('step'))):g}"
    )
    desk.page.get_by_role("button", name="↶ Undo").click()
    desk.until(lambda: desk.session.interventions == [])


def test_a_difference_of_texts_and_a_saved_vector_are_directions_too(desk):
    desk.choose("Do", "Steer")
    desk.button("Add").click()
    expect(desk.warning.filter(has_text="wants two texts")).to_be_visible()
    fill(desk, "Towards", "The old man")
    fill(desk, "Away from", "The young girl")
    desk.button("Add").click()
    desk.until(lambda: len(desk.session.interventions) == 1)
    assert desk.session.interventions[0].direction == tp.Difference("The old man", "The young girl")
    desk.choose("Direction", "Saved vector (.npy)")
    saved = io.BytesIO()
    np.save(saved, np.full(desk.session.model.spec.d_model, 0.5, np.float32))
    desk.page.locator("input[type=file]").set_input_files(
        {"name": "mine.npy", "mimeType": "application/octet-stream", "buffer": saved.getvalue()}
    )
    desk.until(lambda: desk.board.form.direction.file.value is not None)
    desk.button("Add").click()
    desk.until(lambda: len(desk.session.interventions) == 2)
    direction = desk.session.interventions[1].direction
    assert direction.label == "mine.npy" and set(direction.values) == {0.5}
    desk.page.locator("input[type=file]").set_input_files(
        {"name": "bad.npy", "mimeType": "application/octet-stream", "buffer": b"\x80\x04no array"}
    )
    desk.until(lambda: desk.board.form.direction.file.filename == "bad.npy")
    desk.button("Add").click()
    expect(desk.warning.filter(has_text="bad.npy holds no vector")).to_be_visible()


def test_layers_are_skipped_and_their_heads_struck(desk):
    desk.choose("Do", "Skip layers")
    desk.fill_number("First layer", desk.board.form.first, 1)
    desk.fill_number("Last layer", desk.board.form.last, 2)
    desk.button("Add").click()
    desk.until(lambda: desk.session.interventions == [tp.Skip(1, 2)])
    desk.await_answer()
    run = desk.session.model.run(tp.Question(desk.session.question.token_ids, (tp.Skip(1, 2),)))
    desk.expect_metric(run.loss.mean(), desk.session.baseline.loss.mean())
    expect(desk.rows.first).to_contain_text("L1–L2")
    marks = desk.board.sheet.sheet.marks
    assert {(mark["layer"], mark["state"]) for mark in marks} == {(1, "ablated"), (2, "ablated")}


def test_both_continuations_are_what_the_api_says_and_one_is_inspected(desk):
    session = desk.session
    steer_towards(desk, session.run.tokens[3])
    open_generate(desk, 12)
    desk.button("Generate").click()
    now, before = generated(desk)
    for which, shown, baseline in (("now", now, False), ("baseline", before, True)):
        expected = tp.generate(session, 12, baseline=baseline).result(60)
        assert shown.new_ids == expected.new_ids
        expect(flow(desk, which)).to_have_text(visible(expected.tokens), use_inner_text=False)
        title = flow(desk, which).first.get_attribute("title")
        assert f"probability {expected.probabilities[0]:.3f}" in title
    assert now.new_ids != before.new_ids
    expect(desk.page.locator(".token.parted")).to_have_count(1)
    desk.button("Read this text, with what was generated, in every view").first.click()
    desk.until(lambda: tuple(session.run.token_ids) == now.token_ids)
    desk.expect_tokens(session.run)
    desk.change(text="something else")
    expect(desk.page.get_by_text("This continues the text and interventions before")).to_be_visible()


def test_a_long_continuation_is_stopped_and_what_there_is_stays(desk):
    open_generate(desk, 4000, temperature=1)
    desk.button("Generate").click()
    expect(flow(desk, "now").nth(3)).to_be_visible()
    desk.button("Stop here; what there is stays").click()
    now, before = generated(desk)
    assert now.state == "cancelled" and 4 <= now.done < 4000 and before is None
    expect(flow(desk, "now")).to_have_count(now.done)
    expect(desk.page.get_by_text("Stopped after")).to_be_visible()


def test_another_model_ends_what_is_being_said(desk, random_directory):
    open_generate(desk, 4000, temperature=1)
    desk.button("Generate").click()
    expect(flow(desk, "now").nth(3)).to_be_visible()
    generation = desk.board.late["Generate"].now.generation
    desk.session.load(str(random_directory("llama")))
    desk.until(lambda: desk.session.model.spec.n_layers == 3)
    assert generation.state == "cancelled"
    expect(flow(desk, "now")).to_have_count(0)
    desk.await_answer()
    desk.button("Generate").click()
    now, _ = generated(desk)
    assert now.model is desk.session.model and now.ended in ("context", "end of text")


def test_it_is_generated_again_at_every_change_if_that_is_wanted(desk):
    open_generate(desk, 5)
    desk.page.get_by_role("switch", name="Again at every change").check()
    desk.button("Generate").click()
    first, _ = generated(desk)
    desk.add(tp.Ablate("L0.mlp_out"))
    desk.until(lambda: generated(desk)[0] is not first)
    now, before = generated(desk)
    assert now.question.interventions == (tp.Ablate("L0.mlp_out"),)
    assert before.new_ids == first.new_ids != now.new_ids


@pytest.fixture
def chat_directory(tmp_path):
    tokenizer = random_models.tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}> {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    random_models.random_model("llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_a_chat_is_edited_message_by_message(open_desk, chat_directory):
    desk = open_desk(str(chat_directory))
    desk.change(text="the city")
    desk.await_answer()
    desk.page.get_by_role("switch", name="Chat").check()
    desk.until(lambda: desk.session.text == "<user> the city<assistant>")
    area = desk.page.get_by_label("Message 1, user")
    area.fill("the river of Paris")
    desk.until(lambda: desk.session.text == "<user> the river of Paris<assistant>")
    desk.page.get_by_role("button", name="Add a message").click()
    desk.page.get_by_label("Message 2, assistant").type("It is")
    desk.until(lambda: desk.session.text == "<user> the river of Paris<assistant> It is")
    desk.page.get_by_label("Role of message 1").select_option("system")
    desk.until(lambda: desk.session.text.startswith("<system>"))
    desk.await_answer()
    desk.expect_tokens(desk.session.run)
    desk.page.get_by_role("button", name="Delete message 2").click()
    desk.until(lambda: len(desk.session.messages) == 1)
    desk.page.get_by_label("Role of message 1").select_option("user")
    desk.until(lambda: desk.session.messages[0].role == "user")
    desk.page.get_by_role("switch", name="Chat").uncheck()
    desk.until(lambda: desk.session.messages == [] and desk.session.text == "the river of Paris")


def test_a_model_without_a_template_has_its_chat_greyed_out(desk):
    expect(desk.page.get_by_role("switch", name="Chat")).to_be_disabled()
