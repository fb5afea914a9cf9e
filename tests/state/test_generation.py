"""Continuations equal, token for token, those of plain PyTorch under the same changes."""

import itertools
import threading

import numpy as np
import pytest
import torch

import transpector as tp
from random_models import KINDS
from reference import forward
from transpector.state.errors import Cancelled
from transpector.state.interventions import Question

TEXT = "the city of Paris and the tree of the north"
N_NEW = 8


@pytest.fixture
def ask(random_lm):
    def session(kind, *interventions):
        lm = random_lm(kind)
        session = tp.Session(model=lm, text=TEXT)
        session.interventions = list(interventions)
        session.wait()
        return session

    return session


def continued(hf_model, ids, write=None, n_new=N_NEW, end=0):
    """The likeliest continuation, the whole text anew for every token."""
    ids = list(ids)
    n_pos = len(ids)
    for _ in range(n_new):
        ids.append(int(forward(hf_model, ids, write).logits[-1].argmax()))
        if ids[-1] == end:
            break
    return tuple(ids[n_pos:])


def ids_of(session):
    return session.question.token_ids


def scaled(index, factor):
    def write(value):
        value[index] = factor * value[index]
        return value

    return write


def filled(index, number):
    def write(value):
        value[index] = number
        return value

    return write


def zeroed(index):
    def write(value):
        value[index] = 0
        return value

    return write


@pytest.mark.parametrize("kind", KINDS)
def test_a_continuation_is_what_the_model_itself_would_say(ask, reference_model, kind):
    session = ask(kind)
    generation = tp.generate(session, N_NEW).result(60)
    assert generation.new_ids == continued(reference_model(kind), ids_of(session))
    assert generation.token_ids == (*ids_of(session), *generation.new_ids)
    assert generation.tokens == session.model.pieces(generation.new_ids)


def _prompt(hf_model, ids, address):
    """A whole activation of the prompt, without changes."""
    return forward(hf_model, ids).activations[address]


def _cases(hf_model, ids, other, d_model):
    """Interventions, each with the writes that it stands for on a text of any length from the prompt's on."""
    n = len(ids)
    vector = torch.tensor(np.random.default_rng(2).normal(size=d_model).astype(np.float32))

    def steered(value):
        return value + 2 * vector

    def steered_from_3(value):
        value[3:] += 2 * vector
        return value

    def steered_last(value):
        value[n - 1] += 2 * vector
        return value

    mean = _prompt(hf_model, ids, ("z", 1))[:, 2].mean(0)

    def averaged(value):
        value[:, 2] = mean
        return value

    held = _prompt(hf_model, ids, ("mlp_out", 0))

    def frozen(value):
        value[:n] = held
        return value

    patched_from = _prompt(hf_model, other, ("z", 1))[:, 1]

    def patched(value):
        value[:n, 1] = patched_from
        return value

    here = {}

    def noted(value):
        here["z"] = value.clone()
        return value

    def taken(value):
        value[:, 0] = here["z"][:, 3]
        return value

    zero = {(part, 1): torch.zeros_like for part in ("attn_out", "mlp_out")}
    numbers = vector.numpy()
    return [
        (tp.Steer("L1.resid_pre", numbers, 2), {("resid_pre", 1): steered}),
        (tp.Steer("L1.resid_pre@3:", numbers, 2), {("resid_pre", 1): steered_from_3}),
        (tp.Steer("L2.resid_pre@-1", numbers, 2), {("resid_pre", 2): steered_last}),
        (tp.Ablate("L1H2.z"), {("z", 1): zeroed((slice(None), 2))}),
        (tp.Ablate("L1H2.z@2:4"), {("z", 1): zeroed((slice(2, 4), 2))}),
        (tp.Ablate("L1H2.z@:-1"), {("z", 1): zeroed((slice(0, n - 1), 2))}),
        (tp.Ablate("L1H2.z", "mean"), {("z", 1): averaged}),
        (tp.Ablate("L1H2.pattern"), {("pattern", 1): zeroed(2)}),
        (tp.Ablate("embed@0"), {("embed", None): zeroed(0)}),
        (tp.Scale("L1H2.z", -4), {("z", 1): scaled((slice(None), 2), -4)}),
        (tp.Scale("L1D5.resid_pre@3:", 6), {("resid_pre", 1): scaled((slice(3, None), 5), 6)}),
        (tp.Scale("L1H2.pattern", 3), {("pattern", 1): scaled(2, 3)}),
        (tp.Set("L2N7.mlp_post", 9), {("mlp_post", 2): filled((slice(None), 7), 9)}),
        (tp.Set("L1D5.attn_out@-1", 9), {("attn_out", 1): filled((n - 1, 5), 9)}),
        (tp.Freeze("L0.mlp_out"), {("mlp_out", 0): frozen}),
        (tp.Patch("L1H1.z", "L1H1.z", "other"), {("z", 1): patched}),
        (tp.Patch("L2H0.z", "L1H3.z"), {("z", 1): noted, ("z", 2): taken}),
        (tp.Skip(1, 1), zero),
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", range(18))
def test_an_intervention_means_the_same_for_every_new_token(ask, reference_model, kind, case):
    hf_model = reference_model(kind)
    plain = ask(kind)
    ids = ids_of(plain)
    other_text = " yellow" * len(ids)
    other = plain.model.tokenize(other_text)[: len(ids)]
    other_text = plain.model.text.decode(other)
    assert tuple(plain.model.tokenize(other_text)) == tuple(other)
    intervention, write = _cases(hf_model, ids, other, plain.model.spec.d_model)[case]
    if isinstance(intervention, tp.Patch) and intervention.text:
        intervention = tp.Patch(intervention.target, intervention.source, other_text)
    generation = tp.generate(ask(kind, intervention), N_NEW).result(60)
    assert generation.new_ids == continued(hf_model, ids, write)


def test_scores_are_scaled_for_every_new_token_and_what_is_hidden_stays_so(ask, reference_model):
    session = ask("llama", tp.Scale("L1.scores", -5))
    write = {("scores", 1): scaled(slice(None), -5)}
    expected = continued(reference_model("llama"), ids_of(session), write)
    assert tp.generate(session, N_NEW).result(60).new_ids == expected
    assert tp.generate(session, N_NEW, baseline=True).result(60).new_ids != expected


def test_what_is_done_twice_is_done_twice_to_every_new_token(ask, reference_model):
    vector = np.random.default_rng(2).normal(size=48).astype(np.float32)
    session = ask("llama", *[tp.Steer("L1.resid_pre", vector, 1)] * 2)
    write = {("resid_pre", 1): lambda value: value + 2 * torch.tensor(vector)}
    expected = continued(reference_model("llama"), ids_of(session), write)
    once = {("resid_pre", 1): lambda value: value + torch.tensor(vector)}
    assert expected != continued(reference_model("llama"), ids_of(session), once)
    assert tp.generate(session, N_NEW).result(60).new_ids == expected


def test_interventions_do_change_what_is_said(ask):
    """Lest the tests above compare continuations that nothing could change."""
    plain = tp.generate(ask("llama"), N_NEW).result(60).new_ids
    for change in (tp.Steer("L1.resid_pre", np.ones(48), 2), tp.Skip(1, 1), tp.Ablate("L0.mlp_out")):
        session = ask("llama", change)
        assert tp.generate(session, N_NEW).result(60).new_ids != plain
        assert tp.generate(session, N_NEW, baseline=True).result(60).new_ids == plain


def test_blocks_that_can_t_be_called_one_by_one_are_run_whole(odd_lm):
    session = tp.Session(model=odd_lm, text=TEXT)
    session.interventions = [tp.Ablate("L1H2.z")]
    session.wait()
    ids = list(ids_of(session))
    for _ in range(4):
        run = odd_lm.run(Question(ids, (tp.Ablate("L1H2.z"),)))
        ids.append(int(run.logits[-1].argmax()))
    assert tp.generate(session, 4).result(60).token_ids == tuple(ids)


def test_the_same_seed_draws_the_same_and_another_something_else(ask):
    session = ask("llama")

    def drawn(seed, **options):
        return tp.generate(session, 20, temperature=1.5, seed=seed, **options).result(60)

    one = drawn(1)
    assert drawn(1).new_ids == one.new_ids != drawn(2).new_ids
    unseeded = tp.generate(session, 20, temperature=1.5).result(60)
    assert drawn(unseeded.seed).new_ids == unseeded.new_ids
    assert drawn(3, top_k=1).new_ids == tp.generate(session, 20).result(60).new_ids


def test_tokens_are_drawn_as_often_as_temperature_and_top_k_say(ask):
    session = ask("llama")
    logits = session.run.logits[-1]
    best = logits.topk(3)
    wanted = (best.values / 2).softmax(-1)
    counts = torch.zeros(3)
    n = 600
    for seed in range(n):
        (new,) = tp.generate(session, 1, temperature=2, top_k=3, seed=seed).result(60).new_ids
        counts[best.indices.tolist().index(new)] += 1
    spread = (wanted * (1 - wanted) / n).sqrt()
    assert ((counts / n - wanted).abs() < 4 * spread).all()


def test_each_token_has_the_model_s_own_probability(ask):
    generation = tp.generate(ask("gpt2"), 5, temperature=3, seed=4).result(60)
    run = generation.model.run(Question(generation.token_ids))
    n = len(generation.question.token_ids)
    expected = [float(run.log_probs(n - 1 + at).exp()[new]) for at, new in enumerate(generation.new_ids)]
    assert generation.probabilities == pytest.approx(expected, abs=1e-5)


def test_tokens_are_told_as_they_come(ask):
    generation = tp.generate(ask("llama"), 6)
    pieces = list(generation)
    assert tuple(pieces) == generation.tokens and generation.ended in ("length", "end of text")


def test_it_ends_at_the_end_of_the_text(ask):
    session = ask("gpt2")
    end = session.model.text.bos_id
    vector = session.model.bridge.W_U[:, end].tolist()
    session.interventions = [tp.Steer("L2.resid_pre", vector, 300)]
    session.wait()
    generation = tp.generate(session, 20).result(60)
    assert generation.ended == "end of text" and generation.new_ids[-1] == end and generation.done < 20
    assert session.model.pieces([end])[0] not in generation.text


def test_it_ends_where_the_context_does(random_lm):
    lm = random_lm("gpt2")
    session = tp.Session(model=lm)
    session.token_ids = [3 + n % 200 for n in range(125)]
    session.wait()
    generation = tp.generate(session, 20).result(60)
    assert generation.ended == "context" or 0 in generation.new_ids
    assert len(generation.token_ids) <= 128


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_new_tokens": 0}, "ask for 1 to"),
        ({"temperature": -1}, "use 0 for the likeliest"),
        ({"temperature": float("nan")}, "use 0 for the likeliest"),
        ({"top_k": 0}, "draw from 1 token or more"),
    ],
)
def test_what_makes_no_sense_is_refused(ask, options, says):
    with pytest.raises(tp.TextError, match=says):
        tp.generate(ask("llama"), **options)


def test_the_mean_of_a_pattern_can_t_be_carried_on_unless_it_has_positions(ask, reference_model):
    with pytest.raises(tp.InterventionError, match="there is none for those that are generated"):
        tp.generate(ask("llama", tp.Ablate("L1H0.pattern", "mean")))
    session = ask("llama", tp.Ablate("L1H0.pattern@2", "mean"))
    mean = _prompt(reference_model("llama"), ids_of(session), ("pattern", 1))[0].mean(0)

    def averaged(value):
        value[0, 2] = 0
        value[0, 2, : len(mean)] = mean
        return value

    expected = continued(reference_model("llama"), ids_of(session), {("pattern", 1): averaged})
    assert tp.generate(session, N_NEW).result(60).new_ids == expected


def test_it_can_be_given_up_and_ends_with_its_session(ask):
    session = ask("llama")
    first, second = tp.generate(session, 4000), tp.generate(session, 4000)
    first.cancel()
    with pytest.raises(Cancelled):
        first.result(10)
    session.close()
    with pytest.raises(Cancelled):
        second.result(10)
    assert first.model.run(Question((5, 6, 7))).n_pos == 3  # the worker goes on


def test_nothing_is_added_once_it_was_given_up(ask):
    """Not the token either that was being computed."""
    session = ask("llama")
    reached, go = threading.Event(), threading.Event()

    def hold(*_):
        reached.set()
        assert go.wait(30)

    hook = session.model.stack.blocks[1].attn.register_forward_pre_hook(hold)
    try:
        generation = tp.generate(session, 100)
        assert reached.wait(30)
        generation.cancel()
        go.set()
        session.model.run(Question((9, 8, 7)))  # after it
    finally:
        go.set()
        hook.remove()
    assert (generation.state, generation.done, generation.probabilities) == ("cancelled", 0, ())


def test_other_runs_get_their_turn_between_tokens(ask):
    session = ask("llama")
    generation = tp.generate(session, 100, temperature=1, seed=0)
    reached = threading.Event()
    generation.watch(reached.set)
    assert reached.wait(30)
    run = session.model.run(Question((9, 8, 7)))
    assert run.n_pos == 3 and not generation.is_over
    generation.cancel()


def test_a_run_and_a_continuation_leave_each_other_alone(ask, reference_model):
    session = ask("llama", tp.Ablate("L1H2.z"))
    expected = continued(
        reference_model("llama"), ids_of(session), {("z", 1): zeroed((slice(None), 2))}, n_new=40, end=None
    )
    session.model.text.end_ids, ends = set(), session.model.text.end_ids
    try:
        generation = tp.generate(session, 40)
        for at in itertools.count():
            if generation.is_over:
                break
            session.model.run(Question((5, 6, 7), (tp.Ablate(f"L{at % 3}H{at % 4}.z"),)))
        assert generation.result(60).new_ids == expected
    finally:
        session.model.text.end_ids = ends


def test_what_was_generated_is_inspected_like_any_text(ask):
    session = ask("llama", tp.Ablate("L1H2.z"))
    generation = tp.generate(session, 5).result(60)
    session.token_ids = list(generation.token_ids)
    session.wait()
    assert tuple(session.run.token_ids) == generation.token_ids
    for at, new in enumerate(generation.new_ids, len(generation.question.token_ids) - 1):
        assert int(session.run.logits[at].argmax()) == new


def test_smollm2_steered_says_what_raw_hooks_on_a_model_of_their_own_make_it_say(smollm2):
    from transformers import AutoModelForCausalLM

    from transpector.state.catalogue import resolve
    from transpector.state.conversion import converted

    path = converted(resolve(smollm2.name).path, "float32")
    hf_model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
    session = tp.Session(model=smollm2, text="I went to the shop today and")
    session.wait()
    ids = torch.tensor([session.question.token_ids])
    vector = hf_model.lm_head.weight.detach()[smollm2.text.token_id(" Paris")]
    vector = 30 * vector / vector.norm()

    def hf(hooked):
        hook = lambda block, given, kwargs: ((given[0] + vector, *given[1:]), kwargs)  # noqa: E731
        handles = (
            [hf_model.model.layers[12].register_forward_pre_hook(hook, with_kwargs=True)] if hooked else []
        )
        ends = list(smollm2.text.end_ids)
        with torch.no_grad():
            out = hf_model.generate(
                ids, max_new_tokens=40, do_sample=False, eos_token_id=ends, pad_token_id=0
            )
        for handle in handles:
            handle.remove()
        return tuple(out[0, ids.shape[1] :].tolist())

    assert tp.generate(session, 40).result(120).new_ids == hf(False)
    session.interventions = [tp.Steer("L12.resid_pre", vector.tolist())]
    session.wait()
    steered = tp.generate(session, 40).result(120)
    assert steered.new_ids == hf(True) != hf(False)
