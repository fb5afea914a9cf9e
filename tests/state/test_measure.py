"""Derived numbers equal what plain PyTorch or numpy makes of a model loaded a second time."""

import numpy as np
import pytest
import torch

from reference import forward
from transpector.state import measure
from transpector.state.interventions import Ablate, Question

TOLERANCE = 1e-4
IDS = list(range(3, 14))


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
