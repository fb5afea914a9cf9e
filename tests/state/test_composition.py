"""How heads read each other is what plain products of d_model × d_model matrices of Hugging Face's weights say."""

from functools import cache

import numpy as np
import pytest
import torch
from head_weights import HeadWeights, expect_near, loaded_anew, other_model, small
from transformers import OlmoeConfig, Qwen3Config

from random_models import KINDS
from transpector.state import composition as composing
from transpector.state.composition import composition, singular_values
from transpector.state.errors import ModelError, SiteError
from transpector.state.heads import attention_scores, repeated_random


@pytest.fixture(scope="module")
def weights(reference_model):
    """A function: kind of random model -> its weights, by hand."""
    return cache(lambda kind: HeadWeights(reference_model(kind)))


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    """A model that norms the query and the key of each head, and it once more by hand."""
    lm, hf_model = other_model(small(Qwen3Config, head_dim=12), tmp_path_factory.mktemp("qwen3"))
    return lm, HeadWeights(hf_model)


def share(first, then):
    """The norm of a product over the product of the norms."""
    return float((first @ then).norm() / (first.norm() * then.norm()))


def expect_composition(lm, by_hand, layer, head):
    found = composition(lm, layer, head)
    ov, qk = by_hand.ov(layer, head), by_hand.qk(layer, head)
    for values, circuit in ((found.q, qk), (found.k, qk.T), (found.v, ov)):
        expected = [
            [share(by_hand.ov(earlier, other), circuit) for other in range(lm.spec.n_heads)]
            for earlier in range(layer)
        ]
        assert values.shape == (layer, lm.spec.n_heads) and values.dtype == np.float32
        assert (values > 0).all() and (values < 1).all()
        expect_near(values, expected)
    assert found.chance == pytest.approx(lm.spec.d_model**-0.5)


def expect_singular_values(lm, by_hand, layer, head):
    for found, circuit in zip(
        singular_values(lm, layer, head), (by_hand.ov(layer, head), by_hand.qk(layer, head)), strict=True
    ):
        expected = torch.linalg.svdvals(circuit)
        assert found.dtype == np.float32 and len(found) == lm.spec.d_head
        expect_near(found, expected[: len(found)])
        assert expected[len(found) :].max() <= 1e-9 * expected[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("layer", "head"), [(1, 0), (2, 1), (2, 3)])
def test_a_head_composes_with_each_earlier_head_as_their_weights_do(random_lm, weights, kind, layer, head):
    expect_composition(random_lm(kind), weights(kind), layer, head)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("layer", "head"), [(0, 0), (2, 3)])
def test_singular_values_are_those_of_the_circuits_between_two_streams(random_lm, weights, kind, layer, head):
    expect_singular_values(random_lm(kind), weights(kind), layer, head)


def test_norms_of_each_head_s_query_and_key_are_counted_in(qwen3):
    for layer, head in ((1, 3), (2, 0)):
        expect_composition(*qwen3, layer, head)
        expect_singular_values(*qwen3, layer, head)


def test_where_all_heads_are_normed_at_once_it_is_refused(tmp_path):
    lm, _ = other_model(small(OlmoeConfig, num_experts=4, num_experts_per_tok=2), tmp_path)
    for ask in (composition, singular_values):
        with pytest.raises(ModelError, match="more than queries times keys"):
            ask(lm, 1, 2)


def test_a_head_of_the_first_layer_composes_with_none(random_lm):
    found = composition(random_lm("llama"), 0, 1)
    assert found.q.shape == found.k.shape == found.v.shape == (0, 4)


def test_a_layer_that_hides_what_it_writes_is_unknown_and_the_others_are_not(random_lm, monkeypatch):
    lm, plain = random_lm("llama"), composing.head_outputs
    before = composition(lm, 2, 1)

    def hidden(model, layer):
        if layer == 0:
            raise ModelError("hidden")
        return plain(model, layer)

    monkeypatch.setattr(composing, "head_outputs", hidden)
    found = composition(lm, 2, 1)
    for name in "qkv":
        assert np.isnan(getattr(found, name)[0]).all()
        assert (getattr(found, name)[1] == getattr(before, name)[1]).all()


def test_every_induction_head_of_the_built_in_model_reads_the_heads_that_attend_one_back_by_its_keys(builtin):
    scores = attention_scores(builtin.run(repeated_random(builtin)))
    back = {(layer, head) for layer, head, score in scores.top("previous_token", 3) if score > 0.5}
    assert back == {(1, 1), (1, 4), (1, 5)}
    assert {layer for layer, _, _ in scores.top("induction", 8)} == {2}
    for head in range(8):
        keys = composition(builtin, 2, head).k
        best = np.argsort(-keys, axis=None)[:4]
        assert {divmod(int(at), 8) for at in best[:3]} == back
        assert keys.flat[best[2]] > 1.1 * keys.flat[best[3]]


def test_what_heads_of_smollm2_make_of_each_other_follows_from_the_weights(smollm2):
    by_hand = loaded_anew(smollm2)
    expect_composition(smollm2, by_hand, 3, 4)
    found = singular_values(smollm2, 17, 8)
    for values, circuit in zip(found, (by_hand.ov(17, 8), by_hand.qk(17, 8)), strict=True):
        expect_near(values, torch.linalg.svdvals(circuit)[: len(values)])


@pytest.mark.parametrize("kind", KINDS)
def test_the_matrices_of_a_head_are_the_model_s_own(random_lm, weights, kind):
    lm, by_hand = random_lm(kind), weights(kind)
    for layer, head in ((0, 0), (2, 3)):
        found = composing.weights(lm, layer, head)
        assert set(found) == {"W_Q", "W_K", "W_V", "W_O"}
        for of in "qkv":
            expect_near(found[f"W_{of.upper()}"], by_hand.inputs(layer, head, of)[0], 1e-6)
        expected = by_hand.writes(layer, head)
        gain = by_hand.state.get(f"model.layers.{layer}.post_attention_layernorm.weight")
        expect_near(found["W_O"], expected / (1 + gain) if kind == "gemma2" else expected, 1e-6)
        assert all(matrix.dtype == np.float32 and matrix.flags.owndata for matrix in found.values())


@pytest.mark.parametrize("ask", [composition, singular_values, composing.weights])
def test_a_head_or_a_layer_that_is_not_there_is_refused(random_lm, ask):
    with pytest.raises(SiteError, match="a layer of this model has heads 0 to 3, not 4"):
        ask(random_lm("llama"), 1, 4)
    with pytest.raises(SiteError, match="this model has layers 0 to 2, not 3"):
        ask(random_lm("llama"), 3, 0)
