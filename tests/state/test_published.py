"""GPT-2 small gives the values that were published of it; needs the internet, or the model in the hub's cache.

Run them with ``HF_HUB_OFFLINE=0 pytest -m network``. The values are those of TransformerLens's demonstrations
(Exploratory Analysis; Main), which begin every text with BOS.
"""

import numpy as np
import pytest

import transpector as tp
from transpector.state import heads, hub
from transpector.state.interventions import Question

pytestmark = pytest.mark.network

PROMPTS = (
    ("When John and Mary went to the shops,{} gave the bag to", " Mary", " John"),
    ("When Tom and James went to the park,{} gave the ball to", " Tom", " James"),
    ("When Dan and Sid went to the shops,{} gave an apple to", " Dan", " Sid"),
    ("After Martin and Amy went to the park,{} gave a drink to", " Martin", " Amy"),
)
"""Texts with a gap, and the two names; the one that fills the gap is not who receives."""

ABSTRACT = (
    "Natural language processing tasks, such as question answering, machine translation, reading comprehension, and "
    "summarization, are typically approached with supervised learning on taskspecific datasets."
)


@pytest.fixture(scope="module")
def gpt2():
    if not hub.reachable():
        pytest.skip("needs the internet")
    return tp.load_model("openai-community/gpt2")


@pytest.fixture(scope="module")
def indirect_objects(gpt2):
    """Runs of the eight prompts, each with the metric that asks for the right name."""
    found = []
    for text, *names in PROMPTS:
        for answer, distractor in (names, names[::-1]):
            ids = gpt2.tokenize(text.format(distractor), bos=True)
            metric = tp.Metric("logit_diff", answer, distractor)
            found.append((gpt2.run(Question(ids, (), True)), metric))
    return found


def test_mary_is_given_the_milk(gpt2):
    ids = gpt2.tokenize("After John and Mary went to the store, John gave a bottle of milk to", bos=True)
    token, probability = gpt2.run(Question(ids, (), True)).next_tokens(k=1)[0]
    assert (token, probability) == (" Mary", pytest.approx(0.70, abs=0.005))


def test_indirect_objects_are_told_from_subjects(indirect_objects):
    differences = [metric.of(run) for run, metric in indirect_objects]
    assert np.mean(differences) == pytest.approx(3.552, abs=2e-3)


def test_the_name_movers_lead_the_contributions_and_the_negative_ones_end_them(indirect_objects):
    found = [tp.contributions(run, metric) for run, metric in indirect_objects]
    assert max(abs(each.gap) for each in found) <= 1e-3
    heads = np.mean([each.heads for each in found], axis=0)
    order = [divmod(int(place), heads.shape[1]) for place in heads.ravel().argsort()]
    assert set(order[-2:]) == {(9, 9), (9, 6)}
    assert set(order[:2]) == {(10, 7), (11, 10)}


def test_without_the_values_of_head_8_of_layer_0_the_loss_is_higher(gpt2):
    question = Question(gpt2.tokenize(ABSTRACT, bos=True), (), True)
    without = Question(question.token_ids, (tp.Ablate("L0H8.v"),), True)
    assert gpt2.run(question).loss.mean() == pytest.approx(3.999, abs=1e-3)
    assert gpt2.run(without).loss.mean() == pytest.approx(4.117, abs=1e-3)


def test_the_induction_heads_and_the_previous_token_head_are_found(gpt2):
    found = heads.attention_scores(gpt2.run(heads.repeated_random(gpt2, 50, bos=True)))
    assert {(5, 5), (6, 9)} <= {(layer, head) for layer, head, _ in found.top("induction", 5)}
    assert found.top("previous_token", 1)[0][:2] == (4, 11)
