"""The search by token on the page: what is listed is what the API finds, and it can be stopped and clicked."""

import re

import numpy as np
import pytest
from playwright.sync_api import expect

import transpector as tp

pytestmark = pytest.mark.browser


@pytest.fixture
def search(desk):
    desk.page.get_by_role("tab", name="Search").click()
    return desk


def look_for(desk, token):
    field = desk.page.get_by_label("Token", exact=True).locator("visible=true")
    field.fill(token)
    field.press("Enter")


def found(desk):
    pane = desk.board.late["Search"]
    desk.until(lambda: pane.writers is not None and pane.writers.is_over)
    said = "layers in" if pane.writers.state == "done" else "Stopped after"
    expect(desk.page.get_by_text(said)).to_be_visible()  # and with it the last of the rows
    desk.settle()
    return pane.writers


def listed(desk, kind):
    lines = desk.page.get_by_role("group", name=f"{kind.capitalize()}s").locator("button.row")
    return lines.locator(".site").all_text_contents(), lines.locator(
        ".number:not(.estimate)"
    ).all_text_contents()


@pytest.mark.parametrize(("rank", "column"), [("On this text", "here"), ("By weights", "weight")])
def test_heads_and_neurons_are_ranked_as_the_api_finds_them(search, rank, column):
    token = search.session.run.tokens[3]
    look_for(search, token)
    found(search)
    search.choose("Rank by", rank)
    expected = tp.writers(search.session, token).result(60).frame
    for kind in ("head", "neuron"):
        best = (
            expected[expected.kind == kind]
            .sort_values(column, key=lambda n: -n.abs(), kind="stable")
            .head(20)
        )
        parts = [re.sub(r"\.\w+$", "", part) for part in best.part]
        search.until(lambda kind=kind, parts=parts: listed(search, kind)[0] == parts)
        numbers = [float(number.replace("−", "-")) for number in listed(search, kind)[1]]
        assert np.allclose(numbers, best[column], rtol=6e-3, atol=1e-6)


def test_a_click_selects_what_was_found(search):
    look_for(search, search.session.run.tokens[3])
    found(search)
    neuron = search.page.get_by_role("group", name="Neurons").locator("button.row").first
    name = neuron.locator(".site").inner_text()
    neuron.click()
    search.until(lambda: search.session.selection == [f"{name}.mlp_post"])
    expect(neuron).to_have_attribute("aria-pressed", "true")
    search.page.get_by_role("tab", name="Neurons", exact=True).click()
    expect(
        search.page.get_by_text(f"neuron {name.partition('N')[2]} of 384").locator("visible=true").first
    ).to_be_visible()
    search.page.get_by_role("tab", name="Search", exact=True).click()
    head = search.page.get_by_role("group", name="Heads").locator("button.row").first
    layer, number = re.fullmatch(r"L(\d+)H(\d+)", head.locator(".site").inner_text()).groups()
    head.click()
    search.until(lambda: search.session.head == (int(layer), int(number)))


def test_it_can_be_stopped_and_what_is_known_stays(search, gate):
    model = search.session.model
    search.session.model.worker.submit(lambda: None).result()
    held = gate(model, 0)
    # The first thing that a search asks of the model waits at the gate, or the worker before it.
    busy = model.worker.submit(lambda: held._open.wait(60))
    look_for(search, search.session.run.tokens[3])
    expect(search.button("Stop here; what is known stays")).to_be_enabled()
    search.button("Stop here; what is known stays").click()
    held.open()
    busy.result(60)
    writers = found(search)
    assert writers.state == "cancelled" and writers.done < writers.total
    expect(search.page.get_by_text("Stopped after")).to_be_visible()


def test_what_is_no_token_is_refused_and_another_text_ages_what_was_found(search, random_directory):
    look_for(search, "two words that are no token")
    expect(search.page.get_by_text("tokens", exact=False).filter(has_text="not one")).to_be_visible()
    look_for(search, search.session.run.tokens[3])
    found(search)
    search.change(text="something else")
    search.await_answer()
    expect(search.page.get_by_text("search again")).to_be_visible()
    search.session.inbox.post(lambda: search.session.load(str(random_directory("gpt2"))))
    search.until(lambda: search.session.model.spec.n_layers == 3)
    expect(search.page.get_by_text("Type a token, such as")).to_be_visible()
