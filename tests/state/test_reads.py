"""How heads and neurons read a token is what Hugging Face's own weights make of its embedding."""

import gc
import weakref
from functools import cache

import pytest
import torch
from head_weights import HeadWeights, expect_near, other_model, small
from transformers import GraniteConfig, Olmo2Config

from random_models import KINDS, save
from reference import forward
from transpector.state import circuits, reads
from transpector.state.errors import ModelError
from transpector.state.models import load_model

LEARNED = ("gpt2", "opt")
SHARED = ("llama", "gemma2")  # keys and values, by two heads each
IDS = [7, 0, 511, 7, 300]


@pytest.fixture(scope="module")
def weights(reference_model):
    """A function: kind of random model -> its weights, by hand."""
    return cache(lambda kind: HeadWeights(reference_model(kind)))


def on_worker(lm, find, *asked):
    return lm.worker.call(lambda: find(lm, *asked))


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_brings_its_embedding_scaled_or_normed_as_the_model_does(random_lm, weights, kind):
    lm = random_lm(kind)
    expect_near(on_worker(lm, reads.token_streams, IDS), weights(kind).embedding[IDS], 1e-6)
    expect_near(on_worker(lm, reads.token_streams, torch.tensor([5])), weights(kind).embedding[[5]], 1e-6)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in LEARNED])
def test_without_learned_positions_that_is_the_stream_before_the_first_layer(
    random_lm, reference_model, kind
):
    expected = forward(reference_model(kind), IDS).activations["resid_pre", 0]
    expect_near(on_worker(random_lm(kind), reads.token_streams, IDS), expected, 1e-6)


@pytest.mark.parametrize("kind", LEARNED)
def test_learned_positions_are_what_else_is_in_it(random_lm, reference_model, weights, kind):
    lm = random_lm(kind)
    positions = on_worker(lm, reads.position_streams, 5)
    expect_near(positions, weights(kind).positions(5), 1e-5)
    expected = forward(reference_model(kind), IDS).activations["resid_pre", 0]
    expect_near(on_worker(lm, reads.token_streams, IDS) + positions, expected, 1e-6)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in LEARNED])
def test_other_models_add_nothing_for_a_position(random_lm, kind):
    assert on_worker(random_lm(kind), reads.position_streams, 5) is None


def test_an_embedding_may_be_multiplied_by_any_factor(tmp_path):
    lm, hf_model = other_model(small(GraniteConfig, embedding_multiplier=3.5), tmp_path)
    expected = 3.5 * hf_model.get_input_embeddings().weight.detach()[IDS]
    expect_near(on_worker(lm, reads.token_streams, IDS), expected, 1e-6)


@pytest.mark.parametrize("kind", ["llama", "bloom"])
def test_the_vocabulary_comes_a_few_tokens_at_a_time_and_each_once(random_lm, weights, monkeypatch, kind):
    lm = random_lm(kind)
    monkeypatch.setattr(reads, "CHUNK_BYTES", 4 * lm.spec.d_model * 100)
    parts = on_worker(lm, lambda lm: list(reads.vocabulary(lm)))
    assert [len(streams) for _, streams in parts] == [100] * 5 + [12]
    assert [n for some, _ in parts for n in range(some.start, some.stop)] == list(range(512))
    expect_near(torch.cat([streams for _, streams in parts]), weights(kind).embedding, 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_head_has_its_own_weights_or_those_that_it_shares(random_lm, weights, kind):
    lm, by_hand = random_lm(kind), weights(kind)
    assert (lm.spec.n_kv_heads < lm.spec.n_heads) == (kind in SHARED)
    for layer in range(3):
        read = on_worker(lm, reads.attention_read, layer)
        for of in "qkv":
            expected = [by_hand.inputs(layer, head, of) for head in range(lm.spec.n_heads)]
            whole = torch.stack([weight for weight, _ in expected])
            expect_near(read.weights(f"W_{of.upper()}"), whole, 1e-6)
            for head, (weight, bias) in enumerate(expected):
                expect_near(read.of(f"W_{of.upper()}", head), weight, 1e-6)
                assert (read.of(f"b_{of.upper()}", head) - bias).abs().max() <= 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_is_moved_by_the_norm_and_without_its_bias_and_gain_it_is_only_divided(
    random_lm, weights, kind
):
    lm, by_hand = random_lm(kind), weights(kind)
    streams = by_hand.embedding[IDS]
    moved = by_hand.ln1(1, streams) - by_hand.ln1(1, torch.zeros_like(streams))
    read = on_worker(lm, reads.attention_read, 1)
    expect_near(read.moved(streams.float()), moved)
    centred = streams - streams.mean(-1, keepdim=True) if by_hand.layout.centred else streams
    expect_near(read.divided(streams.float()), streams / centred.square().mean(-1, keepdim=True).sqrt(), 1e-3)
    nothing = torch.zeros(1, lm.spec.d_model)
    assert not read.moved(nothing).any() and not read.divided(nothing).any()


@pytest.mark.parametrize(
    ("kind", "factor", "cap", "unit"),
    [
        ("gpt2", 12**-0.5, None, "attention score"),
        ("llama", 12**-0.5, None, "attention score"),
        ("gpt_neox", 16**-0.5, None, "attention score"),
        ("gemma2", 24**-0.5, 3.0, "attention score"),
        ("opt", 1.0, None, "query · key"),
        ("gptj", 1.0, None, "query · key"),
        ("bloom", 8**-0.5, None, "attention score"),
    ],
)
def test_what_makes_a_score_of_a_product_is_found_out(random_lm, kind, factor, cap, unit):
    for layer in range(3):
        read = on_worker(random_lm(kind), reads.attention_read, layer)
        assert read.factor == pytest.approx(factor, rel=1e-5)
        assert (read.cap, read.unit) == (cap, unit)


@pytest.mark.parametrize("kind", KINDS)
def test_neurons_are_found_to_be_gated_where_they_are(random_lm, kind):
    read = on_worker(random_lm(kind), reads.mlp_read, 1)
    gated = kind in ("llama", "gemma2")
    assert read.gated == gated and read.pre == ("gate" if gated else "in")


def test_a_model_that_norms_after_and_not_before_is_refused(tmp_path):
    lm, _ = other_model(small(Olmo2Config), tmp_path)
    with pytest.raises(ModelError, match="How the heads of layer 1 read the residual stream can't be told"):
        on_worker(lm, reads.attention_read, 1)
    with pytest.raises(ModelError, match="What the neurons of layer 2 read can't be told"):
        on_worker(lm, reads.mlp_read, 2)


def test_weights_that_are_changed_in_place_are_read_anew(tmp_path):
    lm = load_model(str(save("gpt2", tmp_path)))
    before = on_worker(lm, reads.token_streams, IDS)
    factor = on_worker(lm, reads.attention_read, 1).held.gain

    def change(lm):
        model = lm.bridge.original_model
        model.get_input_embeddings().weight.mul_(2)
        model.get_submodule("transformer.h.1.ln_1").weight.mul_(3)

    on_worker(lm, change)
    expect_near(on_worker(lm, reads.token_streams, IDS), 2 * before, 1e-6)
    expect_near(on_worker(lm, reads.attention_read, 1).held.gain, 3 * factor, 1e-5)


def test_what_is_known_of_a_model_does_not_outlive_it(tmp_path):
    lm = load_model(str(save("bloom", tmp_path)))
    circuits.copying(lm)
    circuits.qk_tokens(lm, 1, 2, 7)
    gone = weakref.ref(lm)
    del lm
    gc.collect()
    assert gone() is None
