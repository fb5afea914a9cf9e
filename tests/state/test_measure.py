"""Derived numbers equal what plain PyTorch or numpy makes of a model loaded a second time."""

import numpy as np
import pytest
import torch

from random_models import random_model, tokenizer
from reference import forward
from transpector.state import measure
from transpector.state.interventions import Ablate, Question
from transpector.state.models import load_model

TOLERANCE = 1e-4
WITH_HEADS = ("gpt2", "llama", "gpt_neox", "opt", "gemma2", "gptj", "bloom")
IDS = list(range(3, 14))


@pytest.fixture(scope="module")
def reference_model():
    models = {}

    def model(kind):
        if kind not in models:
            models[kind] = random_model(kind)
        return models[kind]

    return model


@pytest.fixture(scope="module")
def ask(random_lm):
    def run(kind, ids=IDS, *interventions):
        return random_lm(kind).run(Question(ids, interventions))

    return run


def pooled(pattern, side):
    """The maximum of each cell by brute force; float32 [cell, cell]."""
    stride = -(-len(pattern) // side)
    cells = -(-len(pattern) // stride)
    out = np.zeros((cells, cells), np.float32)
    for query, key in np.ndindex(pattern.shape):
        cell = query // stride, key // stride
        out[cell] = max(out[cell], pattern[query, key])
    return out


@pytest.mark.parametrize(
    ("n_pos", "side"), [(1, 64), (11, 64), (64, 64), (65, 64), (100, 64), (128, 64), (11, 4), (12, 4), (7, 3)]
)
def test_thumbnails_are_maxima_of_cells(ask, reference_model, n_pos, side):
    ids = [3 + n % 200 for n in range(n_pos)]
    run = ask("llama", ids)
    bytes_, maxima, stride = measure.thumbnails(run, side)
    patterns = forward(reference_model("llama"), ids).activations
    cells = -(-n_pos // stride)
    assert bytes_.dtype == np.uint8 and bytes_.shape == (3, 4, cells, cells) and cells <= side
    assert (stride - 1) * side < n_pos <= stride * side
    for layer, head in np.ndindex(3, 4):
        pattern = patterns["pattern", layer][head].numpy()
        expected = pooled(pattern, side) * 255
        assert np.abs(bytes_[layer, head].astype(float) - expected).max() <= 0.5 + 255 * TOLERANCE
        # The first query sees but itself, so its 1 does not count.
        assert maxima[layer, head] == pytest.approx(pattern[min(1, n_pos - 1) :].max(), abs=TOLERANCE)


def test_bytes_round_and_clip(ask):
    probability = torch.tensor([0.0, 1.0, 0.5 / 255 - 1e-6, 0.5 / 255 + 1e-6, 0.2, -3.0, 7.0])
    assert measure.as_bytes(probability).tolist() == [0, 255, 0, 1, 51, 0, 255]


def test_thumbnails_show_the_pattern_of_this_run(ask):
    ablated = ask("llama", IDS, Ablate("L1H2.pattern"))
    bytes_, maxima, _ = measure.thumbnails(ablated)
    assert not bytes_[1, 2].any() and maxima[1, 2] == 0
    assert bytes_[1, 1].any()


def test_the_strip_has_the_head_its_layer_s_mean_and_the_mean_of_all(ask, reference_model):
    strip = measure.strip_patterns(ask("gpt2"), 1, 2)
    patterns = forward(reference_model("gpt2"), IDS).activations
    stack = np.stack([patterns["pattern", layer].numpy() for layer in range(3)])  # [layer, head, query, key]
    expected = np.stack([stack[1, 2], stack[1].mean(0), stack.mean((0, 1))]) * 255
    assert strip.dtype == np.uint8 and strip.shape == (3, 11, 11)
    assert np.abs(strip - expected).max() <= 0.5 + 255 * TOLERANCE


def test_the_predicted_token_is_the_likeliest_at_each_position(ask, reference_model):
    run = ask("gpt2")
    logits = forward(reference_model("gpt2"), IDS).logits
    probabilities = logits.softmax(-1).numpy()
    predicted = measure.predicted(run)
    assert [token for token, _ in predicted] == list(run.model.pieces(probabilities.argmax(-1).tolist()))
    assert [p for _, p in predicted] == pytest.approx(probabilities.max(-1).tolist(), abs=TOLERANCE)


def test_next_tokens_stand_beside_the_baseline_s(ask, reference_model):
    baseline, run = (
        ask("llama"),
        ask("llama", IDS, Ablate("L1.attn_out"), Ablate("L2.attn_out"), Ablate("L2.mlp_out")),
    )
    before = forward(reference_model("llama"), IDS).logits[-1].softmax(-1)
    rows = measure.next_tokens(run, baseline, k=3)
    assert len(rows) == 3 and before.argmax() in [row[0] for row in rows]
    for token_id, piece, now, then in rows:
        assert (piece,) == run.model.pieces([token_id])
        assert now == pytest.approx(float(run.logits[-1].softmax(-1)[token_id]), abs=1e-6)
        assert then == pytest.approx(float(before[token_id]), abs=TOLERANCE)


# Where each architecture keeps the output bias of attention, which belongs to no head.
BIAS = {
    "gpt2": lambda hf, layer: hf.transformer.h[layer].attn.c_proj.bias,
    "llama": lambda hf, layer: torch.zeros(48),
    "gpt_neox": lambda hf, layer: hf.gpt_neox.layers[layer].attention.dense.bias,
    "opt": lambda hf, layer: hf.model.decoder.layers[layer].self_attn.out_proj.bias,
    "gemma2": lambda hf, layer: torch.zeros(48),
    "gptj": lambda hf, layer: torch.zeros(64),
    "bloom": lambda hf, layer: hf.transformer.h[layer].self_attention.dense.bias,
}


@pytest.mark.parametrize("kind", WITH_HEADS)
def test_heads_and_the_output_bias_add_up_to_what_attention_writes(ask, reference_model, kind):
    hf_model, run = reference_model(kind), ask(kind)
    reference = forward(hf_model, IDS)
    for layer in range(3):
        heads = sum(measure.head_result(run, layer, head) for head in range(run.model.spec.n_heads))
        with torch.no_grad():
            written = heads + BIAS[kind](hf_model, layer)
            if kind == "gemma2":
                written = hf_model.model.layers[layer].post_attention_layernorm(written)
        assert (written - reference.activations["attn_out", layer]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("kind", WITH_HEADS)
def test_one_head_s_result_is_what_its_removal_takes_away(ask, kind):
    run, without = ask(kind), ask(kind, IDS, Ablate("L1H2.z"))
    if kind == "gemma2":
        return  # the norm after attention does not add up
    taken = torch.tensor(run.activation("L1.attn_out") - without.activation("L1.attn_out"))
    assert (measure.head_result(run, 1, 2) - taken).abs().max() <= TOLERANCE
    assert np.abs(measure.result_norm(run, 1, 2) - taken.norm(dim=-1).numpy()).max() <= TOLERANCE


def direct_effect(hf_model, ids, kind, layer, head, position):
    """Logits of each token about their mean that a head's result adds directly, from the weights alone; float64."""
    reference = forward(hf_model, ids)
    z = reference.activations["z", layer][position].double()  # [head, d_head]
    d_head = z.shape[-1]
    resid = reference.activations["resid_post", len(range(hf_model.config.num_hidden_layers)) - 1][
        position
    ].double()
    rows = slice(head * d_head, (head + 1) * d_head)
    if kind == "gpt2":
        w_o = hf_model.transformer.h[layer].attn.c_proj.weight.double()  # [head * d_head, d_model]
        gamma, epsilon = hf_model.transformer.ln_f.weight.double(), hf_model.config.layer_norm_epsilon
        resid = resid - resid.mean()
    else:
        block = hf_model.model.layers[layer]
        w_o = block.self_attn.o_proj.weight.double().T
        gamma, epsilon = hf_model.model.norm.weight.double(), hf_model.config.rms_norm_eps
    result = z[head] @ w_o[rows]
    if kind == "gemma2":
        gamma = 1 + gamma
        whole = z.flatten() @ w_o
        post = block.post_attention_layernorm
        result = result * (1 + post.weight.double()) / (whole.pow(2).mean() + epsilon).sqrt()
    scale = (resid.pow(2).mean() + epsilon).sqrt()
    if kind == "gpt2":
        result = result - result.mean()
    w_u = hf_model.get_output_embeddings().weight.double()  # [d_vocab, d_model]
    return (w_u - w_u.mean(0)) @ (result * gamma / scale)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize(("layer", "head", "position"), [(0, 1, -1), (2, 3, 4), (1, 0, 0)])
def test_what_a_head_promotes_and_suppresses_follows_from_the_weights(
    ask, reference_model, kind, layer, head, position
):
    run = ask(kind)
    with torch.no_grad():
        effect = direct_effect(reference_model(kind), IDS, kind, layer, head, position)
    promoted, suppressed = measure.head_tokens(run, layer, head, position, k=4)
    for rows, largest in ((promoted, True), (suppressed, False)):
        expected = effect.topk(4, largest=largest)
        assert [piece for piece, _ in rows] == list(run.model.pieces(expected.indices.tolist()))
        assert [value for _, value in rows] == pytest.approx(expected.values.tolist(), abs=TOLERANCE)


def test_the_norm_s_epsilon_counts_where_attention_writes_little(tmp_path):
    hf_model = random_model("gemma2")
    with torch.no_grad():
        for block in hf_model.model.layers:
            block.self_attn.o_proj.weight *= 1e-3
    hf_model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    run = load_model(str(tmp_path)).run(Question(IDS))
    with torch.no_grad():
        expected = direct_effect(hf_model, IDS, "gemma2", 1, 2, -1).topk(4).values.tolist()
    promoted, _ = measure.head_tokens(run, 1, 2, -1, k=4)
    assert [value for _, value in promoted] == pytest.approx(expected, rel=1e-4)


def test_what_a_head_promotes_on_smollm2_follows_from_the_weights(smollm2):
    from transformers import AutoModelForCausalLM

    from transpector.state.catalogue import resolve
    from transpector.state.conversion import converted

    path = converted(resolve(smollm2.name).path, "float32")
    hf_model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
    ids = smollm2.tokenize("The Eiffel Tower is in the city of")
    run = smollm2.run(Question(ids))
    with torch.no_grad():
        effect = direct_effect(hf_model, ids, "llama", 25, 4, -1)
    promoted, suppressed = measure.head_tokens(run, 25, 4, -1)
    assert [value for _, value in promoted] == pytest.approx(effect.topk(5).values.tolist(), abs=1e-3)
    assert [value for _, value in suppressed] == pytest.approx(
        effect.topk(5, largest=False).values.tolist(), abs=1e-3
    )
    assert promoted[0][0] == smollm2.pieces([int(effect.argmax())])[0]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox", "opt", "bloom", "gptj"])
def test_every_part_of_the_residual_stream_together_gives_the_logits(ask, reference_model, kind):
    run = ask(kind)
    logits = forward(reference_model(kind), IDS).logits[-1]
    total = measure.to_logits(run, run.tensor(("resid_post", None))[-1], -1)
    bias = 0.0
    hf_model = reference_model(kind)
    with torch.no_grad():  # the final norm's bias and the unembedding's are no part of the stream
        norms = {
            "gpt2": "transformer.ln_f",
            "gpt_neox": "gpt_neox.final_layer_norm",
            "opt": "model.decoder.final_layer_norm",
            "bloom": "transformer.ln_f",
            "gptj": "transformer.ln_f",
        }
        unembedding = hf_model.get_output_embeddings()
        if kind in norms:
            bias = unembedding.weight @ hf_model.get_submodule(norms[kind]).bias
        if unembedding.bias is not None:
            bias = bias + unembedding.bias
    expected = logits - bias
    assert (total - (expected - expected.mean())).abs().max() <= TOLERANCE


def test_a_position_that_the_text_lacks_is_refused(ask):
    from transpector.state.errors import SiteError

    with pytest.raises(SiteError, match="Position 11: this text has positions 0 to 10"):
        measure.head_tokens(ask("llama"), 0, 0, 11)


def test_an_induction_score_is_the_attention_to_what_followed_the_last_time(ask, reference_model):
    ids = [5, 9, 7, 5, 9, 30, 7, 7, 5]
    patterns = forward(reference_model("llama"), ids).activations
    # (query, key): 5 -> after the first 5, and so on; the second 7 in a row attends to itself.
    pairs = [(3, 1), (4, 2), (6, 3), (7, 7), (8, 4)]
    expected = [
        [np.mean([float(patterns["pattern", layer][head, q, k]) for q, k in pairs]) for head in range(4)]
        for layer in range(3)
    ]
    assert measure.induction_scores(ask("llama", ids)) == pytest.approx(np.array(expected), abs=TOLERANCE)
    assert not measure.induction_scores(ask("llama", [5, 6, 7])).any()
