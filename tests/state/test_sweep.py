"""A causal map is what a loop over plain PyTorch passes gives, and leaves nothing behind however it ends."""

import threading
import time
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from fresh import forget_runs

import transpector as tp
from random_models import KINDS as ARCHITECTURES
from random_models import random_model
from reference import forward
from scaled import Scaled
from transpector.state.batch import TOKENS, batches
from transpector.state.errors import Cancelled
from transpector.state.grid import KINDS_OVER
from transpector.state.health import Ability, Health
from transpector.state.sites import Site
from transpector.state.worker import BACKGROUND

TOLERANCE = 1e-3  # as batched passes are promised; they are in fact within 1e-5 of each other
WAIT = 60
N_POS = 8
MEAN_LOSS = tp.Metric()
GRIDS = [(over, kind) for over, kinds in KINDS_OVER.items() for kind in kinds]


@pytest.fixture(autouse=True)
def _as_in_a_large_model(monkeypatch):
    """Several batches, some of which begin in the middle of the text, two neighbours together."""
    monkeypatch.setitem(TOKENS, "other", 100)
    monkeypatch.setattr("transpector.state.batch.TOKENS_A_STEP", 8)


@cache
def plain(architecture):
    return random_model(architecture)


@cache
def texts(lm):
    """Two texts of N_POS tokens."""
    words = ["the", " cat", " sat", " on", " a", " mat", " in", " city", " of", " Paris", "."]
    found = []
    for start in range(len(words)):
        text = ""
        for word in words[start:] + words[:start]:
            text += word
            if len(lm.tokenize(text)) == N_POS:
                found.append(text)
                break
    assert len(found) > 1
    return found[0], found[-1]


def session_on(lm, metric=MEAN_LOSS, interventions=()):
    return tp.Session(model=lm, text=texts(lm)[0], metric=metric, interventions=list(interventions))


def changes(lm):
    return ["zero", "mean", tp.from_text(texts(lm)[1])]


class Loop:
    """One plain PyTorch pass a site."""

    def __init__(self, session, architecture, standing=None):
        lm = session.model
        self.model, self.ids = plain(architecture), lm.tokenize(session.text)
        self.other = lm.tokenize(texts(lm)[1])
        self.standing = standing or {}
        self.metric, self.text = session.metric, lm.text
        self.baseline = forward(self.model, self.ids).activations
        self.there = forward(self.model, self.other).activations
        self.before = self.number({})

    def number(self, write):
        def both(address):
            first, then = self.standing.get(address), write.get(address)
            if first is None or then is None:
                return first or then
            return lambda whole: then(first(whole))

        writes = {address: both(address) for address in {**self.standing, **write}}
        logits = forward(self.model, self.ids, writes).logits.double()
        if self.metric.kind == "loss":
            return float(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(self.ids[1:])))
        row = logits[self.metric.position]
        answer, distractor = (self.text.token_id(t) for t in (self.metric.answer, self.metric.distractor))
        return float(row[answer] - row[distractor])

    def change(self, site, change):
        def write(whole):
            if change == "zero":
                value = torch.zeros(())
            elif change == "mean":
                source = self.baseline[site.tensor]
                value = source.mean(site.position_axis, keepdim=True).expand(source.shape)[site.index]
            else:
                value = self.there[site.tensor][site.index]
            whole = whole.clone()
            whole[site.index] = value
            return whole

        return self.number({site.tensor: write}) - self.before


def some(grid, n=7):
    """Sites all over a grid, first and last among them."""
    indices = list(grid)
    return [indices[round(at)] for at in np.linspace(0, len(indices) - 1, min(n, len(indices)))]


def agrees(sweep, loop, n=7):
    array = sweep.array
    assert array.dtype == np.float32 and not np.isnan(array).any()
    for index in some(sweep.grid, n):
        expected = loop.change(sweep.grid.site(index), sweep.grid.change)
        assert array[index] == pytest.approx(expected, abs=TOLERANCE), sweep.grid.site(index)


@pytest.mark.parametrize(("over", "kind"), GRIDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_map_is_what_a_loop_of_plain_passes_gives(random_lm, architecture, over, kind):
    lm = random_lm(architecture)
    session = session_on(lm)
    loop = Loop(session, architecture)
    for change in changes(lm):
        layer = 1 if over == "neurons" else None
        agrees(tp.sweep(session, over, kind, change, layer=layer).result(WAIT), loop)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("over", "kind"), [("heads", "z"), ("layers_positions", "resid_pre"), ("layers", None)]
)
def test_a_metric_at_one_position_is_right_too(random_lm, architecture, over, kind):
    lm = random_lm(architecture)
    for position in (-1, 4):
        session = session_on(lm, tp.Metric("logit_diff", " city", " the", position))
        loop = Loop(session, architecture)
        for change in changes(lm):
            agrees(tp.sweep(session, over, kind, change).result(WAIT), loop, 9)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("over", "kind"),
    [
        ("heads", "z"),
        ("heads", "v"),
        ("layers_positions", "attn_out"),
        ("heads_positions", "pattern"),
        ("layers", None),
    ],
)
def test_a_map_beside_interventions_starts_from_the_run_and_not_from_the_baseline(
    random_lm, architecture, over, kind
):
    """Among them one that reads in the same run what a site above or below it may have changed."""
    lm = random_lm(architecture)
    standing = [
        tp.Ablate("L0H1.z"),
        tp.Patch("L2.mlp_out@5", source="L1.attn_out@3"),
        tp.Ablate("L1.resid_pre@2"),
    ]
    session = session_on(lm, interventions=standing)
    read = {}

    def zeroed(index):
        def write(whole):
            whole = whole.clone()
            whole[index] = 0
            return whole

        return write

    def remember(whole):
        read["value"] = whole[3]
        return whole

    def write(whole):
        whole = whole.clone()
        whole[5] = read["value"]
        return whole

    class Standing(Loop):
        def number(self, write):
            # What is read is read after the sweep's own change to it.
            at = ("attn_out", 1)
            if at in write:
                change = write[at]
                write = {**write, at: lambda whole: remember(change(whole))}
            return super().number(write)

    loop = Standing(
        session,
        architecture,
        {
            ("z", 0): zeroed((slice(None), 1)),
            ("attn_out", 1): remember,
            ("mlp_out", 2): write,
            ("resid_pre", 1): zeroed((2,)),
        },
    )
    for change in changes(lm):
        agrees(tp.sweep(session, over, kind, change).result(WAIT), loop, 9)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_stands_is_done_once_to_every_pass(random_lm, architecture):
    """Also to a pass that begins where the run has felt it already."""
    lm = random_lm(architecture)
    session = session_on(lm, interventions=[Scaled("L1.resid_pre", 0.5), Scaled("L2.resid_pre", 2.0)])
    before = session.metric.of(session.wait().run)
    sweep = tp.sweep(session).result(WAIT)
    for index in ((0, 1), (1, 2), (2, 3)):
        forget_runs(lm)
        session.interventions = [*session.interventions[:2], sweep.intervention(index)]
        after = session.metric.of(session.wait().run)
        assert sweep.array[index] == pytest.approx(after - before, abs=TOLERANCE)


def test_a_change_after_the_metric_s_position_changes_nothing(random_lm):
    session = session_on(random_lm("llama"), tp.Metric("logit_diff", " city", " the", 3))
    array = tp.sweep(session, "layers_positions").result(WAIT).array
    assert (array[:, 4:] == 0).all() and (array[:, :4] != 0).all()


def test_on_smollm2_a_map_is_what_whole_passes_give(smollm2):
    session = tp.Session(
        smollm2, "The Eiffel Tower is in the city of", metric=tp.Metric("log_prob", " Paris")
    )
    sweep = tp.sweep(session).result(300)
    before = session.wait().metric.of(session.run)
    largest = np.argsort(-np.abs(sweep.array).ravel())[:6]
    ids = torch.tensor([session.question.token_ids])
    answer = smollm2.text.token_id(" Paris")
    for layer, head in zip(*np.unravel_index(largest, sweep.array.shape), strict=True):

        def zero(z, hook, head=head):
            z = z.clone()
            z[:, :, head] = 0
            return z

        hooks = [(f"blocks.{layer}.attn.hook_z", zero)]
        logits = smollm2.worker.call(lambda hooks=hooks: smollm2.bridge.run_with_hooks(ids, fwd_hooks=hooks))
        after = float(logits[0, -1].log_softmax(-1)[answer])
        assert sweep.array[layer, head] == pytest.approx(after - before, abs=TOLERANCE)


# What a map can tell


@pytest.fixture
def small_batches(monkeypatch):
    """Even a small map in many steps."""
    monkeypatch.setitem(TOKENS, "other", 32)


@pytest.fixture
def lm(random_lm):
    lm = random_lm("llama")
    yield lm
    assert no_hooks(lm)


def no_hooks(lm):
    lm.worker.submit(lambda: None, priority=BACKGROUND).result(WAIT)
    hooked = any(point.has_hooks(including_permanent=False) for point in lm.bridge.hook_dict.values())
    return not hooked and not any("forward" in vars(block) for block in lm.stack.blocks)


def test_the_array_has_the_axes_that_it_names(lm):
    session = session_on(lm)
    for over, kind, axes, shape in (
        ("heads", None, ("layer", "head"), (3, 4)),
        ("heads", "k", ("layer", "kv_head"), (3, 2)),
        ("layers_positions", None, ("layer", "pos"), (3, N_POS)),
        ("heads_positions", None, ("layer", "head", "pos"), (3, 4, N_POS)),
        ("layers", None, ("layer",), (3,)),
    ):
        sweep = tp.sweep(session, over, kind)
        assert (sweep.axes, sweep.array.shape) == (axes, shape)
        assert sweep.result(WAIT) is sweep and sweep.array.dtype == np.float32
        assert np.asarray(sweep).shape == shape
    neurons = tp.sweep(session, "neurons", layer=2).result(WAIT)
    assert (neurons.axes, neurons.array.shape) == (("neuron",), (80,))
    assert neurons.grid.site((7,)) == Site("mlp_post", 2, neuron=7)


def test_the_frame_has_a_row_a_site(lm):
    sweep = tp.sweep(session_on(lm), "heads_positions").result(WAIT)
    frame = sweep.frame
    assert list(frame.columns) == ["layer", "head", "pos", "site", "change"]
    assert len(frame) == 3 * 4 * N_POS and frame.change.dtype == np.float32
    row = frame.iloc[37]
    assert row.change == sweep.array[row.layer, row["head"], row.pos]
    assert row.site == f"L{row.layer}H{row['head']}.z@{row.pos}"


def test_a_site_of_the_map_can_be_kept_as_an_intervention(lm):
    session = session_on(lm)
    session.wait()
    sweep = tp.sweep(session).result(WAIT)
    before = session.metric.of(session.run)
    session.add(sweep.intervention((1, 2)))
    after = session.metric.of(session.wait().run)
    assert sweep.array[1, 2] == pytest.approx(after - before, abs=TOLERANCE)


def test_iterating_gives_what_is_known_so_far_and_draws_a_bar(lm, capsys, small_batches):
    known = [int((~np.isnan(array)).sum()) for array in tp.sweep(session_on(lm), "heads_positions")]
    assert known == sorted(known) and known[-1] == 96 and len(set(known)) > 2
    assert "96/96" in capsys.readouterr().err


def test_progress_and_remaining_time_add_up(lm, small_batches):
    sweep = tp.sweep(session_on(lm), "heads_positions", "v")
    told = []
    sweep.watch(lambda: told.append((sweep.done, sweep.fraction, sweep.elapsed, sweep.remaining)))
    sweep.result(WAIT)
    assert [done for done, *_ in told] == sorted(done for done, *_ in told)
    assert told[-1][:2] == (sweep.total, pytest.approx(1)) and sweep.remaining == 0
    middle = next(each for each in told if 0.4 < each[1] < 0.9)
    assert middle[3] == pytest.approx(middle[2] * (1 / middle[1] - 1), rel=0.5)


def test_less_memory_means_smaller_batches_and_the_same_map(lm, monkeypatch):
    session = session_on(lm)
    planned = []

    def noted(*args):
        planned.append(batches(*args))
        return planned[-1]

    monkeypatch.setattr("transpector.state.sweep.batches", noted)
    whole = tp.sweep(session).result(WAIT)
    need = planned[0][0].ground.bytes_a_row(N_POS)
    small = tp.sweep(session, memory=2 * need).result(WAIT)
    assert len(planned[0]) == 1 and len(planned[1]) == 6
    positions = tp.sweep(session, "layers_positions").result(WAIT)
    # What comes after the last position read is apart; two batches of the earliest five positions, 24 tokens a layer.
    assert [batch.first for batch in planned[2]] == [7, 5, 0, 0] and positions.done == 24
    np.testing.assert_allclose(whole.array, small.array, atol=1e-5)


def test_a_map_that_can_t_fit_says_so_before_it_starts(lm):
    with pytest.raises(
        tp.TextError, match=r"takes about .* MB beside the model; a sweep may take 0 MB\. Shorten"
    ):
        tp.sweep(session_on(lm), memory=1000).result(WAIT)
    with pytest.raises(tp.TextError, match="An estimate on 8 tokens takes about"):
        tp.sweep(session_on(lm), estimate=True, memory=1000).result(WAIT)


def test_the_memory_is_a_setting(lm, monkeypatch):
    monkeypatch.setenv("TRANSPECTOR_SWEEP_MEMORY", "0.001")
    with pytest.raises(tp.TextError, match="Shorten"):
        tp.sweep(session_on(lm)).result(WAIT)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"over": "tokens"}, "sweep over one of heads, layers_positions"),
        ({"kind": "mlp_out"}, "use one of z, q, k, v, pattern"),
        ({"change": "random"}, "use 'zero', 'mean' or from_text"),
        ({"change": tp.from_text(" cat")}, r"Text B has \d+ tokens, this one 8"),
        ({"over": "neurons"}, "name it, layer=0"),
        ({"over": "neurons", "layer": 7}, "layers 0 to 2, not 7"),
        ({"layer": 1}, "only neurons are swept in one layer"),
    ],
)
def test_what_can_t_be_swept_is_refused_with_what_can(lm, wrong, words):
    with pytest.raises(tp.TranspectorError, match=words):
        tp.sweep(session_on(lm), **wrong)


def test_a_metric_that_the_text_lacks_is_refused_at_once(lm):
    with pytest.raises(tp.TextError, match="no answer token"):
        tp.sweep(session_on(lm, tp.Metric("log_prob")))
    with pytest.raises(tp.SiteError, match="Position 30"):
        tp.sweep(session_on(lm, tp.Metric("log_prob", " city", position=30)))


def test_what_an_architecture_can_t_change_can_t_be_swept(random_lm):
    lm = random_lm("llama")
    session = session_on(lm)
    session.model = tp.Model("blind", lm.bridge, lm.text.tokenizer, lm.spec)
    abilities = session.model.health.abilities
    session.model.health = Health(
        {**abilities, "z": Ability(True, False, "the model discards what is written.")}
    )
    with pytest.raises(tp.InterventionError, match="discards what is written"):
        tp.sweep(session)


def test_a_model_that_can_t_be_walked_is_swept_one_whole_pass_at_a_time(odd_lm):
    session = session_on(odd_lm)
    sweep = tp.sweep(session, "heads", "z", "mean").result(WAIT)
    session.interventions = [sweep.intervention((1, 2))]
    session.wait()
    change = session.metric.of(session.run) - session.metric.of(session.baseline)
    assert sweep.array[1, 2] == pytest.approx(change, abs=1e-6)
    with pytest.raises(tp.InterventionError, match="can't be estimated"):
        tp.sweep(session, estimate=True).result(WAIT)


def test_where_keys_and_values_can_t_be_taken_over_every_position_is_done(random_directory):
    lm = tp.load_model(str(random_directory("llama")))
    session = session_on(lm, tp.Metric("logit_diff", " city", " the"))
    quick = tp.sweep(session, "heads_positions", "v", "mean").result(WAIT)
    lm.wiring = replace(lm.wiring, by_position=False)
    slow = tp.sweep(session, "heads_positions", "v", "mean").result(WAIT)
    np.testing.assert_allclose(quick.array, slow.array, atol=1e-5)


# Estimates


def gradient_of_z(architecture, ids, layer):
    """Of the mean loss with respect to a Llama's z, by Hugging Face's own forward and autograd."""
    model = random_model(architecture).requires_grad_(False)
    seen = {}

    def look(module, given):
        seen["z"] = given[0].detach().requires_grad_()
        return (seen["z"],)

    handle = model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(look)
    ids = torch.tensor([ids])
    loss = model(ids, labels=ids).loss
    handle.remove()
    return seen["z"].detach()[0].unflatten(-1, (4, -1)), torch.autograd.grad(loss, seen["z"])[0][0].unflatten(
        -1, (4, -1)
    )


def test_an_estimate_is_the_gradient_times_the_change(lm):
    session = session_on(lm)
    ids = lm.tokenize(session.text)
    zero = tp.sweep(session, estimate=True).result(WAIT)
    mean = tp.sweep(session, "heads_positions", "z", "mean", estimate=True).result(WAIT)
    assert zero.estimated and list(zero.frame.columns) == ["layer", "head", "site", "estimate"]
    for layer in range(3):
        z, gradient = gradient_of_z("llama", ids, layer)
        assert zero.array[layer] == pytest.approx((-z * gradient).sum((0, 2)).numpy(), abs=1e-5)
        expected = ((z.mean(0) - z) * gradient).sum(-1).T.numpy()
        assert mean.array[layer] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("over", "kind"), GRIDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_estimates_are_right_for_small_changes(random_lm, architecture, over, kind):
    """Zeroing is shrinking to the end: its estimate is minus the slope of shrinking, here by central differences."""
    lm = random_lm(architecture)
    session = session_on(
        lm, interventions=[tp.Patch("L2.mlp_out@5", source="L1.attn_out@3"), tp.Ablate("L0H1.z")]
    )
    layer = 1 if over == "neurons" else None
    step = 1e-2
    sweep = tp.sweep(session, over, kind, "zero", estimate=True, layer=layer).result(WAIT)
    question = session.question
    for index in some(sweep.grid, 4):
        site = sweep.grid.site(index)

        def shrunk(by, site=site):
            scaled = Scaled(site, by)
            run = lm.run(type(question)(question.token_ids, (*question.interventions, scaled)))
            return session.metric.of(run)

        slope = (shrunk(1 + step) - shrunk(1 - step)) / (2 * step)
        # From a to 0 the change is −a, and so is the estimate.
        assert sweep.array[index] == pytest.approx(-slope, abs=2e-3, rel=2e-2), site


def test_verifying_runs_the_largest_and_tells_how_far_to_trust_the_rest(lm):
    session = session_on(lm)
    estimate = tp.sweep(session, "heads_positions", estimate=True).result(WAIT)
    exact = tp.sweep(session, "heads_positions").result(WAIT).array
    verified = estimate.verify(10).result(WAIT)
    known = ~np.isnan(verified.array)
    assert known.sum() == 10 == verified.total and not verified.estimated
    assert np.abs(estimate.array)[known].min() >= np.abs(estimate.array)[~known].max()
    np.testing.assert_allclose(verified.array[known], exact[known], atol=TOLERANCE)
    ranks = [np.argsort(np.argsort(values[known])) for values in (exact, estimate.array)]
    assert verified.agreement == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-6)
    assert list(verified.frame.columns) == ["layer", "head", "pos", "site", "change", "estimate"]
    assert verified in session.tasks
    with pytest.raises(tp.InterventionError, match="estimate=True"):
        verified.verify()
    assert estimate.agreement is None


# However it ends


def right(lm, architecture="llama"):
    session = session_on(lm)
    forget_runs(lm)
    expected = forward(plain(architecture), lm.tokenize(session.text)).logits
    return (session.wait(WAIT).run.logits - expected).abs().max() <= 1e-4


def held(lm):
    """Have the worker wait in the middle of a layer; gives two events and the hook."""
    reached, go = threading.Event(), threading.Event()

    def hold(*call):
        reached.set()
        assert go.wait(WAIT)

    return reached, go, lm.stack.blocks[1].attn.register_forward_pre_hook(hold)


def test_cancelling_keeps_what_is_known_and_the_next_run_is_right(lm, small_batches):
    sweep = tp.sweep(session_on(lm), "heads_positions")
    next(iter(sweep))
    sweep.cancel()
    assert sweep.state == "cancelled"
    with pytest.raises(Cancelled):
        sweep.result(WAIT)
    assert no_hooks(lm) and right(lm)
    assert sweep._walk is None


def test_cancelling_in_the_middle_of_a_layer_answers_at_once_and_ends_there(lm, small_batches):
    reached, go, hook = held(lm)
    sweep = tp.sweep(session_on(lm), "heads_positions", "v")
    assert reached.wait(WAIT)
    began = time.monotonic()
    sweep.cancel()
    assert time.monotonic() - began < 1 and sweep.is_over
    done = sweep.done
    go.set()
    hook.remove()
    assert no_hooks(lm) and right(lm) and sweep._walk is None
    assert sweep.done == done and sweep.state == "cancelled"


def test_an_error_inside_a_hook_is_raised_and_leaves_nothing(lm, monkeypatch):
    session = session_on(lm)
    session.wait()

    def broken(self, whole, source):
        raise ZeroDivisionError("inside a hook")

    with monkeypatch.context() as patch:
        patch.setattr(tp.Ablate, "apply", broken)
        sweep = tp.sweep(session)
        with pytest.raises(ZeroDivisionError):
            sweep.result(WAIT)
    assert sweep.state == "failed" and sweep._walk is None
    assert no_hooks(lm) and right(lm)


@pytest.mark.parametrize("how", ["switch", "close"])
def test_a_sweep_ends_with_its_session_or_its_model(lm, random_lm, how, small_batches):
    session = session_on(lm)
    session.wait()
    reached, go, hook = held(lm)
    sweep = tp.sweep(session, "heads_positions", "v")
    assert reached.wait(WAIT)
    if how == "switch":
        session.model = random_lm("gpt2")
    else:
        session.close()
    assert sweep.state == "cancelled"
    go.set()
    hook.remove()
    assert no_hooks(lm) and right(lm) and right(random_lm("gpt2"), "gpt2")


def test_a_sweep_ends_with_the_worker(random_directory, small_batches):
    lm = tp.load_model(str(random_directory("llama")))
    session = session_on(lm)
    session.wait()
    reached, go, hook = held(lm)
    sweep = tp.sweep(session, "heads_positions", "v")
    assert reached.wait(WAIT)
    lm.worker.stop()
    go.set()
    with pytest.raises((Cancelled, RuntimeError)):
        sweep.result(WAIT)
    hook.remove()


def test_a_click_does_not_wait_for_a_sweep(smollm2):
    """The session is answered while most of the map is still to come."""
    session = tp.Session(smollm2, "The quick brown fox jumps over the lazy dog and runs")
    session.wait(WAIT)
    sweep = tp.sweep(session, "heads_positions")
    for _ in zip(range(2), sweep, strict=False):
        pass
    for head in range(3):
        session.interventions = [tp.Ablate(f"L20H{head}.z")]
        session.wait(WAIT)
        assert not sweep.is_over and sweep.fraction < 0.5
    sweep.cancel()
    assert no_hooks(smollm2)


def test_two_sweeps_take_turns_and_are_both_right(lm, small_batches):
    session = session_on(lm)
    alone = tp.sweep(session, "heads_positions").result(WAIT).array
    both = [tp.sweep(session, "heads_positions"), tp.sweep(session, "heads_positions", "v")]
    np.testing.assert_array_equal(both[0].result(WAIT).array, alone)
    agrees(both[1].result(WAIT), Loop(session, "llama"))


def test_a_sweep_starts_no_thread(lm):
    session = session_on(lm)
    session.wait()
    before = set(threading.enumerate())
    for _ in tp.sweep(session):
        pass
    assert set(threading.enumerate()) == before
