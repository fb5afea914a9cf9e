"""A session answers its newest question, keeps the last good answer, and never blocks who asks."""

import gc
import queue
import threading
import time
import weakref
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from fresh import forget_runs

import transpector as tp
from random_models import random_model
from reference import forward
from transpector.state import models
from transpector.state.interventions import Question
from transpector.state.sites import Site
from transpector.state.store import ModelStore

TEXT = "The Eiffel Tower is in the city of"
OTHER = "my music is in the house of it"
WAIT = 60  # s; far more than anything here takes


@pytest.fixture
def lm(random_lm):
    lm = random_lm("llama")
    forget_runs(lm)
    return lm


@pytest.fixture
def session(lm):
    return tp.Session(model=lm, text=TEXT).wait(WAIT)


@pytest.fixture(scope="module")
def hf_model():
    return random_model("llama")


@pytest.fixture
def passes(monkeypatch):
    """The questions of the passes that the models make."""
    made, plain = [], models.forward

    def counted(model, question, **more):
        made.append(question)
        return plain(model, question, **more)

    monkeypatch.setattr(models, "forward", counted)
    return made


@dataclass(frozen=True)
class Gate(tp.Ablate):
    """An ablation that stops a pass until it is let go on."""

    def apply(self, whole, source):
        self.reached.set()
        assert self.go.wait(WAIT)
        return super().apply(whole, source)


@pytest.fixture
def gate():
    Gate.reached, Gate.go = threading.Event(), threading.Event()
    yield Gate("L1H0.z")
    Gate.go.set()


@pytest.fixture(autouse=True)
def store(monkeypatch):
    """A store of the test's own, in which no model lies yet."""
    monkeypatch.setattr("transpector.state.session.STORE", store := ModelStore())
    return store


@pytest.fixture
def slow_load(monkeypatch):
    """Loads go on only when ``go`` is set, and can be stopped; ``began`` lists them."""
    plain = models.load_model

    class Load:
        go, began, stopped = threading.Event(), [], []

    def load(name, *, cancelled, **more):
        Load.began.append(name)
        while not Load.go.wait(0.002):
            if cancelled():
                Load.stopped.append(name)
                raise models.Cancelled
        return plain(name, cancelled=cancelled, **more)

    monkeypatch.setattr(models, "load_model", load)
    yield Load
    Load.go.set()


def until(condition, seconds=WAIT):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.002)


def effects_of(session, n):
    until(lambda: len(session.wait(WAIT).effects) == n)
    return session.effects


def no_hooks(lm):
    points = lm.bridge.hook_dict.values()
    # After an answer the worker goes on to its effects.
    lm.worker.submit(lambda: None, priority=9).result(WAIT)
    return not any(point.fwd_hooks or point.bwd_hooks or point._forward_hooks for point in points)


def right(session, hf_model, write=None):
    """Whether the published logits are those of the plain forward pass."""
    reference = forward(hf_model, session.run.token_ids, write)
    return (session.run.logits - reference.logits).abs().max() <= 1e-4


# The question and the answer


def test_a_text_is_answered_with_a_run_and_a_baseline(session, hf_model):
    assert "".join(session.run.tokens) == TEXT
    assert session.run is session.baseline
    assert (session.state, session.error, session.note, session.effects) == ("idle", "", "", {})
    assert right(session, hf_model)


def test_an_intervention_changes_the_run_and_not_the_baseline(session, hf_model):
    before = session.baseline
    session.interventions = [tp.Ablate("L1H2.z")]
    session.wait(WAIT)

    def ablated(z):
        z[:, 2] = 0
        return z

    assert right(session, hf_model, {("z", 1): ablated})
    assert session.baseline is before
    assert session.run.interventions == (tp.Ablate("L1H2.z"),)


def test_a_session_without_a_model_is_empty_and_answers_once_it_has_one(lm):
    session = tp.Session(text=TEXT)
    assert session.wait(1).run is None and session.state == "empty"
    session.text_b = OTHER
    session.model = lm
    assert "".join(session.wait(WAIT).run.tokens) == TEXT


def test_a_session_can_be_made_with_a_whole_question(lm):
    ablate = tp.Ablate("L0H1.z")
    session = tp.Session(
        model=lm, token_ids=[5, 6, 7, 5, 6, 7], interventions=[ablate], metric=tp.Metric("log_prob", " city")
    )
    session.wait(WAIT)
    assert session.run.token_ids.tolist() == [5, 6, 7, 5, 6, 7]
    assert session.run.interventions == (ablate,)
    effect = effects_of(session, 1)[0]
    assert effect == pytest.approx(session.metric.of(session.run) - session.metric.of(session.baseline))


def test_the_bos_switch_puts_the_token_in_front(session):
    without = session.run.token_ids.tolist()
    session.bos = True
    assert session.wait(WAIT).run.token_ids.tolist() == [0, *without]
    session.bos = False
    assert session.wait(WAIT).run.token_ids.tolist() == without


def test_the_bos_switch_holds_for_the_text_of_a_patch_too(session, lm):
    session.param.update(bos=True, interventions=[tp.Patch("L1.z", "L1.z", OTHER)])
    session.wait(WAIT)
    other = lm.run(Question(lm.tokenize(OTHER, bos=True), (), True))
    assert (session.run.activation("L1.z") == other.activation("L1.z")).all()


def test_setting_a_text_clears_the_ids(session):
    session.token_ids = [5, 6, 7]
    assert session.wait(WAIT).run.token_ids.tolist() == [5, 6, 7]
    session.text = OTHER
    assert session.token_ids is None
    assert "".join(session.wait(WAIT).run.tokens) == OTHER


def test_asking_the_same_again_makes_no_pass(session, passes):
    session.interventions = [tp.Ablate("L1H2.z", enabled=False)]
    assert len(session.wait(WAIT).run.interventions) == 0
    session.interventions = []
    session.wait(WAIT)
    session.text, session.text = OTHER, TEXT
    session.wait(WAIT)
    assert passes == []


def test_a_new_name_makes_no_pass_and_asks_nothing(session, passes):
    session.interventions = [tp.Ablate("L1H2.z")]
    session.wait(WAIT)
    effects_of(session, 1)
    passes.clear()
    session.interventions = [tp.Ablate("L1H2.z", name="sink")]
    assert session.state == "idle" and session.interventions[0].name == "sink"
    session.wait(WAIT)
    assert passes == [] and len(session.effects) == 1


def test_parameters_change_on_one_thread_only(lm):
    session, threads = tp.Session(text=TEXT), set()
    session.param.watch(lambda *events: threads.add(threading.get_ident()), list(session.param))
    session.model = lm
    session.wait(WAIT)
    for n in range(5):
        session.interventions = [tp.Ablate(f"L0H{n % 4}.z")]
        session.wait(WAIT)
    effects_of(session, 1)
    assert threads == {threading.get_ident()}


# Typing and newest wins


def test_of_many_quick_texts_few_are_run_and_only_the_newest_is_published(session, passes):
    published = []
    session.param.watch(lambda event: published.append("".join(event.new.tokens)), "run")
    texts = [TEXT + " Rome"[:n] + "e" * max(0, n - 5) for n in range(1, 20)]
    for text in texts:
        session.text = text
        time.sleep(0.01)
    session.wait(WAIT)
    assert published == [texts[-1]]
    assert len(passes) <= 2 and Question(session.run.token_ids) in passes


def test_typing_waits_for_a_pause_and_a_click_does_not(session):
    began = time.monotonic()
    session.text = OTHER
    session.wait(WAIT)
    assert time.monotonic() - began >= 0.15
    session.interventions = [tp.Ablate("L0H0.z")]
    assert all(due <= time.monotonic() for _, due, *_ in list(session.model.worker._queue))
    session.wait(WAIT)


def test_a_question_that_was_overtaken_in_mid_run_is_never_published(session, gate, hf_model, lm):
    published = []
    session.param.watch(lambda event: published.append(event.new), "run")
    session.interventions = [gate]
    assert gate.reached.wait(WAIT)
    session.interventions = [tp.Ablate("L2.mlp_out")]
    gate.go.set()
    session.wait(WAIT)
    assert [run.interventions for run in published] == [(tp.Ablate("L2.mlp_out"),)]
    assert right(session, hf_model, {("mlp_out", 2): torch.zeros_like})
    assert no_hooks(lm)


def test_an_answer_that_arrives_late_is_not_taken_for_the_newest(session, lm):
    """It lies in the inbox, finished, when the next question is asked."""
    session.interventions = [tp.Ablate("L0H0.z")]
    until(lambda: session.inbox._posted)
    session.interventions = [tp.Ablate("L0H1.z")]
    assert session.wait(WAIT).run.interventions == (tp.Ablate("L0H1.z"),)


def test_a_pass_in_the_middle_shows_how_far_it_is(session, gate, monkeypatch):
    monkeypatch.setattr("transpector.state.session.PROGRESS_PAUSE", 0.0)
    told = []
    session.param.watch(lambda *events: told.append((session.state, session.progress)), ["state", "progress"])
    session.interventions = [gate]
    assert gate.reached.wait(WAIT)
    gate.go.set()
    session.wait(WAIT)
    assert told[0][0] == "queued"
    # The gate is in layer 1: the layer below is the baseline's.
    assert ("running", ("layer 2/3", 1 / 3)) in told and ("running", ("layer 3/3", 2 / 3)) in told
    assert ("running", ("layer 1/3", 0.0)) not in told
    assert told[-1] == ("idle", ("", None))


# Cancelling and failing


def test_cancelling_in_mid_run_keeps_the_last_answer_and_leaves_no_hooks(session, gate, lm, hf_model):
    before = session.run
    session.interventions = [gate]
    assert gate.reached.wait(WAIT)
    session.cancel()
    assert (session.state, session.progress) == ("idle", ("", None))
    assert session.wait(1).run is before
    gate.go.set()
    lm.worker.call(lambda: None)
    assert no_hooks(lm)
    assert session.wait(WAIT).run is before
    session.interventions = []
    assert right(session.wait(WAIT), hf_model)


def test_a_cancelled_question_can_be_asked_again(session, gate):
    session.interventions = [gate]
    assert gate.reached.wait(WAIT)
    session.cancel()
    gate.go.set()
    session.interventions = [gate]
    assert session.wait(WAIT).run.interventions == (gate,)


def test_an_error_inside_a_hook_is_told_logged_and_survived(session, lm, hf_model, monkeypatch, caplog):
    before = session.run

    def broken(self, whole, source):
        raise ZeroDivisionError("inside a hook")

    with monkeypatch.context() as patch:
        patch.setattr(tp.Ablate, "apply", broken)
        session.interventions = [tp.Ablate("L1.z")]
        with pytest.raises(ZeroDivisionError):
            session.wait(WAIT)
    assert session.error.startswith(
        "Something went wrong inside Transpector (ZeroDivisionError: inside a hook)."
    )
    assert "Traceback" in caplog.text and "inside a hook" in caplog.text
    assert session.run is before and session.state == "idle"
    assert no_hooks(lm)
    session.interventions = []
    assert session.wait(WAIT).error == ""
    assert right(session, hf_model)


MISTAKES = {
    "empty text": ({"text": ""}, "The text is empty. Type a few words."),
    "long text": (
        {"text": "a" * 1204},
        "The text has 1,204 tokens; this model reads at most 128. Shorten it.",
    ),
    "no ids": ({"token_ids": []}, "There is no token to read"),
    "ids outside": ({"token_ids": [1, 99_999]}, "Token id 99999 is outside this model's vocabulary of 512."),
    "layer": ({"interventions": [tp.Ablate("L9.z")]}, "this model has layers 0 to 2, not 9"),
    "head": ({"interventions": [tp.Ablate("L0H9.z")]}, "heads 0 to 3, not 9"),
    "position": ({"interventions": [tp.Ablate("L0.z@77")]}, "this text has positions 0 to 9, not 77"),
    "source position": (
        {"interventions": [tp.Patch("L2.z@0", "L1.z@77")]},
        "L1.z@77: this text has positions",
    ),
    "shapes": (
        {"interventions": [tp.Patch("L1.z", "L1.z", "Rome")]},
        "Use texts of the same number of tokens",
    ),
    "empty text b": ({"interventions": [tp.Patch("L1.z", "L1.z", "")]}, "The text is empty"),
}


@pytest.mark.parametrize(("question", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_and_loses_nothing(session, question, message):
    before = session.run
    session.param.update(**question)
    with pytest.raises(tp.TranspectorError) as raised:
        session.wait(WAIT)
    assert message in session.error and str(raised.value) == session.error
    assert session.run is before is session.baseline and session.state == "idle"
    session.param.update(text=OTHER, token_ids=None, interventions=[])
    assert session.wait(WAIT).error == ""
    assert "".join(session.run.tokens) == OTHER


STRANGE = [
    "<img src=x onerror=alert(1)>",
    "</script><script>",
    "a\x00b\x07\x1b[31m",
    "👩‍🚀 é",
    "שלום مرحبا",
    " ",
    "\n",
    "x",
]


@pytest.mark.parametrize("text", STRANGE, ids=ascii)
def test_strange_texts_are_read_as_any_other(session, hf_model, text):
    session.text = text
    session.wait(WAIT)
    assert session.error == "" and right(session, hf_model)
    assert session.model.text.decode(session.run.token_ids) == text


# Waiting


def test_wait_gives_up_after_its_timeout_and_can_be_asked_again(session, gate):
    session.interventions = [gate]
    with pytest.raises(TimeoutError, match=r"No answer after 0\.05 s"):
        session.wait(0.05)
    gate.go.set()
    assert session.wait(WAIT).run.interventions == (gate,)


def test_wait_raises_the_same_again_until_the_question_changes(session):
    session.interventions = [tp.Ablate("L9.z")]
    for _ in range(2):
        with pytest.raises(tp.SiteError):
            session.wait(WAIT)
    session.interventions = []
    session.wait(WAIT)


def test_wait_needs_nobody_to_do_what_was_scheduled(lm):
    never = queue.Queue()
    session = tp.Session(model=lm, text=TEXT, schedule=never.put)
    session.wait(WAIT)
    session.interventions = [tp.Ablate("L0H0.z")]
    session.wait(WAIT)
    assert session.run.interventions == (tp.Ablate("L0H0.z"),)
    assert not never.empty()
    while not never.empty():  # done late, it does no harm
        never.get()()
    assert session.run.interventions == (tp.Ablate("L0H0.z"),)


@pytest.fixture
def loop():
    """A thread that does what it is given, as a page's event loop does."""
    jobs = queue.Queue()

    def work():
        while (job := jobs.get()) is not None:
            job()

    thread = threading.Thread(target=work, name="loop", daemon=True)
    thread.start()
    yield jobs.put
    jobs.put(None)
    thread.join(WAIT)


def test_what_is_scheduled_happens_on_the_scheduled_thread(lm, loop):
    session, threads = tp.Session(text=TEXT, schedule=loop), set()
    loop(
        lambda: session.param.watch(
            lambda *events: threads.add(threading.current_thread().name), ["run", "effects"]
        )
    )
    loop(lambda: session.param.update(model=lm, interventions=[tp.Ablate("L0H0.z")]))
    until(lambda: session.run is not None)
    for n in range(1, 4):
        loop(lambda n=n: session.param.update(interventions=[tp.Ablate(f"L0H{n}.z")]))
        until(lambda n=n: session.interventions == [tp.Ablate(f"L0H{n}.z")])
        assert session.wait(WAIT).run.interventions == (tp.Ablate(f"L0H{n}.z"),)
    assert threads == {"loop"}


def test_wait_does_not_hang_if_the_scheduled_thread_waits_for_it(lm, loop):
    session = tp.Session(text=TEXT, schedule=loop)
    loop(lambda: session.param.update(model=lm))
    until(lambda: session.run is not None)
    held = threading.Event()
    loop(lambda: held.wait(WAIT))
    session.interventions = [tp.Ablate("L0H0.z")]
    assert session.wait(WAIT).run.interventions == (tp.Ablate("L0H0.z"),)
    held.set()


def test_asking_never_waits_for_a_busy_model(session, gate, lm):
    session.interventions = [gate]
    assert gate.reached.wait(WAIT)
    began = time.monotonic()
    session.interventions = [tp.Ablate("L0H0.z")]
    session.text = OTHER
    session.undo()
    session.load("/no/such/model")
    session.cancel()
    session.model = None
    session.model = lm
    assert time.monotonic() - began < 10 and not gate.go.is_set()


def test_a_watcher_may_ask_for_what_was_not_kept(lm):
    """It needs the worker, which may be handing over the next answer at that moment."""
    seen = []
    session = tp.Session(text=TEXT)
    session.param.watch(lambda event: seen.append(event.new.activation("L1.q").shape), "run")
    session.model = lm
    session.interventions = [tp.Ablate("L0H0.z")]
    session.wait(WAIT)
    for n in range(4):
        session.interventions = [tp.Ablate(f"L0H{n}.z"), tp.Ablate("L1H0.z")]
        session.wait(WAIT)
    assert set(seen) == {(10, 4, 12)}


def test_a_watcher_may_ask_the_next_question(session):
    asked = []

    def ask(event):
        if not asked:
            asked.append(event.new)
            session.interventions = [tp.Ablate("L1H1.z")]

    session.param.watch(ask, "run")
    session.interventions = [tp.Ablate("L0H0.z")]
    assert session.wait(WAIT).run.interventions == (tp.Ablate("L1H1.z"),)


def test_a_watcher_that_fails_is_not_swallowed_and_blocks_nothing(session):
    watcher = session.param.watch(lambda event: 1 / 0, "run")
    session.interventions = [tp.Ablate("L0H0.z")]
    with pytest.raises(ZeroDivisionError):
        session.wait(WAIT)
    session.param.unwatch(watcher)
    assert session.wait(WAIT).run.interventions == (tp.Ablate("L0H0.z"),)


# Freeze


def z(run, site="L1.z"):
    return run.activation(site)


def test_a_freeze_holds_its_value_while_the_text_changes(session):
    held = z(session.run)
    session.interventions = [tp.Freeze("L1.z")]
    assert (z(session.wait(WAIT).run) == held).all()
    session.text = OTHER
    session.wait(WAIT)
    assert (z(session.run) == held).all()
    assert np.abs(z(session.baseline) - held).max() > 1e-2


def test_a_freeze_holds_its_value_while_other_interventions_change(session):
    held = z(session.run)
    session.interventions = [tp.Freeze("L1.z")]
    session.add(tp.Ablate("L0.z"))
    assert (z(session.wait(WAIT).run) == held).all()
    session.interventions = [tp.Ablate("L0.mlp_out"), *session.interventions]
    assert (z(session.wait(WAIT).run) == held).all()


def test_a_freeze_set_upon_an_ablation_holds_the_ablated_value(session):
    session.interventions = [tp.Ablate("L0.z")]
    held = z(session.wait(WAIT).run)
    assert np.abs(z(session.baseline) - held).max() > 1e-2
    session.add(tp.Freeze("L1.z"))
    session.wait(WAIT)
    session.interventions = [i for i in session.interventions if isinstance(i, tp.Freeze)]
    assert (z(session.wait(WAIT).run) == held).all()


def test_a_freeze_set_at_once_after_the_text_holds_that_text_s_value(session, lm):
    session.text = OTHER
    session.interventions = [tp.Freeze("L1.z")]
    session.wait(WAIT)
    session.text = TEXT
    assert (z(session.wait(WAIT).run) == z(lm.run(Question(lm.tokenize(OTHER))))).all()


def test_a_freeze_given_with_the_session_holds_the_first_text_s_value(lm):
    session = tp.Session(model=lm, text=TEXT, interventions=[tp.Freeze("L1.z")]).wait(WAIT)
    held = z(session.baseline)
    session.text = OTHER
    assert (z(session.wait(WAIT).run) == held).all()


def test_a_freeze_set_before_there_is_a_model_holds_the_first_value(lm):
    session = tp.Session(text=TEXT)
    session.interventions = [tp.Ablate("L0H0.z"), tp.Freeze("L1.z")]
    session.model = lm
    held = z(session.wait(WAIT).baseline)
    session.text = OTHER
    assert (z(session.wait(WAIT).run) == held).all()
    assert all(i.held for i in session.interventions if isinstance(i, tp.Freeze))


def test_a_freeze_set_while_the_text_is_at_fault_holds_the_last_good_run_s_value(session):
    held = z(session.run)
    session.text = ""
    session.interventions = [tp.Freeze("L1.z")]
    with pytest.raises(tp.TextError):
        session.wait(WAIT)
    session.text = OTHER
    assert (z(session.wait(WAIT).run) == held).all()


def test_a_freeze_on_a_text_of_another_length_says_what_it_holds(session):
    held = z(session.run)
    session.interventions = [tp.Freeze("L1.z")]
    session.text = TEXT + " the city"
    run = session.wait(WAIT).run
    assert run.n_pos == 12 and (z(run)[:10] == held).all()
    assert run.notes == ("L1.z is held at positions 0 to 9: the frozen text has 10 tokens, this one 12.",)
    session.text = "The city"
    run = session.wait(WAIT).run
    assert (z(run) == held[: run.n_pos]).all()
    assert "at positions 0 to" in run.notes[0]


def test_switching_a_freeze_off_and_on_keeps_what_it_holds(session):
    held = z(session.run)
    session.interventions = [tp.Freeze("L1.z")]
    session.interventions = [replace(session.interventions[0], enabled=False)]
    session.text = OTHER
    assert np.abs(z(session.wait(WAIT).run) - held).max() > 1e-2
    session.interventions = [replace(session.interventions[0], enabled=True)]
    assert (z(session.wait(WAIT).run) == held).all()


def test_two_freezes_set_at_once_both_hold_what_was_before(session):
    before = session.run
    session.interventions = [tp.Freeze("L0.z"), tp.Freeze("L1.z")]
    session.text = OTHER
    run = session.wait(WAIT).run
    assert (z(run, "L0.z") == z(before, "L0.z")).all() and (z(run) == z(before)).all()


# Undo and redo


A, B, C = tp.Ablate("L0H0.z"), tp.Ablate("L0H1.z"), tp.Ablate("L0H2.z")


def test_undo_and_redo_go_through_the_lists_and_the_answers(session):
    assert not session.can_undo and not session.can_redo
    session.interventions = [A]
    session.add(B)
    session.undo()
    assert session.interventions == [A] and session.can_undo and session.can_redo
    assert session.wait(WAIT).run.interventions == (A,)
    session.undo()
    assert session.interventions == [] and not session.can_undo
    session.redo()
    session.redo()
    assert session.interventions == [A, B] and not session.can_redo
    assert session.wait(WAIT).run.interventions == (A, B)


def test_undo_and_redo_past_the_ends_change_nothing(session):
    session.undo()
    session.redo()
    assert session.interventions == []
    session.interventions = [A]
    session.redo()
    assert session.interventions == [A]


def test_a_new_intervention_cuts_off_what_was_undone(session):
    session.interventions = [A]
    session.interventions = [B]
    session.undo()
    session.interventions = [C]
    assert not session.can_redo
    session.undo()
    assert session.interventions == [A]


def test_names_order_and_switches_can_be_undone(session):
    session.interventions = [A, B]
    session.interventions = [replace(A, name="sink"), B]
    session.interventions = [B, replace(A, name="sink")]
    session.interventions = [B, replace(A, name="sink", enabled=False)]
    session.undo()
    assert session.interventions[1].enabled
    session.undo()
    assert session.interventions == [A, B] and session.interventions[0].name == "sink"
    session.undo()
    assert session.interventions[0].name == ""


def test_undoing_a_freeze_and_redoing_it_keeps_what_it_holds(session):
    held = z(session.run)
    session.interventions = [tp.Freeze("L1.z")]
    session.undo()
    session.text = OTHER
    session.wait(WAIT)
    session.redo()
    assert not session.can_redo
    assert (z(session.wait(WAIT).run) == held).all()


# Effects


def test_an_effect_is_the_metric_with_it_less_without_it(session, lm, hf_model):
    ids = lm.tokenize(TEXT)
    interventions = [
        tp.Ablate("L0H1.z"),
        tp.Ablate("L2.mlp_out"),
        tp.Ablate("L1H3.z", enabled=False),
        tp.Ablate("L1.attn_out"),
    ]
    session.interventions = interventions
    effects = effects_of(session, 3)

    def loss(places):
        write = {}
        for place in places:
            site = interventions[place].site

            def zero(whole, site=site):
                whole[site.index] = 0
                return whole

            write[site.tensor] = zero
        log_probs = forward(hf_model, ids, write).logits.double().log_softmax(-1)
        return -float(np.mean([float(log_probs[at, token]) for at, token in enumerate(ids[1:])]))

    whole = loss([0, 1, 3])
    expected = {0: whole - loss([1, 3]), 1: whole - loss([0, 3]), 3: whole - loss([0, 1])}
    assert effects == pytest.approx(expected, abs=1e-5)


def test_effects_follow_the_metric(session):
    session.interventions = [A]
    loss = effects_of(session, 1)[0]
    session.metric = tp.Metric("logit_diff", " city", " the")
    session.wait(WAIT)
    difference = effects_of(session, 1)[0]
    assert difference == pytest.approx(session.metric.of(session.run) - session.metric.of(session.baseline))
    assert difference != pytest.approx(loss)


def test_no_effect_of_another_question_stands_beside_an_intervention(session, gate):
    session.interventions = [A, tp.Ablate("L2.mlp_out")]
    effects_of(session, 2)
    shown = []
    session.param.watch(lambda *events: shown.append(dict(session.effects)), "run")
    session.interventions = [tp.Ablate("L2.mlp_out")]
    session.wait(WAIT)
    assert shown == [{}]
    assert set(effects_of(session, 1)) == {0}
    session.interventions = []
    assert session.wait(WAIT).effects == {}


def test_a_metric_that_can_t_be_measured_has_no_effects_and_spoils_nothing(session, lm):
    session.param.update(interventions=[A], metric=tp.Metric("log_prob", "no token of it"))
    session.wait(WAIT)
    lm.worker.call(lambda: None)
    time.sleep(0.05)
    assert session.wait(WAIT).effects == {} and session.error == ""
    assert session.run.interventions == (A,)


# Other models


def test_another_model_answers_the_same_text(session, random_lm):
    session.model = random_lm("gpt2")
    session.wait(WAIT)
    assert session.run.model is session.baseline.model is random_lm("gpt2")
    assert right(session, random_model("gpt2"))


def test_a_switch_of_model_in_mid_run_publishes_only_the_new_one_s(session, gate, lm, random_lm):
    published = []
    session.param.watch(lambda event: published.append(event.new.model), "run")
    session.interventions = [gate]
    assert gate.reached.wait(WAIT)
    session.model = random_lm("gpt2")
    gate.go.set()
    session.wait(WAIT)
    lm.worker.call(lambda: None)
    session.wait(WAIT)
    assert published == [random_lm("gpt2")]
    assert no_hooks(lm)


def test_a_switch_of_model_switches_off_what_does_not_fit(session, random_lm):
    session.head, session.position = (2, 3), 4
    session.interventions = [
        tp.Ablate("L2H3.z"),
        tp.Ablate("L1.resid_mid"),
        tp.Freeze("L1.z"),
        tp.Ablate("L0H5.z", enabled=False),
    ]
    session.wait(WAIT)
    session.model = random_lm("gpt_neox")
    session.wait(WAIT)
    assert [i.enabled for i in session.interventions] == [True, False, False, False]
    assert session.note == f"Switched off 2 of the interventions: they do not fit {session.model.name}."
    assert session.run.interventions == (tp.Ablate("L2H3.z"),)
    assert session.position == -1 and session.head == (2, 3)
    session.undo()
    session.redo()
    assert session.wait(WAIT).run.interventions == (tp.Ablate("L2H3.z"),), "undo must not bring it back"


def test_undo_after_a_switch_brings_back_no_freeze_of_the_old_model(session, random_lm):
    session.interventions = [tp.Freeze("L1.z")]
    session.add(tp.Ablate("L0H0.z"))
    session.model = random_lm("gpt2")
    session.undo()
    assert [(type(i), i.enabled) for i in session.interventions] == [(tp.Freeze, False)]
    assert session.wait(WAIT).run.interventions == ()


def test_ids_become_text_when_the_model_changes(lm, random_lm):
    ids = [0, *lm.tokenize("é of the city")]
    session = tp.Session(model=lm, token_ids=ids).wait(WAIT)
    session.model = random_lm("gpt2")
    session.wait(WAIT)
    assert (session.text, session.token_ids) == ("é of the city", None)
    assert session.run.token_ids.tolist() == ids[1:]


def test_a_model_is_loaded_by_name_in_the_background(session, random_directory, slow_load):
    before = session.run
    session.load(str(random_directory("gpt2")), dtype="float32")
    assert session.loading[0].startswith(str(random_directory("gpt2")))
    session.text = OTHER
    until(lambda: session.inbox.drain() or session.run is not before)
    assert session.run.model is before.model, "the old model answers meanwhile"
    slow_load.go.set()
    session.wait(WAIT)
    assert session.run.model is session.model is not before.model
    assert session.loading == ("", None) and "".join(session.run.tokens) == OTHER


def test_a_session_may_begin_with_a_name(random_directory):
    session = tp.Session(model=str(random_directory("gpt2")), text=TEXT)
    assert session.model is None and session.state == "empty"
    assert session.wait(WAIT).run.model is session.model


def test_a_load_tells_how_far_it_is(random_directory, monkeypatch):
    monkeypatch.setattr("transpector.state.session.PROGRESS_PAUSE", 0.0)
    name, told = str(random_directory("gpt2")), []
    session = tp.Session(text=TEXT)
    session.param.watch(lambda event: told.append(event.new[0]), "loading")
    session.load(name, dtype="bfloat16")
    session.wait(WAIT)
    assert told[0] == name and told[-1] == ""
    assert f"{name}: testing what can be changed" in told


def test_progress_that_comes_before_the_request_returns_does_no_harm(monkeypatch, lm):
    """A loading thread may be quicker than the thread that started it."""
    from transpector.state import session as module

    class Eager:
        def request(self, name, device, dtype, listener):
            listener("reading", 0.5)
            loading = module.Loading((name, device, dtype))
            loading.listen(listener)
            loading.model.set_result(lm)
            return loading

    monkeypatch.setattr(module, "STORE", Eager())
    for schedule in (None, lambda function: function()):
        session = tp.Session(model="a", text=TEXT, schedule=schedule)
        assert session.wait(WAIT).run.model is lm


@pytest.mark.parametrize("name", ["no-such-model-anywhere", "/no/such/directory", ""])
def test_a_model_that_can_t_be_loaded_leaves_everything_as_it_was(session, name):
    before = session.run
    session.load(name)
    with pytest.raises(tp.ModelError):
        session.wait(WAIT)
    assert session.error and session.loading == ("", None)
    assert session.run is before and session.model is before.model
    session.text = OTHER
    assert session.wait(WAIT).error == ""
    assert "".join(session.run.tokens) == OTHER


def test_a_cancelled_load_stops_and_the_old_model_stays(session, slow_load, random_directory):
    before = session.run
    session.load(str(random_directory("gpt2")))
    until(lambda: slow_load.began)
    session.cancel()
    assert session.loading == ("", None)
    assert session.wait(1).run is before and session.model is before.model
    until(lambda: slow_load.stopped)
    session.interventions = [A]
    assert session.wait(WAIT).run.interventions == (A,)


def test_of_two_loads_the_later_wins(session, slow_load, random_directory):
    first, second = (str(random_directory(kind)) for kind in ("gpt2", "opt"))
    session.load(first)
    session.load(second)
    until(lambda: len(slow_load.began) == 2)
    slow_load.go.set()
    assert session.wait(WAIT).model.name.endswith("opt")
    until(lambda: not any(thread.name.startswith("load ") for thread in threading.enumerate()))
    session.wait(WAIT)
    assert session.run.model.name.endswith("opt")


def test_a_model_set_by_hand_ends_a_load_under_way(session, slow_load, random_directory, random_lm):
    session.load(str(random_directory("opt")))
    session.model = random_lm("gpt2")
    assert session.loading == ("", None)
    slow_load.go.set()
    session.wait(WAIT)
    until(lambda: not any(thread.name.startswith("load ") for thread in threading.enumerate()))
    assert session.wait(WAIT).model is random_lm("gpt2")


# Several sessions, and none


def test_two_sessions_on_one_model_are_independent(lm, hf_model):
    first, second = (tp.Session(model=lm, text=text) for text in (TEXT, OTHER))
    first.interventions = [tp.Ablate("L2.mlp_out")]
    second.interventions = [tp.Ablate("L1.attn_out")]
    second.head = (1, 1)
    first.wait(WAIT)
    second.wait(WAIT)
    assert right(first, hf_model, {("mlp_out", 2): torch.zeros_like})
    assert right(second, hf_model, {("attn_out", 1): torch.zeros_like})
    assert first.head == (0, 0) and first.text == TEXT
    second.interventions = [tp.Ablate("L9.z")]
    with pytest.raises(tp.SiteError):
        second.wait(WAIT)
    first.undo()
    assert first.wait(WAIT).error == "" and right(first, hf_model)


def test_cancelling_one_session_does_not_stop_another_s_run(lm, gate):
    first, second = (tp.Session(model=lm, text=text).wait(WAIT) for text in (TEXT, OTHER))
    first.interventions = [gate]
    assert gate.reached.wait(WAIT)
    second.interventions = [A]
    first.cancel()
    gate.go.set()
    assert second.wait(WAIT).run.interventions == (A,)


def test_two_sessions_that_wait_for_one_load_may_leave_it_apart(slow_load, random_directory):
    name = str(random_directory("gpt_neox"))
    first, second = tp.Session(text=TEXT), tp.Session(text=TEXT)
    first.load(name)
    second.load(name)
    first.cancel()
    slow_load.go.set()
    assert second.wait(WAIT).run is not None
    assert first.wait(WAIT).model is None
    assert slow_load.began == [name]


def test_a_closed_session_stops_reports_nothing_and_lets_go_of_the_model(lm, gate, passes):
    reports = []
    session = tp.Session(model=lm, text=TEXT, schedule=reports.append)
    session.wait(WAIT)
    session.interventions = [gate]
    assert gate.reached.wait(WAIT)
    gone = weakref.ref(session.baseline)
    session.close()
    reports.clear()
    passes.clear()
    gate.go.set()
    lm.worker.call(lambda: None)
    assert reports == [] and passes == []
    assert session.run is None and session.model is None
    forget_runs(lm)
    gc.collect()
    assert gone() is None


def test_a_closed_session_leaves_the_load_it_waited_for(slow_load, random_directory):
    session = tp.Session(text=TEXT)
    session.load(str(random_directory("opt")) + "/")
    until(lambda: slow_load.began)
    session.close()
    until(lambda: slow_load.stopped)


def test_a_session_that_is_dropped_in_mid_run_harms_nobody(lm, gate, hf_model):
    session = tp.Session(model=lm, text=TEXT, interventions=[gate])
    assert gate.reached.wait(WAIT)
    gone = weakref.ref(session)
    del session
    gate.go.set()
    lm.worker.call(lambda: None)
    until(lambda: gc.collect() is not None and gone() is None)
    assert right(tp.Session(model=lm, text=OTHER).wait(WAIT), hf_model)


@pytest.mark.parametrize("site", ["L1.q", "L1.scores", "L1H0.k"])
def test_what_was_not_kept_is_read_under_the_same_interventions(session, hf_model, site):
    session.interventions = [tp.Ablate("L0.mlp_out")]
    value = session.wait(WAIT).run.activation(site)
    site = Site.parse(site)
    expected = forward(hf_model, session.run.token_ids, {("mlp_out", 0): torch.zeros_like})
    expected = expected.activations[site.tensor][site.index].numpy()
    assert np.abs(np.maximum(value, -1e9) - np.maximum(expected, -1e9)).max() <= 1e-4


def test_what_is_selected_and_the_selected_head_agree(random_lm):
    session = tp.Session(model=random_lm("llama"), text="the cat").wait()
    assert session.selection == ["L0H0.z"]
    session.head = (2, 1)
    assert session.selection == ["L2H1.z"]
    session.selection = ["L1H3.z", "L1.mlp_out"]
    assert session.head == (1, 3)
    assert [str(site) for site in session.sites] == ["L1H3.z", "L1.mlp_out"]
    session.selection = ["L1.ln1", "L1", "nothing", "L2.resid_pre@1"]
    assert session.head == (1, 3)
    assert [str(site) for site in session.sites] == ["L2.resid_pre@1"]


def test_a_note_is_of_one_part_of_one_model(random_lm):
    session = tp.Session(model=random_lm("llama"), text="the cat").wait()
    name = session.model.name
    session.annotate("L1.mlp_out", "  first ")
    session.annotate("L0H0.z", "second")
    session.annotate("L1.mlp_out", "third")
    assert session.notes == [tp.Note(name, "L0H0.z", "second"), tp.Note(name, "L1.mlp_out", "third")]
    session.annotate("L0H0.z", " ")
    assert session.notes == [tp.Note(name, "L1.mlp_out", "third")]
    session.model = random_lm("gpt2")
    session.annotate("L1.mlp_out", "of another")
    assert len(session.notes) == 2
    with pytest.raises(tp.ModelError):
        tp.Session().annotate("L0H0.z", "nowhere")


def test_a_selected_neuron_or_dimension_is_a_site_and_what_this_model_lacks_is_none(random_lm):
    session = tp.Session(model=random_lm("llama"))
    session.selection = ["L1N5.mlp_post", "L1N999.mlp_post", "L9.mlp_out", "L1", "L2.mlp_out"]
    assert list(map(str, session.sites)) == ["L1N5.mlp_post", "L2.mlp_out"]
    session.selection = ["L2D37.resid_pre", "D7.embed", "L1D48.resid_pre", "L9D3.resid_pre", "L2.resid_pre"]
    assert list(map(str, session.sites)) == ["L2D37.resid_pre", "D7.embed", "L2.resid_pre"]
