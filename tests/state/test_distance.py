"""What heads make of distance, counted by slow loops, and worked out of Hugging Face's position embeddings and slopes."""

from functools import cache

import numpy as np
import pytest
import torch
from head_weights import HeadWeights, expect_near

from random_models import KINDS
from reference import forward
from transpector.state import distance as distances
from transpector.state.distance import LEARNED, LINEAR, MEASURED, distance
from transpector.state.errors import SiteError
from transpector.state.interventions import Ablate, Question

IDS = list(range(3, 16))
HEADS = [(0, 1), (1, 0), (2, 3)]


@pytest.fixture(scope="module")
def weights(reference_model):
    """A function: kind of random model -> its weights, by hand."""
    return cache(lambda kind: HeadWeights(reference_model(kind)))


@pytest.fixture(scope="module")
def ask(random_lm):
    def run(kind, ids=IDS, *interventions):
        return random_lm(kind).run(Question(ids, interventions))

    return run


def by_distance(table):
    """The mean of a [query, key] table over the queries that have a key so far back."""
    n = len(table)
    return [np.mean([float(table[query, query - away]) for query in range(away, n)]) for away in range(n)]


def expect_about_the_mean(found, expected):
    assert found.dtype == np.float32
    expected = np.asarray(expected)
    expect_near(found, expected - expected.mean())


@pytest.mark.parametrize("kind", KINDS)
def test_attention_at_a_distance_is_the_mean_over_the_queries_that_reach_so_far(ask, reference_model, kind):
    with torch.no_grad():
        patterns = reference_model(kind)(torch.tensor([IDS]), output_attentions=True).attentions
    for layer, head in HEADS:
        found = distance(ask(kind), layer, head)
        assert found.attention.dtype == np.float32 and found.attention.shape == (13,)
        assert np.abs(found.attention - by_distance(patterns[layer][0, head])).max() <= 1e-5


def test_attention_is_that_of_the_run_with_its_interventions(ask, reference_model):
    written = {("attn_out", 0): torch.zeros_like}
    pattern = forward(reference_model("llama"), IDS, written).activations["pattern", 2][1]
    found = distance(ask("llama", IDS, Ablate("L0.attn_out")), 2, 1)
    assert np.abs(found.attention - by_distance(pattern)).max() <= 1e-5
    assert np.abs(found.attention - distance(ask("llama"), 2, 1).attention).max() > 1e-3


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_learned_positions_are_scored_by_themselves(ask, weights, kind):
    by_hand = weights(kind)
    positions = by_hand.positions(len(IDS))
    for layer, head in HEADS:
        found = distance(ask(kind), layer, head)
        scores = by_hand.scores(layer, head, positions, positions)
        expect_about_the_mean(found.scores, by_distance(scores))
        assert found.how == LEARNED


def test_of_a_long_text_so_many_positions_are_compared(ask, weights, monkeypatch):
    monkeypatch.setattr(distances, "MAX_POSITIONS", 6)
    by_hand = weights("gpt2")
    found, positions = distance(ask("gpt2"), 1, 2), by_hand.positions(6)
    assert len(found.attention) == 13
    expect_about_the_mean(found.scores, by_distance(by_hand.scores(1, 2, positions, positions)))


def test_alibi_is_its_slope(ask):
    # Press et al. 2022, of six heads: a geometric series of four, and every other one of that of eight.
    slopes = [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]
    for layer in range(3):
        for head, slope in enumerate(slopes):
            found = distance(ask("bloom"), layer, head)
            expect_about_the_mean(found.scores, [-slope * away for away in range(13)])
            assert found.how == LINEAR


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gemma2", "gptj"])
def test_what_has_no_closed_form_is_said_to_be_measured(ask, kind):
    for layer, head in HEADS:
        found = distance(ask(kind), layer, head)
        assert found.scores is None and found.how == MEASURED and "measured on this text" in found.how


def test_a_text_of_one_token_attends_to_itself(ask):
    for kind in ("gpt2", "llama", "bloom"):
        found = distance(ask(kind, [5]), 1, 2)
        assert found.attention.tolist() == [1]
        assert found.scores is None if kind == "llama" else found.scores.tolist() == [0]


def test_a_head_or_a_layer_that_is_not_there_is_refused(ask):
    with pytest.raises(SiteError, match="heads 0 to 3, not 4"):
        distance(ask("llama"), 0, 4)
    with pytest.raises(SiteError, match="layers 0 to 2, not 3"):
        distance(ask("gpt2"), 3, 0)
