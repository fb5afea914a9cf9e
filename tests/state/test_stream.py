"""The residual stream's norms, angles and gradients are those of plain PyTorch on a model loaded a second time."""

from functools import cache

import numpy as np
import pytest
import torch
from fresh import forget_runs

import transpector as tp
from random_models import random_model
from reference import forward
from scaled import Scaled
from transpector.state import stream as module
from transpector.state.errors import Cancelled
from transpector.state.health import Ability, Health
from transpector.state.interventions import Question
from transpector.state.stream import cosines, cosines_to_last, cosines_to_next, gradients, stream

TOLERANCE = 1e-4
WITH_HEADS = ("gpt2", "llama", "gpt_neox", "opt", "gemma2", "gptj", "bloom")
N_LAYERS = 3
IDS = list(range(3, 14))
WAIT = 60
EMBED, LAST = ("embed", None), ("resid_post", N_LAYERS - 1)
STREAMS = [*(("resid_pre", layer) for layer in range(N_LAYERS)), LAST]


@cache
def plain(kind):
    return random_model(kind)


@pytest.fixture
def lm(random_lm):
    return random_lm("llama")


# Interventions of every sort, most of them on the stream itself: several at one place, and some that read what was
# written there before, the layer below, the one below that, or what the tokens put in.
STANDING = (
    tp.Ablate("embed@4"),
    tp.Ablate("L0.resid_pre@2"),
    Scaled("L1.resid_pre", 0.5),
    tp.Patch("L1.resid_pre@6", source="embed@1"),
    tp.Ablate("L1H2.z"),
    tp.Patch("L2.resid_pre@5", source="L1.attn_out@3"),
    tp.Patch("L2.resid_pre@9", source="L0.mlp_out@1"),
    tp.Patch("L2.resid_pre@8", source="L1.resid_pre@0"),
    tp.Patch("L2.resid_pre@10", source="embed@1"),
    Scaled("L2.resid_pre@7", 2.0),
)


def changed(index, value):
    """A reference write: at an index, what a function makes of the whole activation and of what passed before."""

    def write(whole, passed):
        whole = whole.clone()
        whole[index] = value(whole, passed)
        return whole

    return write


BY_HAND = {
    EMBED: [changed(4, lambda whole, passed: 0.0)],
    ("resid_pre", 0): [changed(2, lambda whole, passed: 0.0)],
    ("resid_pre", 1): [
        changed(slice(None), lambda whole, passed: 0.5 * whole),
        changed(6, lambda whole, passed: passed[EMBED][1]),
    ],
    ("z", 1): [changed((slice(None), 2), lambda whole, passed: 0.0)],
    ("attn_out", 1): [],
    ("mlp_out", 0): [],
    ("resid_pre", 2): [
        changed(5, lambda whole, passed: passed["attn_out", 1][3]),
        changed(9, lambda whole, passed: passed["mlp_out", 0][1]),
        changed(8, lambda whole, passed: passed["resid_pre", 1][0]),
        changed(10, lambda whole, passed: passed[EMBED][1]),
        changed(7, lambda whole, passed: 2.0 * whole[7]),
    ],
}


def by_hand(kind, ids, writes, leaf=None):
    """A reference pass under writes, in which one activation, as it is after them, may be where gradients end."""
    passed = {}

    def writer(at):
        def write(whole):
            for change in writes.get(at, ()):
                whole = change(whole, passed)
            passed[at] = whole.detach().requires_grad_() if at == leaf else whole
            return passed[at]

        return write

    reference = forward(plain(kind), ids, {at: writer(at) for at in {*writes, *([leaf] if leaf else [])}})
    return reference, passed.get(leaf)


@pytest.mark.parametrize("kind", WITH_HEADS)
def test_norms_are_those_of_the_streams_after_interventions(random_lm, kind):
    found = stream(random_lm(kind).run(Question(IDS, STANDING)))
    activations = by_hand(kind, IDS, BY_HAND)[0].activations
    expected = np.stack([activations[at].norm(dim=-1).numpy() for at in STREAMS])
    assert found.norms.dtype == np.float32 and found.axes == ("layer", "pos")
    assert found.norms == pytest.approx(expected, abs=TOLERANCE, rel=1e-5)


# What each architecture's norms read, and whether they subtract the mean.
READS = {
    "gpt2": {"ln1": "resid_pre", "ln2": "resid_mid"},
    "llama": {"ln1": "resid_pre", "ln2": "resid_mid"},
    "gpt_neox": {"ln1": "resid_pre", "ln2": "resid_pre"},
    "opt": {"ln1": "resid_pre", "ln2": "resid_mid"},
    "gemma2": {"ln1": "resid_pre", "ln1_post": "heads", "ln2": "resid_mid", "ln2_post": "neurons"},
    "gptj": {"ln1": "resid_pre"},
    "bloom": {"ln1": "resid_pre", "ln2": "resid_mid"},
}


def divisor(kind, values):
    """By which a norm of this architecture divides; [pos]."""
    config = plain(kind).config
    names = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps")
    epsilon = next((getattr(config, name) for name in names if hasattr(config, name)), 1e-5)
    if kind not in ("llama", "gemma2"):
        values = values - values.mean(-1, keepdim=True)
    return (values.pow(2).mean(-1) + epsilon).sqrt().numpy()


def read_by_hand(kind, activations, what, layer):
    if what not in ("heads", "neurons"):
        return activations[what, layer]
    block = plain(kind).model.layers[layer]
    with torch.no_grad():
        if what == "heads":
            return block.self_attn.o_proj(activations["z", layer].flatten(1))
        return block.mlp.down_proj(activations["mlp_post", layer])


@pytest.mark.parametrize("kind", WITH_HEADS)
def test_scales_are_what_the_norms_divide_by(random_lm, kind):
    found = stream(random_lm(kind).run(Question(IDS, STANDING)))
    activations = by_hand(kind, IDS, BY_HAND)[0].activations
    assert found.scales.keys() == READS[kind].keys()
    for name, what in READS[kind].items():
        assert found.scales[name].shape == (N_LAYERS, 11) and found.scales[name].dtype == np.float32
        for layer in range(N_LAYERS):
            expected = divisor(kind, read_by_hand(kind, activations, what, layer))
            assert found.scales[name][layer] == pytest.approx(expected, abs=TOLERANCE), (name, layer)
    assert found.final_scale == pytest.approx(divisor(kind, activations[LAST]), abs=TOLERANCE)


def test_the_layers_are_done_again_once_and_no_more_when_asked_again(random_directory):
    lm = tp.load_model(str(random_directory("gpt2")))
    run = lm.run(Question(IDS))
    calls = []
    for block in lm.stack.blocks:
        block.attn.register_forward_pre_hook(lambda *_: calls.append(1))
    first = stream(run)
    assert len(calls) == N_LAYERS
    again = stream(run)
    assert len(calls) == N_LAYERS
    np.testing.assert_array_equal(first.scales["ln2"], again.scales["ln2"])


def test_a_model_that_can_t_be_walked_has_the_same_stream(odd_lm):
    run = odd_lm.run(Question(IDS))
    found = stream(run)
    assert not odd_lm.wiring.by_layer
    assert found.norms[1] == pytest.approx(np.linalg.norm(run.activation("L1.resid_pre"), axis=-1), rel=1e-6)
    expected = divisor("llama", torch.tensor(run.activation("L2.resid_pre")))
    assert found.scales["ln1"][2] == pytest.approx(expected, abs=TOLERANCE)


def test_a_model_without_mlps_has_no_scale_of_theirs(attention_only):
    run = attention_only.run(Question(IDS))
    found = stream(run)
    assert found.scales.keys() == {"ln1"} and found.norms.shape == (4, 11)


def test_a_norm_that_only_some_layers_tell_is_nothing_in_the_others(random_directory, monkeypatch):
    lm = tp.load_model(str(random_directory("llama")))
    run = lm.run(Question(IDS))
    whole = stream(run)
    forget_runs(lm)
    names = lm.stack.names - {"blocks.1.ln2.hook_scale"}
    monkeypatch.setattr(type(lm.stack), "names", names)
    found = stream(run)
    assert np.isnan(found.scales["ln2"][1]).all()
    np.testing.assert_array_equal(found.scales["ln2"][[0, 2]], whole.scales["ln2"][[0, 2]])


def test_the_frame_has_a_row_a_layer_and_position(lm):
    found = stream(lm.run(Question(IDS)))
    frame = found.frame
    assert list(frame.columns) == ["layer", "pos", "norm", "ln1", "ln2", "final_scale"]
    assert len(frame) == 4 * 11
    row, last = frame.iloc[2 * 11 + 3], frame.iloc[3 * 11 + 5]
    assert (row.layer, row.pos, row.norm, row.ln2) == (2, 3, found.norms[2, 3], found.scales["ln2"][2, 3])
    assert np.isnan(row.final_scale) and np.isnan(last.ln1)
    assert last.final_scale == found.final_scale[5] and last.norm == found.norms[3, 5]


# Directions


def angle(a, b):
    return (a @ b) / (np.linalg.norm(a) * np.linalg.norm(b))


@pytest.mark.parametrize("kind", WITH_HEADS)
def test_cosines_are_those_between_the_streams(random_lm, kind):
    run = random_lm(kind).run(Question(IDS, STANDING))
    activations = by_hand(kind, IDS, BY_HAND)[0].activations
    streams = np.stack([activations[at].double().numpy() for at in STREAMS])  # [layer+1, pos, d_model]
    to_next, to_last = cosines_to_next(run), cosines_to_last(run)
    assert to_next.shape == (3, 11) and to_last.shape == (4, 11)
    for position in (0, 5, 10, -1):
        at = streams[:, position]
        between = cosines(run, position)
        assert between.dtype == to_next.dtype == to_last.dtype == np.float32
        expected = np.array([[angle(a, b) for b in at] for a in at])
        assert between == pytest.approx(expected, abs=TOLERANCE) and np.abs(between).max() <= 1
        assert to_next[:, position] == pytest.approx(np.diag(expected, 1), abs=TOLERANCE)
        assert to_last[:, position] == pytest.approx(expected[-1], abs=TOLERANCE)


def test_a_stream_of_nothing_has_no_direction(lm):
    run = lm.run(Question(IDS, (tp.Ablate("L1.resid_pre@3"),)))
    assert not cosines(run, 3)[1].any() and cosines(run, 3)[2].any()
    assert (cosines_to_next(run)[:, 3] == 0).tolist() == [True, True, False]
    assert (cosines_to_last(run)[:, 3] == 0).tolist() == [False, True, False, False]


def test_a_position_that_the_text_lacks_is_refused(lm):
    with pytest.raises(tp.SiteError, match="Position 11: this text has positions 0 to 10"):
        cosines(lm.run(Question(IDS)), 11)


def test_a_model_that_hides_its_residual_stream_says_so(lm):
    blind = tp.Model("blind", lm.bridge, lm.text.tokenizer, lm.spec)
    hidden = Ability(False, False, "its hook never fires.")
    blind.health = Health({**blind.health.abilities, "resid_pre": hidden}, blind.health.extras)
    run = blind.run(Question(IDS))
    for ask in (
        stream,
        cosines_to_last,
        lambda run: cosines(run, 0),
        lambda run: gradients(run, tp.Metric()),
    ):
        with pytest.raises(tp.SiteError, match="can't be read here: its hook never fires"):
            ask(run)


# Gradients

METRICS = [
    tp.Metric(),
    tp.Metric("logit_diff", " city", " the", 8),
    tp.Metric("log_prob", " city"),
]


def number(metric, text, ids, logits):
    if metric.kind == "loss":
        return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]))
    row = logits[metric.position]
    if metric.kind == "log_prob":
        return row.log_softmax(-1)[text.token_id(metric.answer)]
    return row[text.token_id(metric.answer)] - row[text.token_id(metric.distractor)]


def gradient_by_hand(lm, kind, metric, at, writes):
    """An activation and the metric's gradient with respect to it, by autograd through the reference pass."""
    reference, leaf = by_hand(kind, IDS, writes, at)
    value = number(metric, lm.text, IDS, reference.logits)
    return leaf.detach(), torch.autograd.grad(value, leaf)[0]


@pytest.mark.parametrize("standing", [False, True], ids=["plain", "standing"])
@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.kind)
@pytest.mark.parametrize("kind", WITH_HEADS)
def test_gradients_are_those_of_plain_autograd(random_lm, kind, metric, standing):
    lm, writes = random_lm(kind), BY_HAND if standing else {}
    found = gradients(lm.run(Question(IDS, STANDING if standing else ())), metric)
    assert found.norms.shape == found.dots.shape == (4, 11) and found.axes == ("layer", "pos")
    rows = zip(
        [EMBED, *STREAMS], [found.saliency, *found.norms], [found.input_dots, *found.dots], strict=True
    )
    for at, norms, dots in rows:
        value, gradient = gradient_by_hand(lm, kind, metric, at, writes)
        assert norms.dtype == dots.dtype == np.float32
        # Where a stream was zeroed the norm after it makes mountains of nothing: gradients of a thousand and more.
        assert norms == pytest.approx(gradient.norm(dim=-1).numpy(), abs=TOLERANCE, rel=1e-5), at
        assert dots == pytest.approx((gradient * value).sum(-1).numpy(), abs=TOLERANCE, rel=1e-5), at
        assert np.abs(norms).max() > 100 * TOLERANCE


def test_on_smollm2_gradients_are_those_of_hugging_face_s_own_autograd(smollm2):
    from transformers import AutoModelForCausalLM

    from transpector.state.catalogue import resolve
    from transpector.state.conversion import converted

    path = converted(resolve(smollm2.name).path, "float32")
    hf_model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
    hf_model.requires_grad_(False)
    ids = smollm2.tokenize("The Eiffel Tower is in the city of")
    found = gradients(smollm2.run(Question(ids)), tp.Metric("log_prob", " Paris"))
    embed = hf_model.get_input_embeddings()(torch.tensor([ids])).requires_grad_()
    # The last of its hidden states is after the final norm: what goes into that is caught there.
    caught = []
    hf_model.model.norm.register_forward_pre_hook(lambda module, given: caught.append(given[0]))
    out = hf_model(inputs_embeds=embed, output_hidden_states=True)
    streams = [*out.hidden_states[:-1], caught[0]]
    value = out.logits[0, -1].log_softmax(-1)[smollm2.text.token_id(" Paris")]
    expected = torch.autograd.grad(value, streams)
    norms = np.stack([gradient[0].norm(dim=-1).numpy() for gradient in expected])
    dots = [
        (gradient * whole).sum(-1)[0].detach().numpy()
        for gradient, whole in zip(expected, streams, strict=True)
    ]
    assert found.norms == pytest.approx(norms, abs=TOLERANCE, rel=1e-3)
    assert found.dots == pytest.approx(np.stack(dots), abs=1e-3)
    assert found.saliency == pytest.approx(norms[0], abs=TOLERANCE, rel=1e-3)
    assert found.input_dots == pytest.approx(dots[0], abs=1e-3)


@pytest.mark.parametrize("kind", WITH_HEADS)
def test_no_gradient_passes_through_a_stream_that_is_overwritten(random_lm, kind):
    whole = random_lm(kind).run(Question(IDS, (tp.Ablate("L2.resid_pre", "mean"),)))
    found = gradients(whole, tp.Metric())
    assert not found.norms[:2].any() and not found.saliency.any() and found.norms[2:].any(1).all()
    first = gradients(random_lm(kind).run(Question(IDS, (tp.Ablate("L0.resid_pre@3", "mean"),))), tp.Metric())
    assert np.flatnonzero(first.saliency == 0).tolist() == [
        3,
        10,
    ]  # nothing is predicted of what follows the last
    assert first.norms[0, 3] > 0


def test_the_frame_of_gradients_has_a_row_a_layer_and_position(lm):
    found = gradients(lm.run(Question(IDS)), tp.Metric())
    assert list(found.frame.columns) == ["layer", "pos", "norm", "dot"] and len(found.frame) == 44
    row = found.frame.iloc[2 * 11 + 3]
    assert (row.layer, row.pos, row.norm, row["dot"]) == (2, 3, found.norms[2, 3], found.dots[2, 3])


def test_others_have_their_turn_after_each_layer_and_whoever_gives_up_is_let_go(lm, monkeypatch):
    run, done = lm.run(Question(IDS)), []
    sizes = module._sizes

    def noted(felt):
        lm.worker.submit(lambda: done.append("another job"))
        done.append(felt and sorted(str(kind) for kind, _ in felt))
        return sizes(felt)

    monkeypatch.setattr(module, "_sizes", noted)
    gradients(run, tp.Metric())
    layers = [["resid_post", "resid_pre"], ["resid_pre"], ["resid_pre"], ["embed"], None]
    assert done[::2] == layers and set(done[1::2]) == {"another job"}
    done.clear()
    with pytest.raises(Cancelled):
        gradients(run, tp.Metric(), cancelled=lambda: len(done) >= 4)
    assert [each for each in done if each != "another job"] == layers[:2]


def test_what_the_metric_lacks_is_said_at_once(lm):
    with pytest.raises(tp.TextError, match="no answer token"):
        gradients(lm.run(Question(IDS)), tp.Metric("log_prob"))


def test_a_model_that_can_t_be_walked_has_no_gradients(odd_lm):
    with pytest.raises(tp.InterventionError, match="layers can't be done one by one"):
        gradients(odd_lm.run(Question(IDS)), tp.Metric())


def test_where_the_embedding_is_hidden_there_is_no_saliency(lm):
    blind = tp.Model("blind", lm.bridge, lm.text.tokenizer, lm.spec)
    hidden = Ability(False, False, "its hook never fires.")
    blind.health = Health({**blind.health.abilities, "embed": hidden}, blind.health.extras)
    found = gradients(blind.run(Question(IDS)), tp.Metric())
    assert found.saliency is found.input_dots is None and found.norms[:, :10].all()


# Estimates of a sweep, which go back through the same streams


def session_on(lm, *interventions):
    return tp.Session(model=lm, text="the cat sat on a mat in the city", interventions=list(interventions))


@pytest.mark.parametrize("kind", WITH_HEADS)
def test_an_estimate_ends_where_the_stream_above_it_is_overwritten(random_lm, kind):
    session = session_on(random_lm(kind), tp.Ablate("L2.resid_pre", "mean"))
    estimate = tp.sweep(session, estimate=True).result(WAIT).array
    assert (estimate[:2] == 0).all() and (estimate[2] != 0).all()


@pytest.mark.parametrize("kind", WITH_HEADS)
def test_an_estimate_passes_back_through_writes_to_the_stream(random_lm, kind):
    lm = random_lm(kind)
    session = session_on(lm, *STANDING)
    session.token_ids = IDS
    estimate = tp.sweep(session, estimate=True).result(WAIT).array
    for layer in range(N_LAYERS):
        z, gradient = gradient_by_hand(lm, kind, tp.Metric(), ("z", layer), BY_HAND)
        expected = -(z * gradient).sum((0, 2)).numpy()
        assert estimate[layer] == pytest.approx(expected, abs=TOLERANCE, rel=TOLERANCE), layer
