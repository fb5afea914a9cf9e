"""What a part of the model promotes is what its weights make of what it wrote."""

import numpy as np
import pytest
import torch
from direct_effects import DirectEffects
from transformers import AutoModelForCausalLM, CohereConfig, GraniteConfig, MixtralConfig, OPTConfig

from random_models import random_model, tokenizer
from transpector.state import direct
from transpector.state.catalogue import resolve
from transpector.state.conversion import converted
from transpector.state.errors import ModelError, SiteError
from transpector.state.graph import graph
from transpector.state.interventions import Ablate, Question
from transpector.state.models import load_model

TOLERANCE = 1e-4
WITH_HEADS = ("gpt2", "llama", "gpt_neox", "opt", "gemma2", "gptj", "bloom")
PARALLEL = ("gpt_neox", "gptj")
IDS = list(range(3, 14))
SMALL = {
    "vocab_size": 512,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}


@pytest.fixture(scope="module")
def ask(random_lm):
    def run(kind, ids=IDS, *interventions):
        return random_lm(kind).run(Question(ids, interventions))

    return run


def loaded(hf_model, directory):
    hf_model.save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return load_model(str(directory))


def from_config(config):
    """A model of some other architecture whose every weight matters."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        hf_model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        for parameter in hf_model.parameters():
            parameter += 0.15 * torch.randn_like(parameter)
    return hf_model


def expect_ranked(run, rankings, effect, tolerance=TOLERANCE):
    """What is promoted and suppressed are the ends of ``effect`` [d_vocab], about its mean."""
    effect = effect - effect.mean()
    for rows, largest in zip(rankings, (True, False), strict=True):
        expected = effect.topk(len(rows), largest=largest)
        assert [piece for piece, _ in rows] == list(run.model.pieces(expected.indices.tolist()))
        assert [value for _, value in rows] == pytest.approx(expected.values.tolist(), abs=tolerance)


@pytest.mark.parametrize("kind", WITH_HEADS)
def test_heads_and_the_output_bias_add_up_to_what_attention_writes(ask, reference_model, kind):
    run = ask(kind)
    for layer in range(3):
        by_hand = DirectEffects(reference_model(kind), IDS, 5)
        heads = sum(direct.head_result(run, layer, head)[5] for head in range(run.model.spec.n_heads))
        written = heads + by_hand.bias(layer)
        if kind == "gemma2":
            norm = reference_model(kind).model.layers[layer].post_attention_layernorm
            with torch.no_grad():
                written = norm(written.float())
        assert (written - by_hand.stream("attn_out", layer)).abs().max() <= TOLERANCE


@pytest.mark.parametrize(
    "kind", [kind for kind in WITH_HEADS if kind != "gemma2"]
)  # whose norm does not add up
def test_one_head_s_result_is_what_its_removal_takes_away(ask, kind):
    run, without = ask(kind), ask(kind, IDS, Ablate("L1H2.z"))
    taken = torch.tensor(run.activation("L1.attn_out") - without.activation("L1.attn_out"))
    assert (direct.head_result(run, 1, 2) - taken).abs().max() <= TOLERANCE
    assert np.abs(direct.result_norm(run, 1, 2) - taken.norm(dim=-1).numpy()).max() <= TOLERANCE


@pytest.mark.parametrize("kind", WITH_HEADS)
@pytest.mark.parametrize(("layer", "head", "position"), [(0, 1, -1), (2, 3, 4), (1, 0, 0)])
def test_what_a_head_promotes_and_suppresses_follows_from_the_weights(
    ask, reference_model, kind, layer, head, position
):
    run, by_hand = ask(kind), DirectEffects(reference_model(kind), IDS, position)
    expected = by_hand.logits(by_hand.heads(layer)[head])
    expect_ranked(run, direct.promoted(run, f"L{layer}H{head}.z", position, k=4), expected)


@pytest.mark.parametrize("kind", WITH_HEADS)
@pytest.mark.parametrize("position", [-1, 3])
def test_what_any_part_of_the_stream_promotes_follows_from_the_weights(ask, reference_model, kind, position):
    run, by_hand = ask(kind), DirectEffects(reference_model(kind), IDS, position)
    sites = ["embed", "L0.resid_pre", "L1.attn_out", "L1.resid_mid", "L2.mlp_out"]
    for site in sites if kind not in PARALLEL else sites[:3] + sites[4:]:
        layer, _, name = site.rpartition(".")
        written = by_hand.stream(name, int(layer[1:]) if layer else None)
        expect_ranked(run, direct.promoted(run, site, position, k=3), by_hand.logits(written))


@pytest.mark.parametrize("kind", WITH_HEADS)
def test_what_a_neuron_promotes_is_its_activation_times_its_row(ask, reference_model, kind):
    run, by_hand = ask(kind), DirectEffects(reference_model(kind), IDS, 6)
    neurons = by_hand.neurons(1)
    busiest = int(neurons.norm(dim=-1).argmax())
    expect_ranked(
        run, direct.promoted(run, f"L1N{busiest}.mlp_post", 6, k=3), by_hand.logits(neurons[busiest])
    )
    expect_ranked(run, direct.promoted(run, "L1.mlp_post", 6, k=3), by_hand.logits(neurons.sum(0)))


def test_all_heads_of_a_layer_promote_what_their_sum_does(ask, reference_model):
    run, by_hand = ask("gemma2"), DirectEffects(reference_model("gemma2"), IDS, -1)
    expect_ranked(run, direct.promoted(run, "L1.z", k=3), by_hand.logits(by_hand.heads(1).sum(0)))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_one_dimension_of_the_stream_promotes_what_it_does_alone(ask, reference_model, kind):
    run = ask(kind)
    by_hand = DirectEffects(reference_model(kind), IDS, 6)
    whole = by_hand.stream("resid_pre", 1)
    alone = torch.zeros_like(whole)
    alone[..., 7] = whole[..., 7]
    expect_ranked(run, direct.promoted(run, "L1D7.resid_pre", 6, k=3), by_hand.logits(alone))
    up, down = direct.promoted_everywhere(run, "L1D7.resid_pre", k=3)
    assert up.values.shape == down.values.shape == (run.n_pos, 3)


def test_a_part_of_the_graph_promotes_what_its_site_does(ask, reference_model):
    run, parts = ask("llama"), graph(ask("llama").model)
    assert direct.promoted(run, parts["L1H2.z"], 4) == direct.promoted(run, "L1H2.z", 4)
    assert direct.promoted(run, parts["L2.resid_pre"].at(3), 9) == direct.promoted(run, "L2.resid_pre", 3)
    last = DirectEffects(reference_model("llama"), IDS, 4)
    expected = last.logits(last.stream("resid_post", 2))
    expect_ranked(run, direct.promoted(run, parts["L2.resid_post"], 4), expected)


def test_a_site_that_names_a_position_is_read_there(ask):
    run = ask("llama")
    assert direct.promoted(run, "L1H2.z@3", -1) == direct.promoted(run, "L1H2.z", 3)
    assert direct.promoted(run, "L1H2.z@3", -1) != direct.promoted(run, "L1H2.z", -1)


def test_a_head_promotes_what_it_does_in_this_run(ask, reference_model):
    run = ask("llama", IDS, Ablate("L0.mlp_out"))
    written = {("mlp_out", 0): torch.zeros_like}
    by_hand = DirectEffects(reference_model("llama"), IDS, -1, written)
    expect_ranked(run, direct.promoted(run, "L1H2.z"), by_hand.logits(by_hand.heads(1)[2]))
    for rows in direct.promoted(ask("llama", IDS, Ablate("L1H2.z")), "L1H2.z"):
        assert [value for _, value in rows] == [0] * 5


@pytest.mark.parametrize(
    ("kind", "part"), [("llama", "L2H1.z"), ("gemma2", "L1H0.z"), ("gpt2", "L0N7.mlp_post")]
)
def test_everywhere_at_once_is_every_position_by_itself(ask, monkeypatch, kind, part):
    monkeypatch.setattr(direct, "MAX_BYTES", 4 * 512 * 3)  # three positions at a time
    run = ask(kind)
    everywhere = direct.promoted_everywhere(run, part, k=3)
    for position in range(run.n_pos):
        for ranking, rows in zip(everywhere, direct.promoted(run, part, position, k=3), strict=True):
            assert ranking.token_ids.shape == ranking.values.shape == (11, 3)
            assert run.model.pieces(ranking.token_ids[position].tolist()) == tuple(row[0] for row in rows)
            assert ranking.values[position] == pytest.approx([row[1] for row in rows], abs=1e-5)


def test_no_more_logits_than_25_mb_are_made_at_a_time(smollm2, monkeypatch):
    made = []
    some = direct._logits

    def noted(run, parts, positions):
        logits, mean = some(run, parts, positions)
        made.append(logits.nbytes)
        return logits, mean

    monkeypatch.setattr(direct, "_logits", noted)
    run = smollm2.run(Question(range(100, 300)))
    direct.promoted_everywhere(run, "L3H2.z")
    assert max(made) <= 25e6 and sum(made) == 200 * smollm2.spec.d_vocab * 4


def test_the_norm_s_epsilon_counts_where_attention_writes_little(tmp_path):
    hf_model = random_model("gemma2")
    with torch.no_grad():
        for block in hf_model.model.layers:
            block.self_attn.o_proj.weight *= 1e-3
    run = loaded(hf_model, tmp_path).run(Question(IDS))
    by_hand = DirectEffects(hf_model, IDS, -1)
    effect = by_hand.logits(by_hand.heads(1)[2])
    expected = (effect - effect.mean()).topk(4).values.tolist()
    promoted, _ = direct.promoted(run, "L1H2.z", -1, k=4)
    assert [value for _, value in promoted] == pytest.approx(expected, rel=1e-4)


def test_what_parts_of_smollm2_promote_follows_from_the_weights(smollm2):
    path = converted(resolve(smollm2.name).path, "float32")
    hf_model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
    ids = smollm2.tokenize("The Eiffel Tower is in the city of")
    run, by_hand = smollm2.run(Question(ids)), DirectEffects(hf_model, ids, -1)
    parts = {
        "L25H4.z": by_hand.heads(25)[4],
        "L28N100.mlp_post": by_hand.neurons(28)[100],
        "L29.mlp_out": by_hand.stream("mlp_out", 29),
    }
    for part, written in parts.items():
        expect_ranked(run, direct.promoted(run, part), by_hand.logits(written), 1e-3)


@pytest.mark.parametrize("kind", [kind for kind in WITH_HEADS if kind != "gemma2"])  # which bends its logits
def test_every_part_of_the_residual_stream_together_gives_the_logits(ask, reference_model, kind):
    run, by_hand = ask(kind), DirectEffects(reference_model(kind), IDS, 7)
    total = direct.to_logits(run, run.tensor(("resid_post", None))[[7]], [7])[0]
    expected = by_hand.reference.logits[7] - by_hand.constant()
    assert (total - (expected - expected.mean())).abs().max() <= TOLERANCE


@pytest.mark.parametrize(
    ("config", "factor", "divisor"),
    [
        (
            GraniteConfig(**SMALL, intermediate_size=80, residual_multiplier=0.22, logits_scaling=8.0),
            0.22,
            8.0,
        ),
        (CohereConfig(**SMALL, intermediate_size=80, num_key_value_heads=2, logit_scale=0.25), 1.0, 4.0),
    ],
    ids=["granite", "cohere"],
)
def test_a_model_that_scales_what_it_adds_or_its_logits_is_seen_to(tmp_path, config, factor, divisor):
    hf_model = from_config(config)
    run = loaded(hf_model, tmp_path).run(Question(IDS))
    with torch.no_grad():
        expected = run.logits[4] - run.logits[4].mean()
        total = direct.to_logits(run, run.tensor(("resid_post", None))[[4]], [4])[0]
        assert (total - expected).abs().max() <= TOLERANCE  # neither has a bias
        w_o = hf_model.model.layers[1].self_attn.o_proj.weight.T[12:24]
        result = factor * torch.tensor(run.activation("L1H1.z@4")) @ w_o
        resid = run.tensor(("resid_post", None))[4]
        norm = hf_model.model.norm
        centred = (lambda x: x - x.mean()) if divisor == 4 else (lambda x: x)
        scale = (centred(resid).square().mean() + 1e-6).sqrt()
        epsilon = getattr(norm, "variance_epsilon", None)
        assert epsilon is None or epsilon <= 1e-5  # too small to matter here
        effect = centred(result) * norm.weight / scale @ hf_model.lm_head.weight.T / divisor
    expect_ranked(run, direct.promoted(run, "L1H1.z", 4), effect)


@pytest.mark.parametrize("part", ["L1H0.q", "L1.k", "L1.v", "L1.scores", "L1H2.pattern", "L1N3.mlp_pre"])
def test_what_is_not_added_to_the_stream_is_refused(ask, part):
    with pytest.raises(SiteError, match=rf"{part} is not added to the residual stream.* Choose a head's z"):
        direct.promoted(ask("llama"), part)


@pytest.mark.parametrize("part", ["ln_final", "L1.ln1"])
def test_a_part_of_the_graph_that_is_no_site_is_refused(ask, part):
    with pytest.raises(SiteError, match=f"{part} is not added to the residual stream"):
        direct.promoted(ask("llama"), graph(ask("llama").model)[part])


def test_a_part_or_a_position_that_is_not_there_is_refused(ask):
    with pytest.raises(SiteError, match="Position 11: this text has positions 0 to 10"):
        direct.promoted(ask("llama"), "L0H0.z", 11)
    with pytest.raises(SiteError, match="a layer of this model has heads 0 to 3, not 4"):
        direct.promoted(ask("llama"), "L0H4.z")
    with pytest.raises(
        SiteError, match=r"L0.resid_mid can't be read here: attention and MLP work side by side"
    ):
        direct.promoted(ask("gptj"), "L0.resid_mid")


def test_a_model_without_a_final_norm_is_refused(tmp_path):
    sizes = SMALL | {"word_embed_proj_dim": 32, "ffn_dim": 96}
    run = loaded(from_config(OPTConfig(**sizes, do_layer_norm_before=False)), tmp_path).run(Question(IDS))
    with pytest.raises(ModelError, match="no final norm"):
        direct.promoted(run, "L1H1.z")
    with pytest.raises(ModelError, match="no final norm"):
        direct.promoted_everywhere(run, "L1H1.z")


def test_neurons_of_a_mixture_of_experts_are_refused_and_its_heads_are_not(tmp_path):
    config = MixtralConfig(**SMALL, intermediate_size=80, num_key_value_heads=2, num_local_experts=4)
    run = loaded(from_config(config), tmp_path).run(Question(IDS))
    with pytest.raises((SiteError, ModelError), match="mlp_post"):
        direct.promoted(run, "L1N3.mlp_post")
    assert direct.promoted(run, "L1H1.z")[0][0][1] > 0
