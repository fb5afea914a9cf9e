"""Steering and skipping equal plain PyTorch, on every architecture, with every source of a direction."""

import numpy as np
import pytest
import torch

import transpector as tp
from random_models import KINDS
from reference import forward
from transpector.state.interventions import Question
from transpector.state.steering import STEERED

TOLERANCE = 1e-4
IDS = list(range(3, 14))
N = len(IDS)


def steered_logits(lm, *interventions, ids=IDS):
    return lm.run(Question(ids, interventions)).logits


def added(index, vector):
    """A write that adds a vector at an index of the whole activation."""

    def write(value):
        value[index] += vector
        return value

    return write


PARALLEL = ("gpt_neox", "gptj")
EVERYWHERE = [
    (kind, site_kind)
    for kind in KINDS
    for site_kind in STEERED
    if not (site_kind == "resid_mid" and kind in PARALLEL)
]


@pytest.mark.parametrize(("kind", "site_kind"), EVERYWHERE)
def test_a_vector_is_added_at_every_position(random_lm, reference_model, kind, site_kind):
    lm, hf_model = random_lm(kind), reference_model(kind)
    layer = None if site_kind == "embed" else 1
    site = tp.Site(site_kind, layer)
    shape = tp.Site(site_kind, layer, position=0).shape(lm.spec, N)
    vector = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    now = steered_logits(lm, tp.Steer(site, vector, 1.5))
    write = {site.tensor: added(slice(None), torch.tensor(1.5 * vector))}
    expected = forward(hf_model, IDS, write).logits
    assert (now - expected).abs().max() <= TOLERANCE * max(1, expected.abs().max())
    if site_kind != "k":  # the same vector added to every key moves each query's scores alike
        assert (expected - forward(hf_model, IDS).logits).abs().max() > 10 * TOLERANCE


@pytest.mark.parametrize(
    ("address", "index"),
    [
        ("L1.resid_pre@-1", (-1,)),
        ("L1.resid_pre@2:5", (slice(2, 5),)),
        ("L1H2.z", (slice(None), 2)),
        ("L1H2.z@4", (4, 2)),
        ("L2N7.mlp_post", (slice(None), 7)),
        ("L2N7.mlp_post@-2", (-2, 7)),
        ("L1H1.k@1:", (slice(1, None), 1)),
    ],
)
def test_a_vector_is_added_just_where_the_site_says(random_lm, reference_model, address, index):
    lm, site = random_lm("llama"), tp.Site.parse(address)
    shape = tp.Site(site.kind, site.layer, site.head, site.neuron, 0).shape(lm.spec, N)
    vector = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    now = steered_logits(lm, tp.Steer(site, vector.ravel(), -2))
    write = {site.tensor: added(index, torch.tensor(-2 * vector))}
    assert (now - forward(reference_model("llama"), IDS, write).logits).abs().max() <= TOLERANCE


@pytest.mark.parametrize("at", ["last", "mean"])
@pytest.mark.parametrize("address", ["L1.resid_pre", "L1H2.z", "L2.mlp_post"])
def test_a_difference_of_two_texts_is_read_at_the_site_itself(random_lm, reference_model, at, address):
    lm, hf_model, site = random_lm("llama"), reference_model("llama"), tp.Site.parse(address)
    one, other = "the city of Paris and London", " yellow tree"
    ids = [lm.tokenize(text) for text in (one, other)]
    assert len(ids[0]) != len(ids[1]) > 1
    values = [forward(hf_model, each).activations[site.tensor] for each in ids]
    values = [value[:, site.head] if site.head is not None else value for value in values]
    a, b = (value[-1] if at == "last" else value[1:].mean(0) for value in values)
    where = (slice(None),) if site.head is None else (slice(None), site.head)
    now = steered_logits(lm, tp.Steer(site, tp.Difference(one, other, at), 3))
    expected = forward(hf_model, IDS, {site.tensor: added(where, 3 * (a - b))}).logits
    assert (now - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of", ["embed", "unembed"])
def test_a_token_s_vector_is_its_embedding_or_its_unembedding(random_lm, reference_model, kind, of):
    lm, hf_model = random_lm(kind), reference_model(kind)
    token = lm.text.token_id(" the")
    if of == "embed":
        vector = forward(hf_model, [token]).activations["embed", None][0]
    else:
        vector = hf_model.get_output_embeddings().weight.detach()[token]
    now = steered_logits(lm, tp.Steer("L1.resid_pre", tp.TokenVector(" the", of), 4))
    expected = forward(hf_model, IDS, {("resid_pre", 1): added(slice(None), 4 * vector)}).logits
    assert (now - expected).abs().max() <= TOLERANCE


def test_steering_comes_after_what_stands_before_it_in_the_list(random_lm, reference_model):
    lm = random_lm("gpt2")
    vector = np.ones(48, np.float32)
    steer, zero = tp.Steer("L1.resid_pre@3", vector), tp.Ablate("L1.resid_pre@3")

    def written(value):
        value[3] = torch.ones(48)
        return value

    expected = forward(reference_model("gpt2"), IDS, {("resid_pre", 1): written}).logits
    assert (steered_logits(lm, zero, steer) - expected).abs().max() <= TOLERANCE
    assert torch.equal(steered_logits(lm, steer, zero), steered_logits(lm, zero))


def test_an_answer_that_is_steered_more_resumes_at_the_site(random_lm):
    lm = random_lm("llama")
    lm.run(Question(IDS, (tp.Steer("L2.resid_pre", np.ones(48), 1.0),)))
    run = lm.run(Question(IDS, (tp.Steer("L2.resid_pre", np.ones(48), 2.0),)))
    assert run.first_layer >= 1
    again = tp.Model("again", lm.bridge, lm.text.tokenizer, lm.spec)
    fresh = again.run(Question(IDS, (tp.Steer("L2.resid_pre", np.ones(48), 2.0),)))
    assert torch.equal(run.logits, fresh.logits)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: tp.Steer("L1.pattern", [1.0]), "holds no vector"),
        (lambda: tp.Steer("L1.resid_pre", [1.0], float("nan")), "no number to add"),
        (lambda: tp.Vector((1.0, float("inf"))), "not finite"),
        (lambda: tp.Difference("a", "b", "first"), "use 'last' or 'mean'"),
        (lambda: tp.TokenVector("a", "output"), "use 'unembed' or 'embed'"),
        (lambda: tp.Skip(3, 2), "name the first and the last"),
    ],
)
def test_what_makes_no_sense_is_refused(make, says):
    with pytest.raises(tp.InterventionError, match=says):
        make()


@pytest.mark.parametrize(
    ("intervention", "says"),
    [
        (tp.Steer("L1.resid_pre", [1.0, 2.0]), "holds 48 numbers at a position, the direction has 2"),
        (tp.Steer("L1H0.z", tp.TokenVector(" the")), "holds no vector of the residual stream"),
        (tp.Steer("L1.resid_pre", tp.TokenVector(" London Rome")), "is .* tokens"),
        (tp.Steer("L1.resid_pre", tp.Difference("", "b")), "The text is empty"),
        (tp.Steer("L9.resid_pre", [0.0] * 48), "this model has layers 0 to 2"),
        (tp.Skip(1, 3), "this model has layers 0 to 2"),
    ],
)
def test_what_this_model_lacks_is_refused_before_any_run(random_lm, intervention, says):
    with pytest.raises(tp.TranspectorError, match=says):
        random_lm("llama").run(Question(IDS, (intervention,)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("first", "last"), [(0, 0), (1, 2), (0, 2)])
def test_a_skipped_layer_hands_on_what_it_is_given(random_lm, reference_model, kind, first, last):
    run = random_lm(kind).run(Question(IDS, (tp.Skip(first, last),)))
    zero = {
        (part, layer): torch.zeros_like
        for part in ("attn_out", "mlp_out")
        for layer in range(first, last + 1)
    }
    expected = forward(reference_model(kind), IDS, zero)
    assert (run.logits - expected.logits).abs().max() <= TOLERANCE
    streams = [run.tensor(("resid_pre", layer)) for layer in range(3)] + [run.tensor(("resid_post", None))]
    assert all(torch.equal(streams[at], streams[at + 1]) for at in range(first, last + 1))


def test_a_model_without_mlps_can_skip_layers(attention_only):
    run = attention_only.run(Question(IDS, (tp.Skip(0, 1),)))
    assert torch.equal(run.tensor(("resid_pre", 2)), run.tensor(("resid_pre", 0)))
    assert not torch.equal(run.tensor(("resid_post", None)), run.tensor(("resid_pre", 2)))


def test_skipping_is_the_same_beside_other_interventions_resumed_or_not(random_lm, reference_model):
    lm = random_lm("llama")
    lm.run(Question(IDS))
    both = (tp.Skip(1, 1), tp.Patch("L2.resid_pre@-1", "L2.resid_pre@0"))

    def moved(value):
        value[-1] = value[0]
        return value

    zero = {("attn_out", 1): torch.zeros_like, ("mlp_out", 1): torch.zeros_like, ("resid_pre", 2): moved}
    expected = forward(reference_model("llama"), IDS, zero).logits
    assert (steered_logits(lm, *both) - expected).abs().max() <= TOLERANCE


def test_a_causal_map_beside_steering_and_skipping_equals_runs(random_lm):
    lm = random_lm("llama")
    beside = [tp.Steer("L1.resid_pre", tp.TokenVector(" the"), 2), tp.Skip(1, 1)]
    session = tp.Session(model=lm, text="the city of Paris and the city of")
    session.interventions = beside
    session.wait()
    array = tp.sweep(session).result().array
    for layer, head in ((0, 1), (1, 2), (2, 3)):
        changed = lm.run(
            session.question.__class__(
                session.question.token_ids, (*beside, tp.Ablate(f"L{layer}H{head}.z")), session.question.bos
            )
        )
        expected = session.metric.of(changed) - session.metric.of(session.run)
        assert array[layer, head] == pytest.approx(expected, abs=1e-4)
    assert not array[1].any() and array[2].any()


SORTS = [
    tp.Steer("L1.resid_pre@-1", tp.Difference("a", "b", "mean"), 2, name="love"),
    tp.Steer("L1H2.z", tp.Vector((1.0, 0.25), "mine"), -1.5, enabled=False),
    tp.Steer("embed", tp.TokenVector(" the", "embed")),
    tp.Skip(2, 5, name="late"),
]


@pytest.mark.parametrize("intervention", SORTS, ids=lambda i: i.what)
def test_steering_and_skipping_come_back_equal_from_json(intervention):
    (back,) = tp.from_json(tp.to_json([intervention]))
    assert (back, back.name, back.enabled) == (intervention, intervention.name, intervention.enabled)


def test_they_say_what_they_do():
    assert [i.what for i in SORTS] == [
        "+2 × “a” − “b” (mean)",
        "−1.5 × mine",
        "+1 × embedding of “ the”",
        "4 layers",
    ]
    assert [i.where for i in SORTS] == ["L1.resid_pre@-1", "L1H2.z", "embed", "L2–L5"]


def test_a_new_model_switches_off_the_direction_that_it_has_no_room_for(random_lm):
    session = tp.Session(model=random_lm("llama"), text="the city of Paris")
    session.interventions = [tp.Steer("L1.resid_pre", np.ones(48)), tp.Skip(0, 0)]
    session.wait()
    session.model = random_lm("gpt_neox")  # 64 wide
    session.wait()
    assert [i.enabled for i in session.interventions] == [False, True]
    assert "Switched off 1" in session.note


@pytest.mark.parametrize("address", ["L1.resid_pre", "L1H2.z", "L2N7.mlp_post"])
def test_at_its_reach_what_is_added_is_as_long_as_what_is_there(random_lm, address):
    from transpector.state.steering import reach

    run, site = random_lm("llama").run(Question(IDS)), tp.Site.parse(address)
    shape = tp.Site(site.kind, site.layer, site.head, site.neuron, 0).shape(run.model.spec, N)
    vector = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    held = run.activation(site).reshape(N, -1)
    lengths = np.sort(np.linalg.norm(held, axis=-1)[1:])
    strength = reach(run, tp.Steer(site, vector))
    assert strength * np.linalg.norm(vector) == pytest.approx(lengths[(len(lengths) - 1) // 2], rel=1e-5)
    assert reach(run, tp.Steer(site, 0 * vector)) == 0
