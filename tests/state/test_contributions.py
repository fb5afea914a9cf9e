"""What each part adds to a logit equals what its weights make of it in float64, and all of it together is the logit."""

import dataclasses

import numpy as np
import pytest
import torch
from direct_effects import DirectEffects
from transformers import AutoModelForCausalLM, OPTConfig

from random_models import save, tokenizer
from transpector.state.catalogue import resolve
from transpector.state.contributions import contributions
from transpector.state.conversion import converted
from transpector.state.errors import ModelError, SiteError, TextError
from transpector.state.interventions import Ablate, Freeze, Patch, Question
from transpector.state.metric import Metric
from transpector.state.models import load_model
from transpector.state.sites import AXES, KINDS, Site

TOLERANCE = 1e-4
ARCHITECTURES = ("gpt2", "llama", "gpt_neox", "opt", "gemma2", "gptj", "bloom")
PARALLEL = ("gpt_neox", "gptj")
IDS = list(range(3, 14))
OTHER = " tree green white street book"  # a text to patch from
LOSS, LOG_PROB = Metric(), Metric("log_prob", " city")
LOGIT_DIFF = Metric("logit_diff", " city", " the", position=4)
READOUTS = [(LOSS, None), (LOSS, 2), (LOG_PROB, None), (LOG_PROB, 5), (LOGIT_DIFF, None), (LOGIT_DIFF, -1)]


@pytest.fixture(scope="module")
def ask(random_lm):
    def run(kind, *interventions):
        return random_lm(kind).run(Question(IDS, interventions))

    return run


def read(lm, metric, position, ids=IDS):
    """Position, token, and the token that it is set against or None for the mean."""
    if metric.kind == "loss":
        at = len(ids) - 2 if position is None else position % len(ids)
        return at, ids[at + 1], None
    at = (metric.position if position is None else position) % len(ids)
    against = lm.text.token_id(metric.distractor) if metric.distractor else None
    return at, lm.text.token_id(metric.answer), against


def readout(logits, token, against):
    """The logit of the token, less that of the other or less the mean, along the last axis."""
    return logits[..., token] - (logits.mean(-1) if against is None else logits[..., against])


def assert_near(found, expected, tolerance=TOLERANCE):
    assert np.abs(np.asarray(found) - np.asarray(expected)).max() <= tolerance


def expect_sum(found, tolerance=1e-4):
    # Where the whole stream was zeroed the final norm divides by next to nothing, and each part is in the thousands.
    assert abs(found.total - found.logit) <= tolerance * max(1, np.abs(found.values).max() / 100)
    assert found.gap == pytest.approx(found.total - found.logit)
    assert np.isfinite(found.values).all()


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize(("metric", "position"), READOUTS)
def test_every_part_adds_what_follows_from_the_weights(ask, reference_model, kind, metric, position):
    run = ask(kind)
    at, token, against = read(run.model, metric, position)
    by_hand = DirectEffects(reference_model(kind), IDS, at)
    found = contributions(run, metric, position=position)

    def effect(part):
        return float(readout(by_hand.logits(part), token, against))

    expected = {"embed": effect(by_hand.stream("embed", None))}
    if by_hand.positions() is not None:
        expected["pos_embed"] = effect(by_hand.positions())
    for layer in range(3):
        heads = by_hand.heads(layer)
        expected |= {f"L{layer}H{head}.z": effect(written) for head, written in enumerate(heads)}
        expected[f"L{layer}.attn_bias"] = effect(by_hand.bias(layer))
        expected[f"L{layer}.mlp_out"] = effect(by_hand.stream("mlp_out", layer))
    expected["bias"] = float(readout(by_hand.constant(), token, against))
    assert found.parts == tuple(expected)
    assert_near(found.values, list(expected.values()))
    assert found.values.dtype == found.heads.dtype == found.mlps.dtype == np.float32
    assert found.position == at and found.unit == "logits"
    # The logit itself, from an independent pass.
    expect_sum(found)
    assert found.bent == (kind == "gemma2")
    assert_near(found.logit, float(readout(by_hand.logits_before_the_cap(), token, against)))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_arrays_hold_the_same_numbers_as_the_parts(ask, kind):
    found = contributions(ask(kind), LOG_PROB)
    n_heads = ask(kind).model.spec.n_heads
    assert found.heads.shape == (3, n_heads) and found.mlps.shape == (3,)
    for layer in range(3):
        assert found.mlps[layer] == found[f"L{layer}.mlp_out"]
        for head in range(n_heads):
            assert found.heads[layer, head] == found[f"L{layer}H{head}.z"]
    assert found.embed == found["embed"]


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("layer", [0, 2])
def test_every_neuron_adds_what_follows_from_the_weights(ask, reference_model, kind, layer):
    run = ask(kind)
    at, token, against = read(run.model, LOGIT_DIFF, None)
    by_hand = DirectEffects(reference_model(kind), IDS, at)
    found = contributions(run, LOGIT_DIFF, layer=layer)
    assert found.layer == layer and found.neurons.dtype == np.float32
    assert_near(found.neurons, readout(by_hand.logits(by_hand.neurons(layer)), token, against))
    assert_near(found.neuron_rest, float(readout(by_hand.logits(by_hand.bias(layer, 1)), token, against)))
    assert_near(found.neurons.sum() + found.neuron_rest, found.mlps[layer])


def test_no_neurons_are_told_apart_unless_asked_for(ask):
    found = contributions(ask("llama"))
    assert (found.layer, found.neurons, found.neuron_rest) == (None, None, None)


def test_every_part_of_smollm2_adds_what_follows_from_the_weights(smollm2):
    path = converted(resolve(smollm2.name).path, "float32")
    hf_model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
    ids = smollm2.tokenize("The Eiffel Tower is in the city of")
    metric = Metric("logit_diff", " Paris", " Rome")
    found = contributions(smollm2.run(Question(ids)), metric, layer=28)
    _, token, against = read(smollm2, metric, None, ids)
    by_hand = DirectEffects(hf_model, ids, -1)
    for layer in range(30):
        assert_near(found.heads[layer], readout(by_hand.logits(by_hand.heads(layer)), token, against), 1e-3)
        mlp = by_hand.logits(by_hand.stream("mlp_out", layer))
        assert_near(found.mlps[layer], float(readout(mlp, token, against)), 1e-3)
    assert_near(found.neurons, readout(by_hand.logits(by_hand.neurons(28)), token, against), 1e-3)
    expect_sum(found, 1e-3)
    assert_near(found.logit, float(readout(by_hand.reference.logits[-1], token, against)), 1e-3)
    assert found.logit > 1  # it knows


def test_the_sum_holds_at_every_position_of_smollm2_the_first_with_its_huge_activations_too(smollm2):
    ids = smollm2.tokenize("The Eiffel Tower is in the city of Paris")
    run = smollm2.run(Question(ids, (Ablate("L3.resid_mid@2"), Ablate("L9.mlp_out", "mean"))))
    for position in range(run.n_pos):
        for metric in (LOSS, Metric("log_prob", " Paris"), Metric("logit_diff", " Paris", " Rome")):
            expect_sum(contributions(run, metric, position=position), 1e-3)


# Under interventions


def interventions_at(lm, kind):
    """Every sort of intervention at layer 1, of the whole activation and of a part."""
    layer = None if kind == "embed" else 1
    whole, one = Site(kind, layer), Site(kind, layer, position=-2)
    text = lm.text.decode(IDS[::-1])
    same_length = len(lm.tokenize(text)) == len(IDS)
    yield Ablate(whole)
    yield Ablate(whole, "mean")
    yield Ablate(one)
    yield Freeze(whole, Question(IDS[::-1]))
    if kind not in ("scores", "pattern"):
        yield Patch(one, dataclasses.replace(one, position=2), OTHER)
        yield Patch(one, dataclasses.replace(one, position=0))
    if same_length:
        yield Patch(whole, whole, text)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_all_parts_add_up_to_the_logit_whatever_is_written(random_lm, architecture, kind):
    lm = random_lm(architecture)
    if not lm.health.can_write(kind):
        with pytest.raises(Exception, match="can't be changed here"):
            lm.run(Question(IDS, (Ablate(Site(kind, 1)),)))
        return
    baseline = contributions(lm.run(Question(IDS)), LOG_PROB, position=-2)
    for intervention in interventions_at(lm, kind):
        run = lm.run(Question(IDS, (intervention,)))
        for metric, position in ((LOG_PROB, -2), (LOGIT_DIFF, None), (LOSS, None)):
            found = contributions(run, metric, position=position, layer=1)
            expect_sum(found)
            assert_near(found.neurons.sum() + found.neuron_rest, found.mlps[1])
        written = tuple(part for part in found.parts if "written" in part)
        assert written == (("L1.written",) if kind in ("resid_pre", "resid_mid") else ())
    assert abs(contributions(run, LOG_PROB, position=-2).logit - baseline.logit) > 1e-3, "it must matter"


def several(lm):
    """Writes everywhere at once, at all layers."""
    kinds = [kind for kind in ("resid_pre", "resid_mid", "attn_out", "mlp_out") if lm.health.can_write(kind)]
    yield Patch("embed@4", "embed@1", OTHER)
    for layer in range(3):
        for n, kind in enumerate(kinds):
            yield Ablate(Site(kind, layer, position=(n + layer, None)), "mean" if n % 2 else "zero")
        yield Ablate(Site("z", layer, head=layer), "mean")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_parts_add_up_where_every_layer_is_written_to_at_once(random_lm, architecture):
    lm = random_lm(architecture)
    run = lm.run(Question(IDS, tuple(several(lm))))
    for position in range(len(IDS)):
        for metric in (LOSS, LOG_PROB, LOGIT_DIFF):
            expect_sum(contributions(run, metric, position=position, layer=position % 3))
    parts = contributions(run).parts
    assert [part for part in parts if "written" in part] == ["L0.written", "L1.written", "L2.written"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["resid_pre", "resid_mid"])
@pytest.mark.parametrize("layer", [0, 2])
def test_what_is_written_into_the_stream_is_a_part_of_its_own(
    ask, reference_model, architecture, kind, layer
):
    if kind == "resid_mid" and architecture in PARALLEL:
        return  # it has none
    hf_model = reference_model(architecture)
    before = DirectEffects(hf_model, IDS, -1).stream(kind, layer)
    mean = DirectEffects(hf_model, IDS, -1).reference.activations[kind, layer].mean(0)
    by_hand = DirectEffects(hf_model, IDS, -1, {(kind, layer): lambda whole: mean.expand(whole.shape)})
    run = ask(architecture, Ablate(Site(kind, layer), "mean"))
    found = contributions(run, LOG_PROB)
    _, token, against = read(run.model, LOG_PROB, None)
    expected = readout(by_hand.logits(mean - before), token, against)
    assert_near(found[f"L{layer}.written"], float(expected))
    later = by_hand.heads(2)
    assert_near(found.heads[2], readout(by_hand.logits(later), token, against))


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_stream_of_zeros_is_divided_by_the_norm_s_epsilon_alone(ask, reference_model, architecture):
    hf_model = reference_model(architecture)
    before = DirectEffects(hf_model, IDS, -1).stream("resid_mid", 2)
    by_hand = DirectEffects(hf_model, IDS, -1, {("resid_mid", 2): torch.zeros_like})
    run = ask(architecture, Ablate("L2.resid_mid"))  # neither has a bias after it
    _, token, against = read(run.model, LOG_PROB, None)
    expected = float(readout(by_hand.logits(-before), token, against))
    assert contributions(run, LOG_PROB)["L2.written"] == pytest.approx(expected, rel=1e-4)


def test_without_such_an_intervention_nothing_is_written(ask):
    for interventions in [(), (Ablate("L1.mlp_out"), Ablate("embed@2"), Ablate("L0.attn_out"))]:
        parts = contributions(ask("gpt2", *interventions)).parts
        assert not [part for part in parts if "written" in part or "beside" in part]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_head_that_is_zeroed_adds_nothing(ask, architecture):
    found = contributions(ask(architecture, Ablate("L1H2.z")), LOG_PROB)
    assert found.heads[1, 2] == 0 and found.heads[1, 1] != 0


def test_what_is_written_over_attention_s_output_is_no_head_s(ask, reference_model):
    by_hand = DirectEffects(reference_model("gemma2"), IDS, -1, {("attn_out", 1): torch.zeros_like})
    run = ask("gemma2", Ablate("L1.attn_out"))
    found = contributions(run, LOG_PROB)
    _, token, against = read(run.model, LOG_PROB, None)
    heads = readout(by_hand.logits(by_hand.heads(1)), token, against)
    assert_near(found.heads[1], heads)
    assert_near(found["L1.attn_bias"], -float(heads.sum()))


def test_a_model_that_does_something_between_its_blocks_is_summed_too(odd_lm):
    run = odd_lm.run(Question(IDS, (Ablate("embed@3"),)))
    for position in (0, 3, -1):
        found = contributions(run, LOG_PROB, position=position)
        expect_sum(found)
        assert [part for part in found.parts if "beside" in part] == ["L0.beside"]
    written = contributions(odd_lm.run(Question(IDS, (Ablate("L0.resid_pre@4"),))), LOG_PROB, position=4)
    expect_sum(written)
    assert written["L0.written"] == pytest.approx(-written.embed, abs=1e-5)  # without learned positions


# What a model has, or has not


def test_a_model_without_mlps_is_its_heads_alone(attention_only):
    found = contributions(attention_only.run(Question(IDS)), LOGIT_DIFF)
    assert found.mlps.shape == (0,) and found.heads.shape == (3, 4)
    assert not [part for part in found.parts if "mlp" in part]
    for interventions in [(), (Ablate("L1H2.z"),), (Ablate("L1.resid_pre@3"), Ablate("L0.attn_out", "mean"))]:
        run = attention_only.run(Question(IDS, interventions))
        for metric in (LOSS, LOG_PROB, LOGIT_DIFF):
            expect_sum(contributions(run, metric))
    with pytest.raises(
        ModelError, match="neurons of layer 0 can't be told apart here: this model has no MLP"
    ):
        contributions(attention_only.run(Question(IDS)), layer=0)


def test_the_heads_of_a_model_without_mlps_add_what_follows_from_the_weights(attention_only):
    run = attention_only.run(Question(IDS))
    _, token, against = read(attention_only, LOG_PROB, None)
    weights = attention_only.bridge.original_model.state_dict()
    weights = {name.replace("._original_component", ""): value.double() for name, value in weights.items()}
    resid = run.tensor(("resid_post", None))[-1].double()
    scale = ((resid - resid.mean()).square().mean() + 1e-5).sqrt()
    found = contributions(run, LOG_PROB)
    for layer in range(3):
        z = torch.tensor(run.activation(f"L{layer}.z@-1")).double()  # [head, d_head]
        results = torch.stack(
            [
                z[head] @ weights[f"layers.{layer}.attn.o.weight"].T[12 * head : 12 * head + 12]
                for head in range(4)
            ]
        )
        normed = (results - results.mean(-1, keepdim=True)) * weights["ln_out.weight"] / scale
        assert_near(found.heads[layer], readout(normed @ weights["head.weight"].T, token, against))


def test_a_model_whose_stream_is_no_sum_of_its_parts_is_refused(tmp_path):
    sizes = {"hidden_size": 48, "word_embed_proj_dim": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    ids = {"vocab_size": 512, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    config = OPTConfig(**sizes, **ids, ffn_dim=96, max_position_embeddings=128, do_layer_norm_before=False)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    run = load_model(str(tmp_path)).run(Question(IDS))
    with pytest.raises(
        ModelError, match=r"mlp_out: resid_pre [+] attn_out [+] mlp_out is not the next layer's"
    ):
        contributions(run)


def test_weights_that_are_changed_in_place_are_read_anew(tmp_path):
    lm = load_model(str(save("gpt2", tmp_path)))
    before = contributions(lm.run(Question(IDS)), LOG_PROB)
    model = lm.bridge.original_model

    def change():
        generator = torch.Generator().manual_seed(1)
        for weight in (model.lm_head.weight, *model.get_submodule("transformer.ln_f").parameters()):
            weight += 0.2 * torch.randn(weight.shape, generator=generator)

    lm.worker.call(change)
    after = contributions(lm.run(Question(IDS)), LOG_PROB)
    assert abs(after.logit - before.logit) > 0.01
    expect_sum(before)
    expect_sum(after)


# What is asked


def test_the_loss_is_read_as_the_token_that_follows(ask):
    run = ask("llama")
    pieces = run.model.pieces(IDS)
    last = contributions(run)
    assert last.position == 9 and last.note == ""
    assert last.target == f"logit of {pieces[10]!r} − the mean over the vocabulary after position 9"
    assert contributions(run, position=-4).target.startswith(f"logit of {pieces[8]!r} ")
    assert last.logit == pytest.approx(float(run.logits[9, IDS[10]] - run.logits[9].mean()), abs=1e-5)


def test_after_the_last_position_it_is_the_likeliest_token(ask, random_lm):
    run = ask("llama")
    found = contributions(run, position=-1)
    likeliest = int(run.logits[-1].argmax())
    assert found.position == 10 and "No token follows" in found.note
    assert found.target.startswith(f"logit of {run.model.pieces([likeliest])[0]!r} ")
    assert found.logit == pytest.approx(float(run.logits[-1].max() - run.logits[-1].mean()), abs=1e-5)
    alone = contributions(random_lm("llama").run(Question([5])))
    assert alone.position == 0 and "No token follows" in alone.note
    expect_sum(alone)


def test_a_logit_difference_names_both_tokens_and_its_position_can_be_another(ask):
    run = ask("llama")
    assert contributions(run, LOGIT_DIFF).target == "logit of ' city' − ' the' after position 4"
    other = contributions(run, LOGIT_DIFF, position=-1)
    assert other.target == "logit of ' city' − ' the' after position 10" and other.position == 10
    expected = dataclasses.replace(LOGIT_DIFF, position=-1).of(run)
    assert other.logit == pytest.approx(expected, abs=1e-5)
    city, the = (contributions(run, Metric("log_prob", answer), position=-1) for answer in (" city", " the"))
    assert_near(other.values, city.values - the.values, 1e-5)  # the mean falls away


def test_a_bent_model_says_so(ask):
    assert "before that" in contributions(ask("gemma2")).note
    assert contributions(ask("gemma2")).logit != pytest.approx(
        float(ask("gemma2").logits[9, IDS[10]] - ask("gemma2").logits[9].mean()), abs=1e-2
    )


@pytest.mark.parametrize(
    ("metric", "asked", "error", "message"),
    [
        (Metric("log_prob"), {}, TextError, "has no answer token"),
        (Metric("logit_diff", " city"), {}, TextError, "has no distractor token"),
        (LOG_PROB, {"position": 11}, SiteError, "Position 11: this text has positions 0 to 10"),
        (Metric("log_prob", " city", position=-12), {}, SiteError, "Position -12"),
        (LOSS, {"position": 11}, SiteError, "Position 11"),
        (LOSS, {"layer": 3}, SiteError, "this model has layers 0 to 2, not 3"),
    ],
)
def test_what_is_not_there_is_refused(ask, metric, asked, error, message):
    with pytest.raises(error, match=message):
        contributions(ask("llama"), metric, **asked)


def test_a_position_given_makes_the_metric_s_own_of_no_account(ask):
    nowhere = Metric("log_prob", " city", position=99)
    assert_near(
        contributions(ask("llama"), nowhere, position=3).values,
        contributions(ask("llama"), LOG_PROB, position=3).values,
        0,
    )


def test_the_frame_has_a_row_a_part_and_a_row_a_neuron(ask):
    found = contributions(ask("opt", Ablate("L1.resid_mid")), LOG_PROB, layer=2)
    frame = found.frame
    parts, neurons = frame[frame.neuron.isna()], frame[frame.neuron.notna()]
    assert list(frame.columns) == ["part", "kind", "layer", "head", "neuron", "value"]
    assert tuple(parts.part) == found.parts and np.array_equal(parts.value, found.values)
    assert list(neurons.neuron) == list(range(96)) and np.array_equal(neurons.value, found.neurons)
    assert set(parts.kind) == {"embed", "pos_embed", "z", "attn_bias", "written", "mlp_out", "bias"}
    rows = frame.set_index("part")
    assert tuple(rows.loc["L1H3.z", ["kind", "layer", "head"]]) == ("z", 1, 3)
    assert tuple(rows.loc["L2N7.mlp_post", ["kind", "layer", "neuron"]]) == ("mlp_post", 2, 7)
    assert rows.loc["L1.written", "layer"] == 1 and rows.loc["L0.attn_bias", "layer"] == 0
    assert parts.value.sum() == pytest.approx(found.total, abs=1e-4)


def test_a_part_is_called_like_its_site_where_it_has_one(ask):
    for part in contributions(ask("gpt2")).parts:
        if part not in ("pos_embed", "bias") and "attn_bias" not in part:
            assert str(Site.parse(part)) == part and Site.parse(part).kind in AXES
