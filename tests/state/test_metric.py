"""The metric is what plain PyTorch makes of plain logits."""

import pytest
import torch

from random_models import random_model
from transpector.state.errors import SiteError, TextError
from transpector.state.interventions import Question
from transpector.state.metric import Metric

TEXT = "The Eiffel Tower is in the city of Paris"


@pytest.fixture(scope="module")
def run(random_lm):
    lm = random_lm("llama")
    return lm.run(Question(lm.tokenize(TEXT)))


@pytest.fixture(scope="module")
def logits(run):
    with torch.no_grad():
        return random_model("llama")(torch.tensor([run.question.token_ids])).logits[0].double()


def test_loss_is_the_mean_cross_entropy_of_every_token_but_the_first(run, logits):
    log_probs = logits.log_softmax(-1)
    losses = [-log_probs[at, token] for at, token in enumerate(run.question.token_ids[1:])]
    assert Metric().of(run) == pytest.approx(float(sum(losses) / len(losses)), abs=1e-5)


@pytest.mark.parametrize("position", [-1, 0, 3, -2])
def test_log_probability_is_of_the_answer_after_the_position(run, logits, position):
    expected = logits[position].log_softmax(-1)[run.model.text.token_id(" city")]
    assert Metric("log_prob", " city", position=position).of(run) == pytest.approx(float(expected), abs=1e-5)


def test_logit_difference_is_answer_less_distractor(run, logits):
    answer, distractor = (run.model.text.token_id(text) for text in (" city", " the"))
    expected = float(logits[-1, answer] - logits[-1, distractor])
    assert Metric("logit_diff", " city", " the").of(run) == pytest.approx(expected, abs=1e-5)
    assert Metric("logit_diff", " the", " city").of(run) == pytest.approx(-expected, abs=1e-5)


@pytest.mark.parametrize(
    ("metric", "error", "message"),
    [
        (Metric("log_prob"), TextError, "has no answer token"),
        (Metric("logit_diff", " city"), TextError, "has no distractor token"),
        (Metric("log_prob", "Zx"), TextError, r"'Zx' is 2 tokens"),
        (Metric("log_prob", " city", position=99), SiteError, "Position 99: this text has positions 0 to"),
        (Metric("log_prob", " city", position=-99), SiteError, "Position -99"),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_a_metric_without_its_tokens_or_position_says_so(run, metric, error, message):
    with pytest.raises(error, match=message):
        metric.of(run)


def test_the_loss_of_one_token_is_refused(random_lm):
    with pytest.raises(TextError, match="needs two tokens"):
        Metric().of(random_lm("llama").run(Question([5])))


def test_an_unknown_kind_is_refused():
    with pytest.raises(TextError, match="Metric 'accuracy': use one of loss, log_prob, logit_diff"):
        Metric("accuracy")


def test_a_metric_names_itself_and_its_unit():
    assert (Metric().label, Metric().unit) == ("mean loss", "nats")
    named = Metric("logit_diff", " city", " the", position=3)
    assert (named.label, named.unit) == ("logit of ' city' − ' the' after position 3", "logits")
    assert "the last token" in Metric("log_prob", " city").label
