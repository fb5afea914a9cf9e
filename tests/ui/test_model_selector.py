"""The model dialog in a browser: finding, describing, loading, cancelling; the last good picture always stays."""

import threading

import pytest
from playwright.sync_api import expect

import transpector as tp
from transpector.serve import FIRST_TEXT
from transpector.state import catalogue, measure, store
from transpector.state.errors import Cancelled

pytestmark = pytest.mark.browser


class Dialog:
    """The model dialog of a desk."""

    def __init__(self, desk):
        self.desk, self.root = desk, desk.page.get_by_role("dialog")
        self.name = self.root.get_by_role("combobox", name="Model")
        self.load = self.root.get_by_role("button", name="Load", exact=True)
        self.cancel = self.root.get_by_role("button", name="Cancel", exact=True)
        self.trouble = self.root.locator(".warning:visible")

    def open(self):
        self.desk.page.locator("button.model").click()
        expect(self.root).to_be_visible()
        expect(self.fact("architecture")).not_to_be_empty()
        return self

    def fact(self, what):
        return self.root.locator(f".what:text-is('{what}') + .much")

    def type(self, name):
        self.name.fill(name)
        self.name.press("Enter")

    def close(self):
        self.root.get_by_role("button", name="close").click()
        self.expect_closed()

    def expect_closed(self):
        expect(self.root).to_have_count(0)


@pytest.fixture
def dialog(desk):
    desk.await_answer()
    return Dialog(desk)


class SlowLoad:
    """A load that lasts until it is cancelled or let on, in place of the product's."""

    def __init__(self, monkeypatch):
        self.began, self.cancelled, self.goes_on = (threading.Event() for _ in range(3))
        load_model = store._import()
        monkeypatch.setattr(store, "_import", lambda: self.load)
        self._load_model = load_model

    def load(self, name, *, progress, cancelled, **options):
        progress("reading weights", 0.25)
        self.began.set()
        while not self.goes_on.wait(0.02):
            progress("reading weights", 0.5)
            if cancelled():
                self.cancelled.set()
                raise Cancelled
        return self._load_model(name, progress=progress, cancelled=cancelled, **options)


@pytest.fixture
def slow_load(monkeypatch):
    load = SlowLoad(monkeypatch)
    yield load
    load.goes_on.set()


def test_a_model_in_a_directory_is_described_then_loaded(dialog, random_directory, random_lm):
    desk, path, lm = dialog.desk, str(random_directory("llama")), random_lm("llama")
    desk.click_head(3, 7)  # the other model has fewer
    desk.button("Set it to zero").click()
    expect(desk.rows).to_have_count(1)
    spec = lm.spec
    dialog.open()
    expect(dialog.name).to_have_value("builtin")
    expect(dialog.fact("where")).to_have_text("in the box")
    dialog.type(path)
    expect(dialog.fact("where")).to_have_text("on this computer")
    expect(dialog.fact("architecture")).to_have_text("LlamaForCausalLM")
    heads = f"{spec.n_layers} × {spec.n_heads} ({spec.n_kv_heads} key-value heads)"
    expect(dialog.fact("layers × heads")).to_have_text(heads)
    expect(dialog.fact("context")).to_have_text(f"{spec.n_ctx} tokens")
    expect(dialog.fact("parameters")).to_have_text(f"{spec.n_params / 1e6:.1f} million")
    expect(dialog.fact("memory")).to_contain_text("free")
    dialog.load.click()
    dialog.expect_closed()
    expect(desk.page.locator("button.model .name")).to_have_text(path)
    wanted = tp.Session(lm, FIRST_TEXT).wait(60).run
    desk.expect_tokens(wanted)
    desk.expect_next(wanted)
    desk.expect_sheet(measure.thumbnails(wanted)[0])
    expect(desk.warning).to_contain_text("Switched off 1 of the interventions")
    expect(desk.rows.get_by_role("switch")).to_have_attribute("aria-checked", "false")
    assert desk.session.head == (spec.n_layers - 1, spec.n_heads - 1)
    # And back: it is loaded already, so the dialog only has to say so
    dialog.open()
    expect(dialog.name).to_have_value(path)
    dialog.type("builtin")
    dialog.load.click()
    dialog.expect_closed()
    expect(desk.page.locator("button.model .name")).to_have_text("builtin")


def test_a_name_that_was_typed_is_loaded_without_enter(dialog, random_directory):
    desk, path = dialog.desk, str(random_directory("gpt2"))
    dialog.open()
    dialog.name.fill(path)
    dialog.load.click()
    dialog.expect_closed()
    expect(desk.page.locator("button.model .name")).to_have_text(path)


def test_the_dialog_closes_by_escape_and_if_the_model_is_there_already(dialog):
    dialog.open()
    dialog.load.click()
    dialog.expect_closed()
    dialog.open()
    dialog.load.press("Escape")
    dialog.expect_closed()
    expect(dialog.desk.error).to_have_count(0)


def test_names_are_offered_as_they_are_typed(dialog):
    wanted = [entry.name for entry in catalogue.search("pythia-70m", 30)]
    assert "EleutherAI/pythia-70m" in wanted[:3]
    dialog.open()
    dialog.name.fill("")
    dialog.name.press_sequentially("Pythia-70m", delay=15)
    options = dialog.desk.page.locator("[role=option]:not(.token)")
    expect(options.first).to_have_text(wanted[0])
    assert set(options.all_text_contents()) <= set(wanted)
    options.filter(has_text="EleutherAI/pythia-70m").first.click()
    expect(dialog.name).to_have_value("EleutherAI/pythia-70m")
    expect(dialog.trouble).to_be_visible()  # it is not on this computer, and there is no internet


def test_an_unknown_name_is_told_in_the_dialog_and_the_picture_stays(dialog, builtin):
    desk = dialog.desk
    run = tp.Session(builtin, FIRST_TEXT).wait(60).run
    dialog.open()
    for name, words in [
        ("no-such-model", "No model is called no-such-model."),
        ("/nowhere/at/all", "Nothing is at /nowhere/at/all."),
        ("nobody/nothing-of-this-name", "nobody/nothing-of-this-name"),
        ("not a name", "not a name"),
    ]:
        dialog.type(name)
        expect(dialog.trouble).to_contain_text(words)
        expect(dialog.load).to_be_disabled()
    dialog.type("")
    expect(dialog.trouble).to_contain_text("The model's name is empty.")
    expect(desk.page.locator("button.model .name")).to_have_text("builtin")
    dialog.type("builtin")
    expect(dialog.fact("where")).to_have_text("in the box")
    expect(dialog.trouble).to_have_count(0)
    expect(dialog.load).to_be_enabled()
    dialog.close()
    desk.expect_sheet(measure.thumbnails(run)[0])
    desk.expect_next(run)
    expect(desk.error).to_have_count(0)


def test_a_load_that_fails_is_told_and_the_picture_stays(dialog, builtin, random_directory):
    """Weights that are cut short are found out only when they are read."""
    desk = dialog.desk
    run = tp.Session(builtin, FIRST_TEXT).wait(60).run
    path = random_directory("gptj")
    weights = path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    dialog.open()
    dialog.name.fill(str(path))  # not looked up before it is loaded
    dialog.load.click()
    expect(dialog.trouble).to_contain_text("safetensors")
    weights.write_bytes(whole)
    dialog.close()
    expect(desk.page.locator("button.model .name")).to_have_text("builtin")
    desk.expect_sheet(measure.thumbnails(run)[0])
    desk.click_head(0, 0)
    desk.button("Set it to zero").click()
    wanted = tp.Session(builtin, FIRST_TEXT, interventions=[tp.Ablate("L0H0.z")]).wait(60)
    desk.expect_metric(wanted.run.loss.mean(), wanted.baseline.loss.mean())
    expect(desk.error).to_have_count(0)


def test_a_load_shows_how_far_it_is_and_can_be_cancelled(dialog, slow_load, random_directory, builtin):
    desk, path = dialog.desk, str(random_directory("gemma2"))
    dialog.open()
    dialog.type(path)
    expect(dialog.fact("architecture")).to_have_text("Gemma2ForCausalLM")
    dialog.load.click()
    expect(dialog.root.get_by_text(f"Loading {path}: reading weights (50%)")).to_be_visible()
    expect(dialog.load).to_be_disabled()
    expect(desk.says).to_contain_text("reading weights")
    # The page goes on working meanwhile
    session = desk.session
    session.inbox.post(lambda: setattr(session, "interventions", [tp.Ablate("L0H0.z")]))
    wanted = tp.Session(builtin, FIRST_TEXT, interventions=[tp.Ablate("L0H0.z")]).wait(60)
    desk.expect_metric(wanted.run.loss.mean(), wanted.baseline.loss.mean())
    dialog.cancel.click()
    expect(dialog.load).to_be_enabled()
    expect(dialog.cancel).to_be_hidden()
    desk.until(slow_load.cancelled.is_set)
    expect(dialog.root.get_by_text("Loading")).to_have_count(0)
    expect(desk.page.locator("button.model .name")).to_have_text("builtin")
    expect(desk.says).to_contain_text(" tokens · 1 intervention")
    # The same load, not cancelled this time
    slow_load.goes_on.set()
    dialog.load.click()
    dialog.expect_closed()
    expect(desk.page.locator("button.model .name")).to_have_text(path)


def test_a_model_is_switched_in_mid_run(dialog, gate, random_directory, random_lm):
    """The run under way ends at its next layer, and nothing of it is shown."""
    desk, path = dialog.desk, str(random_directory("llama"))
    runs = []
    desk.session.param.watch(lambda event: runs.append(event.new), "run")
    old = desk.session.model
    closed = gate(old)
    desk.click_head(0, 1)
    desk.button("Set it to zero").click()
    desk.until(closed.reached.is_set)
    dialog.open()
    dialog.type(path)
    expect(dialog.fact("where")).to_have_text("on this computer")  # and all the rest of it with that
    dialog.load.click()
    dialog.expect_closed()
    wanted = tp.Session(random_lm("llama"), FIRST_TEXT, interventions=[tp.Ablate("L0H1.z")]).wait(60)
    desk.expect_tokens(wanted.run)
    desk.expect_metric(wanted.run.loss.mean(), wanted.baseline.loss.mean())
    closed.open()
    desk.until(lambda: old.worker.submit(lambda: True).result(60))
    desk.await_answer()
    desk.expect_metric(wanted.run.loss.mean(), wanted.baseline.loss.mean())
    assert {run.model.name for run in runs} == {path}
    assert not old.worker.queued
