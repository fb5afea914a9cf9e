"""The lens is what plain PyTorch makes of each residual stream, and its last row what the model says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import transpector as tp
from reference import forward
from transpector.state import lens as module
from transpector.state.errors import Cancelled
from transpector.state.health import Ability, Health
from transpector.state.interventions import Ablate, Patch, Question
from transpector.state.lens import lens

TOLERANCE = 1e-4
WITH_HEADS = ("gpt2", "llama", "gpt_neox", "opt", "gemma2", "gptj", "bloom")
N_LAYERS = 3
IDS = list(range(3, 14))
TEXT_B = " city of Paris"


@pytest.fixture
def run(random_lm):
    return random_lm("llama").run(Question(IDS))


def readings(hf_model, ids, write=None):
    """Log-probabilities of every stream put in the place of the last one, and of the last; float64 [layer+1 pos d_vocab]."""
    plain = forward(hf_model, ids, write)
    last = ("resid_post", N_LAYERS - 1)
    rows = []
    for layer in range(N_LAYERS):
        stream = plain.activations["resid_pre", layer]
        rows.append(forward(hf_model, ids, {**(write or {}), last: lambda _, stream=stream: stream}).logits)
    return torch.stack([*rows, plain.logits]).double().log_softmax(-1)


def agrees(found, log_p):
    """Whether a lens of all layers and positions says what the log-probabilities do."""
    p, k = log_p.exp(), found.token_ids.shape[-1]
    own = p.gather(-1, torch.tensor(found.token_ids))
    assert found.probabilities == pytest.approx(own.numpy(), abs=TOLERANCE)
    assert found.probabilities == pytest.approx(p.topk(k).values.numpy(), abs=TOLERANCE)
    assert found.entropy == pytest.approx(-(p * log_p).sum(-1).numpy(), abs=TOLERANCE)
    divergence = (p[-1] * (log_p[-1] - log_p)).sum(-1)
    # It may be a hundred nats: of those, one part in 10,000.
    assert found.divergence == pytest.approx(divergence.numpy(), abs=TOLERANCE, rel=TOLERANCE)
    assert divergence[:-1].min() > 100 * TOLERANCE  # there is something to be wrong about


@pytest.mark.parametrize("kind", WITH_HEADS)
def test_every_stream_is_read_as_if_it_were_the_last(random_lm, reference_model, kind):
    found = lens(random_lm(kind).run(Question(IDS)), k=4)
    assert (found.layers, found.positions) == ((0, 1, 2, 3), tuple(range(11)))
    assert found.token_ids.shape == (4, 11, 4) and found.axes == ("layer", "pos", "k")
    numbers = (found.probabilities, found.entropy, found.divergence)
    assert all(values.dtype == np.float32 for values in numbers)
    agrees(found, readings(reference_model(kind), IDS))


@pytest.mark.parametrize("kind", WITH_HEADS)
def test_the_streams_are_those_after_interventions(random_lm, reference_model, kind):
    lm, hf_model = random_lm(kind), reference_model(kind)
    there = forward(hf_model, lm.tokenize(TEXT_B)).activations["resid_pre", 2][1]

    def ablated(z):
        z[:, 2] = 0
        return z

    def patched(stream):
        stream[4] = there
        return stream

    interventions = (Ablate("L0H2.z"), Patch("L2.resid_pre@4", "L2.resid_pre@1", TEXT_B))
    found = lens(lm.run(Question(IDS, interventions)))
    agrees(found, readings(hf_model, IDS, {("z", 0): ablated, ("resid_pre", 2): patched}))


@pytest.mark.parametrize("kind", WITH_HEADS)
def test_the_chosen_token_has_its_probability_and_its_rank(random_lm, reference_model, kind):
    lm = random_lm(kind)
    token = lm.text.token_id(" city")
    found = lens(lm.run(Question(IDS)), token=" city")
    log_p = readings(reference_model(kind), IDS)
    assert found.chosen == token and found.chosen_probability.dtype == np.float32
    assert found.chosen_probability == pytest.approx(log_p[..., token].exp().numpy(), abs=TOLERANCE)
    own = log_p[..., token, None]
    # Those within rounding of it may stand on either side.
    surely, maybe = ((log_p > own + by).sum(-1).numpy() for by in (TOLERANCE, -TOLERANCE))
    assert found.chosen_rank.dtype.kind == "i"
    assert (surely <= found.chosen_rank).all() and (found.chosen_rank < maybe).all()
    likeliest = int(found.token_ids[1, 3, 0])
    by_id = lens(lm.run(Question(IDS)), token=likeliest)
    assert by_id.chosen == likeliest and by_id.chosen_rank[1, 3] == 0 and by_id.chosen_rank.max() > 0


def test_without_a_chosen_token_there_is_none(run):
    found = lens(run)
    assert found.chosen is found.chosen_probability is found.chosen_rank is None


@pytest.mark.parametrize("kind", [*WITH_HEADS, "odd"])
def test_the_last_row_is_to_the_bit_what_the_run_says(random_lm, request, kind):
    lm = request.getfixturevalue("odd_lm") if kind == "odd" else random_lm(kind)
    run = lm.run(Question(IDS, (Ablate("L1H2.z"),)))
    found = lens(run, k=7, token=5)
    for position in range(11):
        told = zip(found.tokens[3, position], found.probabilities[3, position].tolist(), strict=True)
        assert list(told) == run.next_tokens(position, 7)
        log_probs = run.log_probs(position)
        assert found.chosen_probability[3, position] == log_probs[5].exp()
        assert found.chosen_rank[3, position] == (log_probs > log_probs[5]).sum()
    assert (found.divergence[3] == 0).all() and (found.divergence[:3] > 0).all()


def test_of_tokens_that_are_equally_likely_the_last_row_names_those_that_the_run_names(
    random_directory, monkeypatch
):
    monkeypatch.setattr(module, "WIDTH", 8)
    run = tp.load_model(str(random_directory("llama"))).run(Question(IDS))
    vars(run)["_logits"] = run.logits.round()
    found = lens(run, k=9)
    for position in range(11):
        assert list(found.tokens[3, position]) == [token for token, _ in run.next_tokens(position, 9)]


def test_on_smollm2_every_stream_is_read_as_hugging_face_s_own_modules_read_it(smollm2):
    from transformers import AutoModelForCausalLM

    from transpector.state.catalogue import resolve
    from transpector.state.conversion import converted

    path = converted(resolve(smollm2.name).path, "float32")
    hf_model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
    ids = smollm2.tokenize("The Eiffel Tower is in the city of")
    found = lens(smollm2.run(Question(ids)), positions=[-1, 2, 0], token=" Paris")
    paris = smollm2.text.token_id(" Paris")
    with torch.no_grad():
        out = hf_model(torch.tensor([ids]), output_hidden_states=True)
        streams = torch.stack([stream[0, [-1, 2, 0]] for stream in out.hidden_states[:-1]])
        logits = torch.cat([hf_model.lm_head(hf_model.model.norm(streams)), out.logits[:, [-1, 2, 0]]])
    log_p = logits.double().log_softmax(-1)
    agrees(found, log_p)
    assert found.chosen_probability == pytest.approx(log_p[..., paris].exp().numpy(), abs=TOLERANCE)
    assert found.tokens[30, 0, 0] == smollm2.pieces([int(out.logits[0, -1].argmax())])[0]
    assert (found.token_ids[:, :, 0] == logits.argmax(-1).numpy()).mean() > 0.97


def test_half_precision_is_read_in_float32(random_directory):
    lm = tp.load_model(str(random_directory("llama")), dtype="bfloat16")
    run = lm.run(Question(IDS))
    stream = run.tensor(("resid_pre", 1))
    assert stream.dtype == torch.bfloat16
    logits = lm.worker.call(lambda: lm.stack.close(stream[:, None])[:, 0])
    p = logits.double().softmax(-1)
    found = lens(run, layers=[1])
    assert found.probabilities[0] == pytest.approx(p.topk(5).values.numpy(), abs=1e-6)
    assert found.entropy[0] == pytest.approx(-(p * p.log()).sum(-1).numpy(), abs=1e-5)


# What is asked for


def test_rows_and_columns_are_those_that_are_named(run):
    whole, some = lens(run, token=9), lens(run, layers=[3, 1], positions=[-1, 2], token=9)
    assert (some.layers, some.positions) == ((3, 1), (10, 2))
    for name in ("token_ids", "probabilities", "entropy", "divergence", "chosen_probability", "chosen_rank"):
        expected = getattr(whole, name)[[3, 1]][:, [10, 2]]
        assert getattr(some, name) == pytest.approx(expected, abs=1e-5), name
    assert lens(run, layers=[]).token_ids.shape == (0, 11, 5)
    assert lens(run, layers=[1], k=10_000).token_ids.shape == (1, 11, 512)


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (
            {"layers": [4]},
            tp.SiteError,
            "Layer 4: the lens of this model has rows 0 to 2 .* and 3 for its output",
        ),
        ({"layers": [-1]}, tp.SiteError, "Layer -1"),
        ({"positions": [11]}, tp.SiteError, "Position 11: this text has positions 0 to 10"),
        ({"positions": [-12]}, tp.SiteError, "Position -12"),
        ({"token": " Paris in"}, tp.TextError, "not one"),
        ({"token": 512}, tp.TextError, "outside this model's vocabulary"),
    ],
)
def test_what_is_not_there_is_refused(run, wrong, error, words):
    with pytest.raises(error, match=words):
        lens(run, **wrong)


def test_the_frame_has_a_row_a_layer_and_position(run):
    found = lens(run, layers=[2, 3], positions=[5, 6, 7], token=" city")
    frame = found.frame
    told = ["layer", "pos", "token", "probability", "entropy", "divergence"]
    assert list(frame.columns) == [*told, "chosen", "chosen_probability", "chosen_rank"]
    assert list(lens(run).frame.columns) == told
    assert list(zip(frame.layer, frame.pos, strict=True)) == [(2, 5), (2, 6), (2, 7), (3, 5), (3, 6), (3, 7)]
    row = frame.iloc[4]
    assert (row.token,) == run.model.pieces([found.token_ids[1, 1, 0]])
    assert row.probability == found.probabilities[1, 1, 0] and row.entropy == found.entropy[1, 1]
    assert row.divergence == 0 and frame.divergence[0] == found.divergence[0, 0]
    assert row.chosen == " city" and row.chosen_probability == found.chosen_probability[1, 1]
    assert row.chosen_rank == found.chosen_rank[1, 1]


# How it is done


@pytest.fixture
def closed(run, monkeypatch):
    """How many streams are unembedded at once, ten of them at most; and what other jobs did meanwhile."""
    monkeypatch.setattr(module, "MAX_BYTES", 10 * 4 * 512)
    run.logits  # noqa: B018 - known, as they are by the time that a lens is asked for
    close, done = run.model.stack.close, []

    def noted(hidden):
        assert run.model.worker.is_current
        if not done:
            run.model.worker.submit(lambda: done.append("another job"))
        done.append(hidden.shape[0])
        return close(hidden)

    monkeypatch.setattr(run.model.stack, "close", noted)
    return done


def test_logits_are_made_a_few_at_a_time_and_others_have_their_turn_between(run, closed, monkeypatch):
    by_ten = lens(run, token=9)
    assert closed[1] == "another job"
    rows = [n for n in closed if n != "another job"]
    # Of 44 cells eleven are the model's output, which is known.
    assert max(rows) <= 10 and sum(rows) == 33 and len(rows) == 5
    monkeypatch.setattr(module, "MAX_BYTES", 25e6)
    at_once = lens(run, token=9)
    assert closed[len(rows) + 1 :] == [33]
    for name in ("probabilities", "entropy", "divergence", "chosen_probability", "chosen_rank"):
        assert getattr(by_ten, name) == pytest.approx(getattr(at_once, name), abs=1e-5), name


def test_a_lens_that_nobody_waits_for_ends_before_its_next_chunk(run, closed):
    with pytest.raises(Cancelled):
        lens(run, cancelled=lambda: len(closed) >= 2)
    assert len([n for n in closed if n != "another job"]) <= 2


@pytest.mark.parametrize("d_vocab", [40, 256, 1280, 1281, 1535, 5000])
@pytest.mark.parametrize("k", [1, 2, 5, 40])
def test_the_short_cut_finds_what_topk_finds(d_vocab, k):
    generator = torch.Generator().manual_seed(d_vocab + k)
    values = torch.randn(50, d_vocab, generator=generator)
    values[:10, :k] += 10  # all of them neighbours
    values[10:20, -k:] += 10  # and beyond the last whole neighbourhood
    found, expected = module._topk(values, k), values.topk(k)
    assert torch.equal(found[0], expected.values) and torch.equal(found[1], expected.indices)


def test_a_model_that_does_more_after_its_blocks_has_no_lens(odd_lm, monkeypatch):
    run = odd_lm.run(Question(IDS))
    assert not odd_lm.wiring.by_layer
    close = odd_lm.stack.close
    monkeypatch.setattr(odd_lm.stack, "close", lambda hidden: 1.1 * close(hidden))
    with pytest.raises(tp.ModelError, match="This architecture has no lens"):
        lens(run)
    assert (lens(run, layers=[3]).divergence == 0).all()


def test_a_model_that_hides_its_residual_stream_has_no_lens(random_lm):
    lm = random_lm("llama")
    blind = tp.Model("blind", lm.bridge, lm.text.tokenizer, lm.spec)
    hidden = Ability(False, False, "its hook never fires.")
    blind.health = Health({**blind.health.abilities, "resid_pre": hidden}, blind.health.extras)
    with pytest.raises(tp.SiteError, match="can't be read here: its hook never fires"):
        lens(replace(blind.run(Question(IDS))))
