"""A pass does only the layers that a change can reach, and gives to the bit what a whole pass gives."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from fresh import forget_runs

import transpector as tp
from random_models import KINDS
from scaled import Scaled
from transpector.state.interventions import Question
from transpector.state.run import forward

IDS = (3, 4, 5, 6, 7, 8, 9, 3)


@pytest.fixture(params=KINDS)
def lm(request, random_lm):
    lm = random_lm(request.param)
    forget_runs(lm)
    yield lm
    forget_runs(lm)


@contextmanager
def blocks_done(lm):
    """The layers whose attention was done, in order."""
    done = []
    hooks = [
        block.attn.register_forward_hook(lambda *call, layer=layer: done.append(layer))
        for layer, block in enumerate(lm.stack.blocks)
    ]
    yield done
    for hook in hooks:
        hook.remove()


def whole(lm, question):
    """The same by a pass from the first layer, remembering nothing."""
    sources, _ = lm.worker.call(lambda: lm.sources(question, question.interventions))
    return lm.worker.call(lambda: forward(lm, question, sources=sources))


def same(run, other):
    assert torch.equal(run.logits, other.logits)
    for address in other.activations:
        assert torch.equal(run.activations[address], other.activations[address]), address


def answer(lm, *interventions):
    return lm.run(Question(IDS, interventions))


# Each is answered after those before it; with the layer that it must begin at.
CHANGES = [
    (0, []),
    (2, [tp.Ablate("L2H1.z")]),
    (1, [tp.Ablate("L1.mlp_out", "mean"), tp.Ablate("L2H1.z")]),
    (2, [tp.Ablate("L1.mlp_out", "mean")]),
    (2, [tp.Ablate("L1.mlp_out", "mean"), tp.Patch("L2.attn_out@3", source="L1.mlp_out@1")]),
    (1, [tp.Ablate("L1.resid_pre@2")]),
    (2, [tp.Ablate("L1.resid_pre@2"), tp.Ablate("L2.resid_pre@1")]),
    # The run before knows the stream before layer 2 only as it was written there; the one before that does not.
    (2, [tp.Ablate("L1.resid_pre@2"), tp.Ablate("L2.resid_pre@4")]),
    (0, [tp.Ablate("embed@2")]),
    (2, [tp.Ablate("embed@2"), tp.Freeze("L2.mlp_out")]),
    (0, [tp.Ablate("L0H0.pattern")]),
    (1, [tp.Ablate("L0H0.pattern"), tp.Ablate("L1.v")]),
]


def test_what_is_resumed_is_what_a_whole_pass_gives(lm):
    for first, interventions in CHANGES:
        with blocks_done(lm) as done:
            run = answer(lm, *interventions)
        assert run.first_layer == first, interventions
        assert done[-1] == 2 and set(done) == set(range(first, 3)), interventions
        same(run, whole(lm, run.question))


def test_what_the_stream_has_felt_is_not_done_to_it_again(lm):
    answer(lm, Scaled("L1.resid_pre", 0.5))
    run = answer(lm, Scaled("L1.resid_pre", 0.5), tp.Ablate("L1.mlp_out"))
    assert run.first_layer == 1
    same(run, whole(lm, run.question))
    read = run.activation("L1.q")
    forget_runs(lm)
    assert (read == lm.run(run.question).activation("L1.q")).all()


def test_without_a_run_that_allows_the_start_a_lower_one_is_taken(lm):
    answer(lm, tp.Ablate("L2.resid_pre@1"))
    run = answer(lm, tp.Ablate("L2.resid_pre@2"))
    assert run.first_layer == 1
    same(run, whole(lm, run.question))


def test_a_source_that_was_not_kept_is_read_by_going_back_to_it(lm):
    answer(lm)
    run = answer(lm, tp.Patch("L2.mlp_out@1", source="L1.resid_pre@3"))
    assert run.first_layer == 2
    run = answer(lm, tp.Patch("L2H0.q@1", source="L1H0.q@3"))
    assert run.first_layer == 1
    same(run, whole(lm, run.question))


def test_other_tokens_or_bos_are_another_text(lm):
    answer(lm)
    assert lm.run(Question(IDS[:-1], (tp.Ablate("L2.z"),))).first_layer == 0
    assert lm.run(Question(IDS, (tp.Ablate("L2.z"),), True)).first_layer == 0


def test_undo_and_redo_need_no_pass(lm):
    session = tp.Session(model=lm)
    session.token_ids = list(IDS)
    session.wait()
    session.interventions = [tp.Ablate("L1.z")]
    session.wait()
    lm.worker.submit(lambda: None, priority=9).result()  # what the last answer left to be done
    with blocks_done(lm) as done:
        session.undo()
        assert session.wait().recalled
        session.redo()
        assert session.wait().recalled
        session.interventions = [replace(session.interventions[0], enabled=False)]
        assert session.wait().recalled
        lm.worker.submit(lambda: None, priority=9).result()
    assert done == []


def test_what_a_session_shows_stays_while_others_run(random_lm):
    lm = random_lm("llama")
    forget_runs(lm)
    text, other = "The Eiffel Tower", "The Eiffel Tower is"
    session = tp.Session(lm, text)
    session.interventions = [tp.Patch("L1.mlp_out@0", source="L1.mlp_out@0", text=other)]
    run = session.wait().run
    shown = [run.question, session.baseline.question, Question(lm.tokenize(other), (), run.question.bos)]
    limit, lm.runs.limit = lm.runs.limit, 1
    try:
        for last in range(5):
            lm.run(Question((*IDS, last)))
        assert all(lm.worker.call(lambda question=question: lm.recall(question)) for question in shown)
        session.close()
        lm.run(Question((*IDS, 6)))
        assert not any(lm.worker.call(lambda question=question: lm.recall(question)) for question in shown)
    finally:
        lm.runs.limit = limit


def test_what_was_not_kept_costs_its_layer_and_no_other(lm):
    run = answer(lm, tp.Ablate("L1H1.z"))
    with blocks_done(lm) as done:
        run.activation("L1.q")
        run.activation("L2.mlp_post")
        run.activation("L2.mlp_post")
    assert done == [1, 2]


def test_runs_share_what_they_have_in_common(lm):
    baseline = answer(lm)
    alone = lm.runs.nbytes
    run = answer(lm, tp.Ablate("L2.z"))
    assert alone == baseline.nbytes()
    assert lm.runs.nbytes < alone + run.nbytes()
    assert run.activations["pattern", 0] is baseline.activations["pattern", 0]


def test_weights_changed_in_place_forget_what_was_known(random_lm):
    lm = random_lm("gpt2")
    before = lm.run(Question(IDS))
    weight = lm.bridge.original_model.get_parameter("transformer.h.1.ln_1.weight")
    fingerprint = lm.worker.call(lm.fingerprint)
    try:
        with torch.no_grad():
            weight.mul_(2)
        assert lm.worker.call(lm.fingerprint) != fingerprint
        after = lm.run(Question(IDS))
        assert not torch.equal(before.logits, after.logits)
    finally:
        with torch.no_grad():
            weight.div_(2)
    same(lm.run(Question(IDS)), before)


def test_the_fingerprint_tells_models_apart_and_knows_its_like(random_directory, random_lm):
    lm, other = random_lm("llama"), random_lm("gpt2")
    again = tp.load_model(str(random_directory("llama")))
    assert lm.worker.call(lm.fingerprint) == again.worker.call(again.fingerprint)
    assert lm.worker.call(lm.fingerprint) != other.worker.call(other.fingerprint)


def test_a_model_that_works_between_its_blocks_is_run_whole_and_right(odd_lm):
    assert not odd_lm.wiring.by_layer and not odd_lm.wiring.by_position
    assert odd_lm.health.level == "healthy"
    baseline = answer(odd_lm)
    with torch.no_grad():
        assert torch.equal(baseline.logits, odd_lm.bridge(torch.tensor([IDS]))[0])
    run = answer(odd_lm, tp.Ablate("L2H1.z"))
    assert run.first_layer == 0

    def ablated(z, hook):
        z = z.clone()
        z[:, :, 1] = 0
        return z

    with torch.no_grad():
        expected = odd_lm.bridge.run_with_hooks(
            torch.tensor([IDS]), fwd_hooks=[("blocks.2.attn.hook_z", ablated)]
        )
    assert torch.equal(run.logits, expected[0])
    assert run.activation("L1.q").shape == (8, 4, 12)
