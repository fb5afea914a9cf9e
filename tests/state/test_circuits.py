"""What heads make of tokens, as the plain products of Hugging Face's weights have it, as wide as the vocabulary."""

from functools import cache

import numpy as np
import pytest
import torch
from head_weights import HeadWeights, expect_near, expect_ranked, loaded_anew, other_model, small
from transformers import Olmo2Config, OlmoeConfig, Qwen3Config

from random_models import KINDS, save
from transpector.state import circuits
from transpector.state.errors import ModelError, SiteError, TextError
from transpector.state.interventions import Question
from transpector.state.models import load_model

WITHOUT_SCORES = ("opt", "gptj")
TOKEN, TEXT = 7, " city"
ALL = 512  # tokens


@pytest.fixture(scope="module")
def weights(reference_model):
    """A function: kind of random model -> its weights, by hand."""
    return cache(lambda kind: HeadWeights(reference_model(kind)))


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    """A model that norms the query and the key of each head, and it once more by hand."""
    config = small(Qwen3Config, head_dim=12)
    lm, hf_model = other_model(config, tmp_path_factory.mktemp("qwen3"))
    return lm, HeadWeights(hf_model)


def are_the_same(found, expected):
    """Whether two sets of complex numbers are the same, to 1e-4 of the largest."""
    left, tolerance = list(expected), 1e-4 * np.abs(expected).max()
    for value in found:
        nearest = int(np.abs(np.array(left) - value).argmin())
        if abs(left.pop(nearest) - value) > tolerance:
            return False
    return not left


def expect_qk(lm, by_hand, layer, head, token):
    """All scores of a token, as a query and as a key."""
    alone, everything = by_hand.embedding[[token]], by_hand.embedding
    expected = by_hand.scores(layer, head, alone, everything)[0]
    expect_ranked(lm, circuits.qk_tokens(lm, layer, head, token, k=ALL), expected)
    expected = by_hand.scores(layer, head, everything, alone)[:, 0]
    expect_ranked(lm, circuits.qk_tokens(lm, layer, head, token, k=ALL, as_key=True), expected)


# What a head writes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("layer", "head"), [(0, 0), (1, 2), (2, 3)])
def test_what_a_head_writes_of_a_token_follows_from_the_weights(random_lm, weights, kind, layer, head):
    lm, expected = random_lm(kind), weights(kind).ov_tokens(layer, head)
    expect_ranked(lm, circuits.ov_tokens(lm, layer, head, TOKEN, k=ALL), expected[TOKEN])
    token = lm.text.token_id(TEXT)
    expect_ranked(lm, circuits.ov_tokens(lm, layer, head, TEXT, k=ALL), expected[token])
    promoted, suppressed = circuits.ov_tokens(lm, layer, head, TEXT, k=3)
    assert len(promoted) == len(suppressed) == 3
    assert circuits.ov_tokens(lm, layer, head, token, k=3) == (promoted, suppressed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("layer", "head"), [(0, 1), (2, 2)])
def test_what_a_head_writes_of_each_token_for_that_very_token_is_the_diagonal(
    random_lm, weights, monkeypatch, kind, layer, head
):
    lm = random_lm(kind)
    monkeypatch.setattr("transpector.state.reads.CHUNK_BYTES", 4 * lm.spec.d_model * 100)
    expected = weights(kind).ov_tokens(layer, head).diagonal()
    expect_ranked(lm, circuits.copied_tokens(lm, layer, head, k=ALL), expected)


# What a head looks for


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("layer", "head"), [(0, 3), (2, 1)])
def test_what_a_token_attends_to_and_what_attends_to_it_follows_from_the_weights(
    random_lm, weights, monkeypatch, kind, layer, head
):
    lm = random_lm(kind)
    monkeypatch.setattr("transpector.state.reads.CHUNK_BYTES", 4 * lm.spec.d_model * 100)
    expect_qk(lm, weights(kind), layer, head, TOKEN)
    unit = "query · key" if kind in WITHOUT_SCORES else "attention score"
    assert circuits.score_unit(lm, layer) == unit


# GPT-2's positions are in the stream as well, and here are not.
@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gemma2", "bloom"])
def test_a_token_s_score_with_itself_is_the_model_s_own(random_lm, kind):
    lm = random_lm(kind)
    for token in (TOKEN, 300):
        scores = lm.run(Question([token])).activation("L0.scores")[:, 0, 0]
        for head in range(lm.spec.n_heads):
            attended, _ = circuits.qk_tokens(lm, 0, head, token, k=ALL)
            found = dict(attended)[lm.pieces([token])[0]]
            assert found == pytest.approx(scores[head], abs=1e-4 * float(np.abs(scores).max()))


def test_a_token_can_be_named_by_its_text(random_lm):
    lm = random_lm("llama")
    for as_key in (False, True):
        by_id = circuits.qk_tokens(lm, 1, 2, lm.text.token_id(TEXT), k=4, as_key=as_key)
        assert circuits.qk_tokens(lm, 1, 2, TEXT, k=4, as_key=as_key) == by_id
        assert [len(ranking) for ranking in by_id] == [4, 4]


def test_norms_of_each_head_s_query_and_key_are_counted_in(qwen3):
    lm, by_hand = qwen3
    for layer, head in ((0, 3), (2, 1)):
        expect_qk(lm, by_hand, layer, head, TOKEN)
        expected = by_hand.ov_tokens(layer, head)[TOKEN]
        expect_ranked(lm, circuits.ov_tokens(lm, layer, head, TOKEN, k=ALL), expected)
    scores = lm.run(Question([TOKEN])).activation("L0.scores")[:, 0, 0]
    expected = [by_hand.scores(0, head, *[by_hand.embedding[[TOKEN]]] * 2)[0, 0] for head in range(4)]
    expect_near(scores, expected)


def test_where_all_heads_are_normed_at_once_scores_are_refused_and_what_is_written_is_not(tmp_path):
    config = small(OlmoeConfig, num_experts=4, num_experts_per_tok=2)
    lm, hf_model = other_model(config, tmp_path)
    for as_key in (False, True):
        with pytest.raises(ModelError, match="more than queries times keys"):
            circuits.qk_tokens(lm, 1, 2, TOKEN, as_key=as_key)
    layer = hf_model.model.layers[1]
    with torch.no_grad():
        value = layer.self_attn.v_proj(layer.input_layernorm(hf_model.model.embed_tokens.weight[TOKEN]))
        z = torch.zeros(48)
        z[24:36] = value[12:]  # the third head reads the second key-value head
        written = layer.self_attn.o_proj(z)
        logits = hf_model.lm_head(hf_model.model.norm.weight * written)
    expect_ranked(lm, circuits.ov_tokens(lm, 1, 2, TOKEN, k=ALL), (logits - logits.mean()).double())


def test_a_model_that_does_not_norm_what_its_heads_read_is_refused(tmp_path):
    lm, _ = other_model(small(Olmo2Config), tmp_path)
    for ask in (circuits.ov_tokens, circuits.qk_tokens):
        with pytest.raises(ModelError, match="How the heads of layer 1 read the residual stream"):
            ask(lm, 1, 2, TOKEN)
    for ask in (
        lambda: circuits.copied_tokens(lm, 1, 2),
        lambda: circuits.copying(lm),
        lambda: circuits.ov_eigenvalues(lm, 1, 2),
        lambda: circuits.score_unit(lm, 1),
    ):
        with pytest.raises(ModelError, match="read the residual stream can't be told"):
            ask()


def test_a_model_that_transformerlens_built_itself_is_read_like_the_others(attention_only):
    lm, d_head = attention_only, 12
    weights = attention_only.bridge.original_model.state_dict()
    weights = {name.replace("._original_component", ""): value.double() for name, value in weights.items()}

    def normed(name, x):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weights[f"{name}.weight"]

    x = normed("layers.1.ln1", weights["tok_embed.weight"]) + weights["layers.1.ln1.bias"]
    of_head = slice(2 * d_head, 3 * d_head)
    q, k, v = (x @ weights[f"layers.1.attn.{name}.weight"][of_head].T for name in "qkv")
    q, k = (each + weights[f"layers.1.attn.{name}.bias"][of_head] for each, name in ((q, "q"), (k, "k")))
    assert circuits.score_unit(lm, 1) == "query · key"  # it does not show its scores
    expect_ranked(lm, circuits.qk_tokens(lm, 1, 2, TOKEN, k=ALL), q[TOKEN] @ k.T)
    of_bias = weights["layers.1.ln1.bias"] @ weights["layers.1.attn.v.weight"][of_head].T
    written = (v[TOKEN] - of_bias) @ weights["layers.1.attn.o.weight"].T[of_head]
    written = (written - written.mean()) * weights["ln_out.weight"]
    logits = written @ weights["head.weight"].T
    expect_ranked(lm, circuits.ov_tokens(lm, 1, 2, TOKEN, k=ALL), logits - logits.mean())


# From the vocabulary to itself


@pytest.mark.parametrize("kind", KINDS)
def test_the_eigenvalues_are_those_of_the_whole_circuit_which_has_no_others(random_lm, weights, kind):
    lm = random_lm(kind)
    scores = circuits.copying(lm)
    assert scores.shape == (3, lm.spec.n_heads) and scores.dtype == np.float32
    for layer, head in ((0, 1), (1, 0), (2, 3)):
        whole = torch.linalg.eigvals(weights(kind).ov_tokens(layer, head)).numpy()  # of 512 × 512
        whole = whole[np.argsort(-np.abs(whole))]
        found = circuits.ov_eigenvalues(lm, layer, head)
        assert len(found) == lm.spec.d_head and (np.diff(np.abs(found)) <= 1e-12).all()
        assert are_the_same(found, whole[: len(found)])
        assert np.abs(whole[len(found) :]).max() <= 1e-9 * np.abs(whole[0])
        expected = whole.sum().real / np.abs(whole).sum()
        assert scores[layer, head] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_eigenvalues_add_up_to_what_all_tokens_raise_themselves_by(random_lm, kind):
    lm = random_lm(kind)
    own, _ = circuits.copied_tokens(lm, 1, 2, k=ALL)
    total, size = sum(value for _, value in own), sum(abs(value) for _, value in own)
    assert circuits.ov_eigenvalues(lm, 1, 2).sum().real == pytest.approx(total, abs=1e-5 * size)


def test_a_head_that_copies_scores_one_and_one_that_does_the_opposite_scores_less_than_none(builtin):
    scores = circuits.copying(builtin)
    assert (scores[2] > 0.99).all()  # the induction heads
    assert scores[:2].max() < 0.7 and (np.abs(scores) <= 1).all()


def test_weights_that_are_changed_in_place_are_read_anew(tmp_path):
    lm = load_model(str(save("gpt2", tmp_path)))
    before = circuits.copying(lm)
    lm.worker.call(
        lambda: lm.bridge.original_model.get_submodule("transformer.h.1.attn.c_proj").weight.neg_()
    )
    after = circuits.copying(lm)
    assert after[1] == pytest.approx(-before[1], abs=1e-4) and np.abs(before[1]).min() > 1e-3
    assert after[[0, 2]] == pytest.approx(before[[0, 2]], abs=1e-6)


# SmolLM2


def test_the_circuits_of_smollm2_follow_from_the_weights(smollm2):
    by_hand, lm = loaded_anew(smollm2), smollm2
    token = lm.text.token_id(" Paris")
    row = by_hand.embedding[[token]]
    value = by_hand.ln1(17, row) @ by_hand.inputs(17, 4, "v")[0]
    expected = by_hand.logits(value @ by_hand.writes(17, 4))[0]
    expect_ranked(lm, circuits.ov_tokens(lm, 17, 4, " Paris", k=30), expected.double())
    expected = by_hand.scores(17, 4, row, by_hand.embedding)[0]
    expect_ranked(lm, circuits.qk_tokens(lm, 17, 4, " Paris", k=30), expected.double())
    # From the unembedding to the embedding, past the vocabulary; the rest of the way round is the head's own.
    w_u = by_hand.w_u - by_hand.w_u.mean(-1, keepdim=True)
    epsilon = by_hand.config.rms_norm_eps
    divisor = (by_hand.embedding.square().mean(-1, keepdim=True) + epsilon).sqrt()
    across = (w_u @ (by_hand.embedding / divisor)).double()
    gain = by_hand.state["model.norm.weight"].double()
    for layer, head in ((0, 0), (17, 4), (29, 8)):
        circuit = by_hand.ov(layer, head).double()
        values = torch.linalg.eigvals(circuit * gain @ across).numpy()  # of 576 × 576
        values = values[np.argsort(-np.abs(values))][: lm.spec.d_head]
        assert are_the_same(circuits.ov_eigenvalues(lm, layer, head), values)
        expected = values.sum().real / np.abs(values).sum()
        assert circuits.copying(lm)[layer, head] == pytest.approx(expected, abs=1e-4)


# What is not there


def test_a_head_or_a_layer_that_is_not_there_is_refused(random_lm):
    lm = random_lm("llama")
    asked = (
        lambda layer, head: circuits.ov_tokens(lm, layer, head, TOKEN),
        lambda layer, head: circuits.qk_tokens(lm, layer, head, TOKEN),
        lambda layer, head: circuits.copied_tokens(lm, layer, head),
        lambda layer, head: circuits.ov_eigenvalues(lm, layer, head),
    )
    for ask in asked:
        with pytest.raises(SiteError, match="a layer of this model has heads 0 to 3, not 4"):
            ask(1, 4)
        with pytest.raises(SiteError, match="this model has layers 0 to 2, not 3"):
            ask(3, 0)
    with pytest.raises(SiteError, match="this model has layers 0 to 2, not 3"):
        circuits.score_unit(lm, 3)


@pytest.mark.parametrize("ask", [circuits.ov_tokens, circuits.qk_tokens])
def test_what_is_no_token_is_refused(random_lm, ask):
    lm = random_lm("llama")
    with pytest.raises(TextError, match="not one"):
        ask(lm, 1, 2, " city of")
    with pytest.raises(TextError, match="Token id 512 is outside this model's vocabulary"):
        ask(lm, 1, 2, 512)
    with pytest.raises(TextError, match="The text is empty"):
        ask(lm, 1, 2, "")


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
def test_in_bfloat16_the_same_is_told_but_for_its_rounding(random_lm, random_directory, kind):
    exact, rounded = random_lm(kind), load_model(str(random_directory(kind)), dtype="bfloat16")
    assert np.abs(circuits.copying(rounded) - circuits.copying(exact)).max() < 0.01
    for row in (circuits.ov_tokens, circuits.qk_tokens):
        told, expected = (dict(row(model, 1, 1, 5, k=512)[0]) for model in (rounded, exact))
        top = max(map(abs, expected.values()))
        assert max(abs(told[token] - value) for token, value in expected.items()) < 0.03 * top
