"""Every kind of intervention at every kind of site equals an independent plain PyTorch forward."""

import numpy as np
import pytest
import torch

from reference import forward
from transpector.state.interventions import Ablate, Freeze, Patch, Question
from transpector.state.sites import AXES, KINDS, Site

ARCHITECTURES = ("gpt2", "llama", "gpt_neox", "gemma2", "opt", "gptj", "bloom")
TOLERANCE = 1e-4
TEXT_A = list(range(3, 14))  # eleven tokens
TEXT_B = list(range(40, 51))
LONGER = [*TEXT_B, 7, 8, 9]

# What an architecture can't offer, and must say so.
MISSING = {
    "gpt_neox": {"resid_mid"},
    "gptj": {"resid_mid", "scores"},
    "opt": {"scores"},
}


def address(kind, layer=1):
    return (kind, None) if kind == "embed" else (kind, layer)


def whole_and_part(kind):
    """The site of a whole layer, of one head if the kind has heads, and of one position."""
    layer = address(kind)[1]
    yield Site(kind, layer)
    yield Site(kind, layer, position=-2)
    if {"head", "kv_head"} & set(AXES[kind]):
        yield Site(kind, layer, head=1)
        yield Site(kind, layer, head=1, position=(2, 5))
    if "d_mlp" in AXES[kind]:
        yield Site(kind, layer, neuron=3)


CASES = [
    (architecture, site)
    for architecture in ARCHITECTURES
    for kind in KINDS
    if kind not in MISSING.get(architecture, ())
    for site in whole_and_part(kind)
]
IDS = [f"{architecture}-{site}" for architecture, site in CASES]


def replace_at(site, value):
    """A reference write: ``value`` (of the whole activation) at the site, everything else as it is."""

    def write(whole):
        out = whole.clone()
        out[site.index] = value(whole)[site.index] if callable(value) else value
        return out

    return write


def mean_of(kind, whole):
    axis = AXES[kind].index("query" if "query" in AXES[kind] else "pos")
    if kind == "scores":
        seen = whole > -1e30
        total = torch.where(seen, whole, 0.0).sum(axis, keepdim=True)
        return (total / seen.sum(axis, keepdim=True)).expand(whole.shape)
    return whole.mean(axis, keepdim=True).expand(whole.shape)


def check(lm, reference, interventions, token_ids=TEXT_A):
    run = lm.run(Question(token_ids, tuple(interventions)))
    assert run.logits.shape == reference.logits.shape
    difference = (run.logits - reference.logits).abs().max().item()
    assert difference <= TOLERANCE
    assert (reference.logits - lm.run(Question(token_ids)).logits).abs().max() > 100 * TOLERANCE, (
        "it must matter"
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_self_test_offers_what_the_architecture_has(random_lm, architecture):
    health = random_lm(architecture).health
    offered = {kind for kind in KINDS if health.can_read(kind) and health.can_write(kind)}
    assert offered == set(KINDS) - MISSING.get(architecture, set())
    assert len(health.reasons) == len(MISSING.get(architecture, ()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_baseline_logits_are_hugging_face_s_to_the_bit(random_lm, reference_model, architecture):
    run = random_lm(architecture).run(Question(TEXT_A))
    with torch.no_grad():
        logits = reference_model(architecture)(torch.tensor([TEXT_A])).logits[0]
    if architecture == "bloom":  # the bridge splits Bloom's fused q, k, v, which rounds differently
        assert (run.logits - logits).abs().max() <= 1e-5
    else:
        assert torch.equal(run.logits, logits)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_activations_equal_the_reference(random_lm, reference_model, architecture):
    lm = random_lm(architecture)
    run = lm.run(Question(TEXT_A))
    reference = forward(reference_model(architecture), TEXT_A)
    for kind in set(KINDS) - MISSING.get(architecture, set()):
        for layer in (None,) if kind == "embed" else range(lm.spec.n_layers):
            ours = run.activation(Site(kind, layer))
            theirs = reference.activations[kind, layer].numpy()
            assert ours.dtype == np.float32
            if kind == "scores":
                ours, theirs = np.maximum(ours, -1e9), np.maximum(theirs, -1e9)
            assert np.abs(ours - theirs).max() <= TOLERANCE, f"L{layer}.{kind}"


@pytest.mark.parametrize(("architecture", "site"), CASES, ids=IDS)
def test_zero_ablation(random_lm, reference_model, architecture, site):
    reference = forward(reference_model(architecture), TEXT_A, {address(site.kind): replace_at(site, 0.0)})
    check(random_lm(architecture), reference, [Ablate(site)])


@pytest.mark.parametrize(("architecture", "site"), CASES, ids=IDS)
def test_mean_ablation(random_lm, reference_model, architecture, site):
    hf_model = reference_model(architecture)
    mean = mean_of(site.kind, forward(hf_model, TEXT_A).activations[address(site.kind)])
    reference = forward(hf_model, TEXT_A, {address(site.kind): replace_at(site, lambda whole: mean)})
    check(random_lm(architecture), reference, [Ablate(site, "mean")])


@pytest.mark.parametrize(("architecture", "site"), CASES, ids=IDS)
def test_patch_from_another_text(random_lm, reference_model, architecture, site):
    hf_model, lm = reference_model(architecture), random_lm(architecture)
    text = lm.text.tokenizer.decode(TEXT_B)
    ids_b = lm.tokenize(text, bos=False)
    assert len(ids_b) == len(TEXT_A), "the texts must be of one length"
    source = forward(hf_model, ids_b).activations[address(site.kind)]
    reference = forward(hf_model, TEXT_A, {address(site.kind): replace_at(site, lambda whole: source)})
    check(lm, reference, [Patch(site, site, text)])


@pytest.mark.parametrize(("architecture", "site"), CASES, ids=IDS)
def test_freeze_holds_the_value_while_the_text_changes(random_lm, reference_model, architecture, site):
    hf_model = reference_model(architecture)
    held = forward(hf_model, TEXT_B).activations[address(site.kind)]
    reference = forward(hf_model, TEXT_A, {address(site.kind): replace_at(site, lambda whole: held)})
    check(random_lm(architecture), reference, [Freeze(site, Question(TEXT_B))])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["z", "resid_pre", "pattern", "mlp_out", "k"])
def test_freeze_on_a_longer_text_holds_the_overlap(random_lm, reference_model, architecture, kind):
    hf_model, n_pos = reference_model(architecture), len(TEXT_A)
    held = forward(hf_model, TEXT_A).activations[address(kind)]

    def write(whole):
        out = whole.clone()
        out[
            tuple(slice(n_pos) if axis in ("pos", "query", "key") else slice(None) for axis in AXES[kind])
        ] = held
        return out

    reference = forward(hf_model, LONGER, {address(kind): write})
    freeze = Freeze(Site(kind, 1), Question(TEXT_A))
    run = random_lm(architecture).run(Question(LONGER, (freeze,)))
    assert (run.logits - reference.logits).abs().max() <= TOLERANCE
    assert run.notes == (
        f"L1.{kind} is held at positions 0 to 10: the frozen text has 11 tokens, this one 14.",
    )


SAME_RUN = [
    ("L2H0.z", "L1H3.z"),
    ("L2.resid_pre@-1", "L0.mlp_out@3"),
    ("L1.resid_mid", "L1.attn_out"),
    ("L1.mlp_out", "embed"),
    ("L2H1.pattern", "L0H2.pattern"),
    ("L1H2.z@4", "L1H0.z@9"),
    ("L2H0.k", "L1H1.v"),
]


@pytest.mark.parametrize(
    ("architecture", "target", "source"),
    [
        (architecture, Site.parse(target), Site.parse(source))
        for architecture in ARCHITECTURES
        for target, source in SAME_RUN
        if not any(f".{kind}" in target + source for kind in MISSING.get(architecture, ()))
    ],
    ids=str,
)
def test_patch_within_the_same_run(random_lm, reference_model, architecture, target, source):
    hf_model = reference_model(architecture)
    value = forward(hf_model, TEXT_A).activations[address(source.kind, source.layer)][source.index]
    write = {address(target.kind, target.layer): replace_at(target, value)}
    check(random_lm(architecture), forward(hf_model, TEXT_A, write), [Patch(target, source)])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_many_interventions_compose_in_order(random_lm, reference_model, architecture):
    hf_model = reference_model(architecture)
    baseline, frozen = forward(hf_model, TEXT_A), forward(hf_model, TEXT_B)
    z_mean = baseline.activations["z", 1].mean(0, keepdim=True).expand(baseline.activations["z", 1].shape)
    z0, v0 = Site.parse("L1H0.z"), Site.parse("L1H1.v")
    pattern1, out, pre = Site.parse("L1H1.pattern"), Site.parse("L1.mlp_out@2"), Site.parse("L2.resid_pre@-1")
    reference = forward(
        hf_model,
        TEXT_A,
        {
            ("v", 1): replace_at(v0, 0.0),
            ("pattern", 1): replace_at(pattern1, lambda whole: frozen.activations["pattern", 1]),
            ("z", 1): replace_at(z0, lambda whole: z_mean),
            ("mlp_out", 1): replace_at(out, 0.0),
            ("resid_pre", 2): replace_at(pre, lambda whole: frozen.activations["resid_pre", 2]),
        },
    )
    interventions = [
        Freeze(pre, Question(TEXT_B)),
        Ablate(out),
        Ablate(z0, "mean"),
        Freeze(pattern1, Question(TEXT_B)),
        Ablate(v0),
        Ablate("L0.resid_pre", enabled=False),
    ]
    check(random_lm(architecture), reference, interventions)


@pytest.fixture(scope="module")
def smollm2_reference(smollm2):
    """SmolLM2 loaded a second time, by transformers alone."""
    from transformers import AutoModelForCausalLM

    from transpector.state.catalogue import resolve
    from transpector.state.conversion import converted

    path = converted(resolve(smollm2.name).path, "float32")
    return AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_on_smollm2(smollm2, smollm2_reference, kind):
    ids = smollm2.tokenize("The Eiffel Tower is in the city of")
    with torch.no_grad():
        assert torch.equal(
            smollm2.run(Question(ids)).logits, smollm2_reference(torch.tensor([ids])).logits[0]
        )
    key = address(kind, 12)
    whole, third = Site(*key), Site(*key, position=3)
    mean = mean_of(kind, forward(smollm2_reference, ids).activations[key])
    for write, intervention in (
        (replace_at(whole, 0.0), Ablate(whole)),
        (replace_at(third, lambda _: mean), Ablate(third, "mean")),
    ):
        reference = forward(smollm2_reference, ids, {key: write})
        run = smollm2.run(Question(ids, (intervention,)))
        assert (run.logits - reference.logits).abs().max() <= TOLERANCE
