"""Who writes a token, by the weights and in a run, is what plain PyTorch on Hugging Face's weights finds."""

import threading
from functools import cache

import numpy as np
import pytest
import torch
from direct_effects import DirectEffects
from head_weights import HeadWeights, expect_near, other_model, small
from transformers import MixtralConfig, Olmo2Config, OPTConfig

import transpector as tp
from transpector.state import writers as searching
from transpector.state.contributions import contributions
from transpector.state.errors import Cancelled, ModelError, TextError
from transpector.state.metric import Metric
from transpector.state.writers import writers

KINDS = ("llama", "gpt2", "gemma2", "gpt_neox", "bloom")
TEXT, TOKEN = " city the tree house in Paris", " white"
WAIT = 60  # s; far more than anything here takes


@pytest.fixture(scope="module")
def weights(reference_model):
    """A function: kind of random model -> its weights, by hand."""
    return cache(lambda kind: HeadWeights(reference_model(kind)))


@pytest.fixture(scope="module")
def session(random_lm):
    """A function: kind of random model, interventions -> a session on it."""

    def on(kind, *interventions, text=TEXT):
        return tp.Session(model=random_lm(kind), text=text, interventions=list(interventions)).wait(WAIT)

    return on


class Busy:
    """A model's worker that does nothing else until it is let go on."""

    def __init__(self, lm):
        self.lm, self._go = lm, threading.Event()

    def __enter__(self):
        self._stood = self.lm.worker.submit(lambda: self._go.wait(WAIT))
        return self

    def __exit__(self, *error):
        self._go.set()
        assert self._stood.result(WAIT)


def idle(lm):
    """Wait until the worker has nothing more to do."""
    lm.worker.submit(lambda: None, priority=99).result(WAIT)


def furthest(values):
    """Of [pos, unit] each unit's value that is furthest from zero, and where."""
    at = values.abs().argmax(0)
    return values.gather(0, at[None])[0], at


# What is found


@pytest.mark.parametrize("kind", KINDS)
def test_what_each_part_writes_by_its_weights_follows_from_them(session, weights, monkeypatch, kind):
    monkeypatch.setattr("transpector.state.reads.CHUNK_BYTES", 4 * 48 * 100)
    found, by_hand = writers(session(kind), TOKEN).result(WAIT), weights(kind)
    token = found.model.text.token_id(TOKEN)
    for layer in range(3):
        columns = torch.stack(
            [by_hand.ov_tokens(layer, head)[:, token] for head in range(found.model.spec.n_heads)]
        )
        best = columns.max(-1)
        expect_near(found.heads[layer], best.values)
        assert found.sources[layer].tolist() == best.indices.tolist()
        expect_near(found.neurons[layer], by_hand.logits(by_hand.neuron_writes(layer))[:, token])
    assert found.heads.dtype == found.neurons.dtype == np.float32
    assert found.heads.shape == (3, found.model.spec.n_heads)
    assert found.neurons.shape == (3, found.model.spec.d_mlp)


def expect_here(found, hf_model, write=None):
    """What every head and neuron adds at its best position, of all positions by hand."""
    ids, token = found.run.token_ids.tolist(), found.token
    at_each = [DirectEffects(hf_model, ids, position, write) for position in range(len(ids))]

    def added(parts):
        logits = torch.stack([each.logits(parts(each)) for each in at_each])  # [pos, part, d_vocab]
        return furthest(logits[..., token] - logits.mean(-1))

    for layer in range(3):
        for of, parts in (
            ("heads", lambda each, layer=layer: each.heads(layer)),
            ("neurons", lambda each, layer=layer: each.neurons(layer)),
        ):
            values, positions = added(parts)
            expect_near(getattr(found, f"{of}_here")[layer], values)
            # Where two positions are all but equal, either may be named; and what is zero everywhere has none.
            clear = values.abs() > 1e-3 * values.abs().max()
            same = torch.tensor(getattr(found, f"{of}_at")[layer]) == positions
            assert same[clear].float().mean() > 0.97


@pytest.mark.parametrize("kind", KINDS)
def test_what_each_part_writes_in_a_run_follows_from_the_weights(session, reference_model, kind):
    expect_here(writers(session(kind), TOKEN).result(WAIT), reference_model(kind))


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_it_is_the_run_with_its_interventions(session, reference_model, kind):
    def without(z):
        z[:, 1] = 0
        return z

    found = writers(session(kind, tp.Ablate("L1H1.z"), tp.Ablate("L0.mlp_out")), TOKEN).result(WAIT)
    write = {("z", 1): without, ("mlp_out", 0): torch.zeros_like}
    expect_here(found, reference_model(kind), write)
    assert found.heads_here[1, 1] == 0 and found.heads[1, 1] != 0
    plain = writers(session(kind), TOKEN).result(WAIT)
    assert (found.heads == plain.heads).all() and (found.neurons == plain.neurons).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_found_in_a_run_is_its_contribution_there(session, kind):
    found = writers(session(kind), TOKEN).result(WAIT)
    for position in range(found.run.n_pos):
        there = contributions(found.run, Metric("log_prob", TOKEN, position=position), layer=1)
        here = found.heads_at == position
        size = np.abs(there.heads).max()
        assert np.abs(found.heads_here - there.heads)[here].max(initial=0) <= 1e-5 * size
        assert (np.abs(there.heads) <= np.abs(found.heads_here) + 1e-5 * size).all()
        here = found.neurons_at[1] == position
        off = np.abs(found.neurons_here[1] - there.neurons)[here]
        assert off.max(initial=0) <= 1e-5 * np.abs(there.neurons).max()


def test_a_token_can_be_named_by_its_id(session):
    by_text = writers(session("llama"), TOKEN).result(WAIT)
    by_id = writers(session("llama"), by_text.token).result(WAIT)
    assert (by_id.heads == by_text.heads).all() and (by_id.neurons_here == by_text.neurons_here).all()


def test_a_text_of_one_token_has_its_writers_too(session, reference_model):
    found = writers(session("llama", text=" city"), TOKEN).result(WAIT)
    assert found.run.n_pos == 1 and not found.heads_at.any()
    expect_here(found, reference_model("llama"))


def test_the_frame_has_every_head_and_the_furthest_neurons_the_largest_here_first(session, monkeypatch):
    monkeypatch.setattr(searching, "N_NEURONS", 7)
    found = writers(session("llama"), TOKEN).result(WAIT)
    frame, pieces = found.frame, found.model.pieces
    assert list(frame) == [
        *("part", "kind", "layer", "head", "neuron"),
        *("weight", "source", "here", "position"),
    ]
    assert (np.diff(frame["here"].abs()) <= 0).all()
    heads, neurons = frame[frame["kind"] == "head"], frame[frame["kind"] == "neuron"]
    assert len(heads) + len(neurons) == len(frame)
    assert sorted(zip(heads["layer"], heads["head"], strict=True)) == list(np.ndindex(3, 4))
    for row in heads.itertuples():
        at = row.layer, row.head
        assert row.part == f"L{row.layer}H{row.head}.z"
        assert (row.weight, row.here, row.position) == (
            found.heads[at],
            found.heads_here[at],
            found.heads_at[at],
        )
        assert row.source == pieces([int(found.sources[at])])[0]
    wanted = {
        divmod(int(at), 80)
        for values in (found.neurons, found.neurons_here)
        for at in np.argsort(-np.abs(values), axis=None)[:7]
    }
    assert set(zip(neurons["layer"], neurons["neuron"], strict=True)) == wanted and 7 <= len(wanted) <= 14
    for row in neurons.itertuples():
        at = row.layer, row.neuron
        assert row.part == f"L{row.layer}N{row.neuron}.mlp_post" and row.source == ""
        assert (row.weight, row.here, row.position) == (
            found.neurons[at],
            found.neurons_here[at],
            found.neurons_at[at],
        )
    assert heads["neuron"].isna().all() and neurons["head"].isna().all()


# How it goes


def test_it_is_told_of_layer_by_layer(session):
    asked, seen = session("llama"), []
    with Busy(asked.model):
        search = writers(asked, TOKEN)
        search.watch(lambda: seen.append((search.state, search.done, int(np.isfinite(search.heads).sum()))))
        assert (search.state, search.done, search.total) == ("waiting", 0, 3)
        assert np.isnan(search.heads).all() and np.isnan(search.neurons_here).all()
        assert search.frame.empty
    assert search.result(WAIT) is search
    assert seen == [("running", 1, 4), ("running", 2, 8), ("running", 3, 12), ("done", 3, 12)]
    assert repr(search) == "<Writers of ' white', 3 of 3 layers, done>"


def test_cancelling_keeps_what_is_known_and_adds_nothing(session):
    asked = session("llama")
    with Busy(asked.model):
        search = writers(asked, TOKEN)
        search.watch(lambda: search.cancel())  # once a layer is done
    idle(asked.model)
    assert (search.state, search.done) == ("cancelled", 1)
    for values in (search.heads, search.heads_here, search.neurons, search.neurons_here):
        assert np.isfinite(values[0]).all() and np.isnan(values[1:]).all()
    assert set(search.frame["layer"]) == {0}
    with pytest.raises(Cancelled, match="The search was cancelled"):
        search.result(WAIT)
    assert writers(asked, TOKEN).result(WAIT).done == 3


@pytest.mark.parametrize("of", ["heads", "neurons"])
def test_cancelling_in_the_middle_of_a_layer_adds_nothing(session, monkeypatch, of):
    asked = session("llama")
    name = {"heads": "attention_read", "neurons": "neuron_outputs"}[of]
    plain, reached, go = getattr(searching, name), threading.Event(), threading.Event()

    def slow(model, layer):
        if layer == 1:
            reached.set()
            assert go.wait(WAIT)
        return plain(model, layer)

    monkeypatch.setattr(searching, name, slow)
    search = writers(asked, TOKEN)
    assert reached.wait(WAIT)
    search.cancel()
    assert search.state == "cancelled"
    go.set()
    idle(asked.model)
    assert search.done == 1 and np.isfinite(search.neurons[0]).all()
    assert np.isnan(getattr(search, of)[1:]).all() and np.isnan(getattr(search, f"{of}_here")[1:]).all()


def test_it_goes_behind_a_run_that_is_asked_for_meanwhile(session, monkeypatch):
    monkeypatch.setattr("transpector.state.task.TURN", 0)
    asked, order = session("llama"), []
    with Busy(asked.model):
        search = writers(asked, TOKEN)
        search.watch(lambda: order.append(search.done))
        asked.model.worker.submit(lambda: order.append("run"))
    search.result(WAIT)
    idle(asked.model)
    assert order[0] == "run" and order[1:4] == [1, 2, 3]


def test_a_session_that_closes_ends_it(session):
    asked = session("llama")
    with Busy(asked.model):
        search = writers(asked, TOKEN)
        asked.close()
        assert search.state == "cancelled"
    with pytest.raises(Cancelled):
        search.result(WAIT)
    assert search.done == 0 and np.isnan(search.heads).all()


# What can't be told


def test_what_is_no_token_is_refused(session):
    with pytest.raises(TextError, match="not one"):
        writers(session("llama"), " city of")
    with pytest.raises(TextError, match="Token id 512"):
        writers(session("llama"), 512)


def test_of_a_mixture_of_experts_there_are_the_heads(tmp_path):
    lm, _ = other_model(small(MixtralConfig, num_local_experts=4), tmp_path)
    found = writers(tp.Session(model=lm, text=TEXT), TOKEN).result(WAIT)
    assert np.isfinite(found.heads).all() and np.isfinite(found.heads_here).all()
    assert np.isnan(found.neurons).all() and set(found.frame["kind"]) == {"head"}


def test_of_a_model_that_norms_after_and_not_before_there_are_the_neurons(tmp_path):
    lm, hf_model = other_model(small(Olmo2Config), tmp_path)
    found = writers(tp.Session(model=lm, text=TEXT), TOKEN).result(WAIT)
    assert np.isnan(found.heads).all() and set(found.frame["kind"]) == {"neuron"}
    layer, gain = hf_model.model.layers[1], hf_model.model.norm.weight
    with torch.no_grad():
        written = layer.mlp.down_proj.weight.T * layer.post_feedforward_layernorm.weight * gain
        logits = written @ hf_model.lm_head.weight.T
        expect_near(found.neurons[1], logits[:, found.token] - logits.mean(-1))


def test_of_a_model_without_mlps_there_are_the_heads(attention_only):
    found = writers(tp.Session(model=attention_only, text=TEXT), TOKEN).result(WAIT)
    assert found.neurons.shape == (3, 0) and set(found.frame["kind"]) == {"head"}
    assert np.isfinite(found.heads).all() and len(found.frame) == 12


def test_where_both_are_hidden_it_fails_and_says_why(session, monkeypatch):
    def hidden(model, layer):
        raise ModelError(f"Hidden in layer {layer}.")

    monkeypatch.setattr(searching, "head_outputs", hidden)
    monkeypatch.setattr(searching, "neuron_outputs", hidden)
    search = writers(session("llama"), TOKEN)
    with pytest.raises(ModelError, match="Hidden in layer 2"):
        search.result(WAIT)
    assert search.state == "failed" and search.frame.empty


def test_a_model_without_a_final_norm_is_refused(tmp_path):
    config = OPTConfig(
        vocab_size=512,
        hidden_size=48,
        word_embed_proj_dim=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        ffn_dim=96,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
        do_layer_norm_before=False,
    )
    lm, _ = other_model(config, tmp_path)
    search = writers(tp.Session(model=lm, text=TEXT), TOKEN)
    with pytest.raises(ModelError, match="no final norm"):
        search.result(WAIT)
