"""What neurons and dimensions read, write, do and matter for follows from Hugging Face's weights and its autograd."""

from functools import cache

import numpy as np
import pytest
import torch
from direct_effects import DirectEffects
from head_weights import HeadWeights, expect_near, expect_ranked, loaded_anew, other_model, small
from transformers import MixtralConfig, Olmo2Config

from random_models import KINDS
from reference import forward
from transpector.state.errors import Cancelled, InterventionError, ModelError, SiteError, TextError
from transpector.state.interventions import Ablate, Question
from transpector.state.metric import Metric
from transpector.state.neurons import dim_tokens, effects, neuron_tokens, neurons

IDS = list(range(3, 14))
GATED = ("llama", "gemma2")
ALL = 512  # tokens
METRICS = {
    "loss": Metric(),
    "log_prob": Metric("log_prob", " city"),
    "logit_diff": Metric("logit_diff", " city", " the", position=4),
}


@pytest.fixture(scope="module")
def weights(reference_model):
    """A function: kind of random model -> its weights, by hand."""
    return cache(lambda kind: HeadWeights(reference_model(kind)))


@pytest.fixture(scope="module")
def ask(random_lm):
    def run(kind, ids=IDS, *interventions):
        return random_lm(kind).run(Question(ids, interventions))

    return run


# What they do in a run


def expect_neurons(found, hf_model, by_hand, ids, layer, position, write=None):
    direct = DirectEffects(hf_model, ids, position, write)
    assert (found.layer, found.position) == (layer, position % len(ids))
    expect_near(found.post, direct.stream("mlp_post", layer))
    expect_near(found.pre, direct.stream("mlp_pre", layer))
    expect_near(found.written, direct.neurons(layer).norm(dim=-1))
    kind = hf_model.config.model_type
    if kind in GATED:
        # Neither has a bias here.
        weight = by_hand.state[f"model.layers.{layer}.mlp.up_proj.weight"]
        expect_near(found.value, weight @ by_hand.ln2(layer, direct.stream("resid_mid", layer)))
    else:
        assert found.value is None
    assert found.post.dtype == found.pre.dtype == found.written.dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("layer", "position"), [(0, -1), (1, 4), (2, 0)])
def test_what_neurons_do_at_a_position_is_what_the_plain_pass_does(
    ask, reference_model, weights, kind, layer, position
):
    found = neurons(ask(kind), layer, position)
    expect_neurons(found, reference_model(kind), weights(kind), IDS, layer, position)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_they_are_those_of_the_run_with_its_interventions(ask, reference_model, weights, kind):
    run = ask(kind, IDS, Ablate("L0.attn_out"), Ablate("L1N5.mlp_post"))

    def without(post):
        post[:, 5] = 0
        return post

    write = {("attn_out", 0): torch.zeros_like, ("mlp_post", 1): without}
    found = neurons(run, 1, -2)
    expect_neurons(found, reference_model(kind), weights(kind), IDS, 1, -2, write)
    assert found.post[5] == found.written[5] == 0 and found.pre[5] != 0


def test_a_gate_s_value_is_of_the_stream_that_was_written(ask, reference_model, weights):
    run = ask("llama", IDS, Ablate("L1.resid_mid", "mean"))
    write = {("resid_mid", 1): lambda whole: whole.mean(0, keepdim=True).expand(whole.shape)}
    expect_neurons(neurons(run, 1, 3), reference_model("llama"), weights("llama"), IDS, 1, 3, write)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_a_text_of_one_token_has_them_too(ask, reference_model, weights, kind):
    found = neurons(ask(kind, [5]), 1)
    expect_neurons(found, reference_model(kind), weights(kind), [5], 1, 0)


def test_the_frame_has_a_row_a_neuron_the_most_active_first(ask):
    found = neurons(ask("llama"), 2, 3)
    frame = found.frame
    assert list(frame) == ["neuron", "post", "pre", "value", "written"] and len(frame) == 80
    assert sorted(frame["neuron"]) == list(range(80)) and list(frame.index) == list(range(80))
    assert (np.diff(np.abs(frame["post"])) <= 0).all()
    for name in ("post", "pre", "value", "written"):
        assert (frame[name] == getattr(found, name)[frame["neuron"]]).all()
    assert list(neurons(ask("gpt2"), 2).frame) == ["neuron", "post", "pre", "written"]


# What their weights are as tokens


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("layer", "neuron"), [(0, 3), (2, 71)])
def test_what_a_neuron_reads_and_writes_follows_from_the_weights(
    random_lm, weights, monkeypatch, kind, layer, neuron
):
    lm, by_hand = random_lm(kind), weights(kind)
    monkeypatch.setattr("transpector.state.reads.CHUNK_BYTES", 4 * lm.spec.d_model * 100)
    found = neuron_tokens(lm, layer, neuron, k=ALL)
    expect_ranked(lm, found.writes, by_hand.logits(by_hand.neuron_writes(layer)[neuron]))
    assert tuple(found.reads) == (("gate", "in") if kind in GATED else ("in",))
    for name, rankings in found.reads.items():
        expect_ranked(lm, rankings, by_hand.neuron(layer, neuron, name))
    few = neuron_tokens(lm, layer, neuron, k=3)
    assert few.writes == (found.writes[0][:3], found.writes[1][:3])
    assert few.reads["in"] == (found.reads["in"][0][:3], found.reads["in"][1][:3])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [0, 37])
def test_a_dimension_of_the_stream_is_the_tokens_that_have_it_and_those_that_it_promotes(
    random_lm, weights, kind, dim
):
    lm, by_hand = random_lm(kind), weights(kind)
    found = dim_tokens(lm, dim, k=ALL)
    unit = torch.zeros(lm.spec.d_model).double()
    unit[dim] = 1
    expect_ranked(lm, found.writes, by_hand.logits(unit))
    assert set(found.reads) == {"in"}
    expect_ranked(lm, found.reads["in"], by_hand.embedding[:, dim])


def test_a_neuron_and_a_dimension_of_smollm2_follow_from_the_weights(smollm2):
    by_hand = loaded_anew(smollm2)
    found = neuron_tokens(smollm2, 12, 345, k=20)
    written = by_hand.logits(by_hand.neuron_writes(12)[345])
    expect_ranked(smollm2, found.writes, written.double())
    for name in ("gate", "in"):
        expect_ranked(smollm2, found.reads[name], by_hand.neuron(12, 345, name).double())
    found = dim_tokens(smollm2, 100, k=20)
    expect_ranked(smollm2, found.reads["in"], by_hand.embedding[:, 100].double())


# What they matter for


def metric_of(logits, metric, lm, ids):
    if metric.kind == "loss":
        return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]))
    row = logits[metric.position]
    if metric.kind == "log_prob":
        row = row.log_softmax(-1)
        return row[lm.text.token_id(metric.answer)]
    return row[lm.text.token_id(metric.answer)] - row[lm.text.token_id(metric.distractor)]


def estimate(hf_model, lm, metric, at, write=None, ids=IDS):
    """The gradient at an activation times what is taken away, by the autograd of a plain pass."""
    leaf = []

    def held(whole):
        whole = whole if write is None or at not in write else write[at](whole)
        leaf.append(whole.detach().requires_grad_())
        return leaf[0]

    logits = forward(hf_model, ids, {**(write or {}), at: held}).logits
    (gradient,) = torch.autograd.grad(metric_of(logits, metric, lm, ids), leaf)
    return -(leaf[0] * gradient).sum(0).detach()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", METRICS)
def test_what_zeroing_would_change_is_the_gradient_times_what_is_taken_away(
    ask, reference_model, kind, metric
):
    run, metric = ask(kind), METRICS[metric]
    for at in (("mlp_post", 1), ("resid_pre", 1), ("resid_pre", 0), ("mlp_post", 2)):
        found = effects(run, metric, *at)
        assert found.dtype == np.float32
        expect_near(found, estimate(reference_model(kind), run.model, metric, at))


def test_it_is_hugging_face_s_own_gradient(ask, reference_model):
    run, hf_model, leaves = ask("llama"), reference_model("llama"), {}

    def leaf_of(name):
        def hook(module, given):
            leaves[name] = given[0].detach().requires_grad_()
            return (leaves[name], *given[1:])

        return hook

    modules = {"mlp_post": hf_model.model.layers[1].mlp.down_proj, "resid_pre": hf_model.model.layers[1]}
    for kind, module in modules.items():
        handle = module.register_forward_pre_hook(leaf_of(kind))
        try:
            logits = hf_model(torch.tensor([IDS]), use_cache=False).logits[0]
        finally:
            handle.remove()
        loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(IDS[1:]))
        (gradient,) = torch.autograd.grad(loss, [leaves[kind]])
        expected = -(leaves[kind] * gradient)[0].sum(0).detach()
        expect_near(effects(run, Metric(), kind, 1), expected)


@pytest.mark.parametrize("at", [("mlp_post", 1), ("resid_pre", 1)])
def test_it_is_of_the_run_with_its_interventions(ask, reference_model, at):
    def half(whole):
        whole = whole.clone()
        whole[4] = 0
        return whole

    kind, layer = at
    run = ask("llama", IDS, Ablate(f"L{layer}.{kind}@4"), Ablate("L2.attn_out"), Ablate("L0.mlp_out@2"))

    def third(whole):
        whole = whole.clone()
        whole[2] = 0
        return whole

    write = {at: half, ("attn_out", 2): torch.zeros_like, ("mlp_out", 0): third}
    expected = estimate(reference_model("llama"), run.model, METRICS["log_prob"], at, write)
    expect_near(effects(run, METRICS["log_prob"], *at), expected)
    plain = effects(ask("llama"), METRICS["log_prob"], *at)
    assert np.abs(effects(run, METRICS["log_prob"], *at) - plain).max() > 1e-3


def test_removing_a_neuron_of_the_last_layer_does_about_what_was_estimated(ask):
    run, metric = ask("llama"), METRICS["logit_diff"]
    found = effects(run, metric, "mlp_post", 2)
    for neuron in np.argsort(-np.abs(found))[:4].tolist():
        removed = metric.of(ask("llama", IDS, Ablate(f"L2N{neuron}.mlp_post"))) - metric.of(run)
        assert removed == pytest.approx(found[neuron], rel=0.25)


def test_a_given_up_estimate_ends(ask):
    asked = []

    def cancelled():
        asked.append(True)
        return len(asked) > 1

    with pytest.raises(Cancelled):
        effects(ask("llama"), Metric(), "mlp_post", 0, cancelled=cancelled)
    assert len(asked) == 2  # of three layers
    assert effects(ask("llama"), Metric(), "mlp_post", 0).shape == (80,)


# What is not there


def test_a_layer_a_neuron_a_dimension_or_a_position_that_is_not_there_is_refused(ask):
    run = ask("llama")
    lm = run.model
    for neuron in (80, -1):
        with pytest.raises(SiteError, match=f"neurons 0 to 79, not {neuron}"):
            neuron_tokens(lm, 1, neuron)
    for dim in (48, -1):
        with pytest.raises(SiteError, match=f"dimensions 0 to 47, not {dim}"):
            dim_tokens(lm, dim)
    for position in (11, -12):
        with pytest.raises(SiteError, match=f"Position {position}: this text has positions 0 to 10"):
            neurons(run, 1, position)
    for layer in (3, -1):
        for at_layer in (
            lambda layer: neuron_tokens(lm, layer, 0),
            lambda layer: neurons(run, layer),
            lambda layer: effects(run, Metric(), "mlp_post", layer),
        ):
            with pytest.raises(SiteError, match=f"this model has layers 0 to 2, not {layer}"):
                at_layer(layer)


def test_a_metric_that_the_text_has_not_is_refused(ask):
    with pytest.raises(TextError, match="mean loss needs two tokens"):
        effects(ask("llama", [5]), Metric(), "mlp_post", 1)
    with pytest.raises(TextError, match="no answer token"):
        effects(ask("llama"), Metric("log_prob"), "mlp_post", 1)
    with pytest.raises(SiteError, match="Position 99"):
        effects(ask("llama"), Metric("log_prob", " city", position=99), "mlp_post", 1)


def test_where_layers_can_t_be_done_one_by_one_there_is_no_estimate(odd_lm):
    with pytest.raises(InterventionError, match="can't be done one by one"):
        effects(odd_lm.run(Question(IDS)), Metric(), "mlp_post", 1)


def test_what_a_mixture_of_experts_writes_is_not_told(tmp_path):
    lm, _ = other_model(small(MixtralConfig, num_local_experts=4), tmp_path)
    with pytest.raises(ModelError, match="What the neurons of layer 1 write can't be told here"):
        neuron_tokens(lm, 1, 3)


def test_what_neurons_read_without_a_norm_is_not_told_and_what_they_do_is(tmp_path):
    lm, _ = other_model(small(Olmo2Config), tmp_path)
    with pytest.raises(ModelError, match="What the neurons of layer 1 read can't be told"):
        neuron_tokens(lm, 1, 3)
    run = lm.run(Question(IDS))
    found = neurons(run, 1, 4)
    assert found.value is None
    assert (found.post == run.activation("L1.mlp_post@4")).all()
    assert (found.pre == run.activation("L1.mlp_pre@4")).all()


def test_a_model_without_mlps_has_no_neurons(attention_only):
    run = attention_only.run(Question(IDS))
    with pytest.raises(SiteError):
        neurons(run, 1)
    with pytest.raises(SiteError):
        neuron_tokens(attention_only, 1, 0)
