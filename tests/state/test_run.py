"""A run is a value: what one pass saw, in float32, copied, and the same whenever it is asked."""

import dataclasses

import numpy as np
import pytest
import torch
from fresh import forget_runs

from random_models import random_model
from reference import forward
from transpector.state.cache import RunCache
from transpector.state.errors import Cancelled, SiteError
from transpector.state.interventions import Ablate, Freeze, Patch, Question
from transpector.state.measure import strip_patterns, thumbnails
from transpector.state.run import KEPT_KINDS, keeps_patterns
from transpector.state.sites import KINDS, Site

IDS = [3, 4, 5, 6, 7, 8, 9]


@pytest.fixture(scope="module")
def lm(random_lm):
    return random_lm("llama")


@pytest.fixture(scope="module")
def hf_model():
    return random_model("llama")


@pytest.fixture
def run(lm):
    return lm.run(Question(IDS))


def test_loss_is_the_cross_entropy_of_each_next_token(run, hf_model):
    log_probs = forward(hf_model, IDS).logits.double().log_softmax(-1)
    expected = [-float(log_probs[at, token]) for at, token in enumerate(IDS[1:])]
    assert run.loss.dtype == np.float32
    assert run.loss == pytest.approx(expected, abs=1e-5)


def test_next_tokens_are_the_likeliest_in_order(run, hf_model):
    for position in (-1, 2):
        top = forward(hf_model, IDS).logits[position].softmax(-1).topk(7)
        given = run.next_tokens(position, k=7)
        assert [token for token, _ in given] == list(run.model.pieces(top.indices.tolist()))
        assert [p for _, p in given] == pytest.approx(top.values.tolist(), abs=1e-5)
    assert len(run.next_tokens(k=10_000)) == 512
    assert sum(p for _, p in run.next_tokens(k=10_000)) == pytest.approx(1, abs=1e-4)


def test_a_pattern_is_one_head_s_query_by_key(run, hf_model):
    pattern = run.pattern(layer=2, head=3)
    assert pattern.dtype == np.float32 and pattern.shape == (7, 7)
    assert np.abs(pattern - forward(hf_model, IDS).activations["pattern", 2][3].numpy()).max() <= 1e-5
    assert np.abs(pattern.sum(1) - 1).max() <= 1e-5
    assert not np.triu(pattern, 1).any()


def test_an_activation_is_a_copy_that_pins_nothing(run):
    value = run.activation("L1H2.z@-1")
    assert value.shape == (12,) and value.flags.owndata
    value[:] = 99
    assert (run.activation("L1H2.z@-1") != 99).all()


@pytest.mark.parametrize(
    "site",
    ["L1.q", "L1H1.k", "L1.v@2", "L1.scores", "L1N5.mlp_pre", "L1.mlp_post@-2:", "embed", "L1.resid_mid"],
)
def test_what_was_not_kept_is_found_by_the_same_pass_again(lm, hf_model, site):
    site = Site.parse(site)
    run = lm.run(Question(IDS, (Ablate("L0H1.z"),)))
    assert site.tensor not in run.activations

    def ablated(z):
        z[:, 1] = 0
        return z

    expected = forward(hf_model, IDS, {("z", 0): ablated}).activations[site.tensor][site.index].numpy()
    given = run.activation(site)
    assert given.dtype == np.float32
    assert np.abs(np.maximum(given, -1e9) - np.maximum(expected, -1e9)).max() <= 1e-4


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox", "gemma2", "opt", "gptj", "bloom"])
def test_what_was_written_is_what_is_read(random_lm, kind):
    lm = random_lm(kind)
    for site in map(Site, KINDS, [None, *[1] * (len(KINDS) - 1)]):
        if site.kind == "scores" or not lm.health.can_write(site.kind):
            continue
        run = lm.run(Question(IDS, (Ablate(site),)))
        # Where a pass adds and takes away again, the last bits stay.
        assert np.abs(run.activation(site)).max() <= 1e-6, site


def test_only_what_most_views_need_is_kept(run):
    assert {kind for kind, _ in run.activations} == {*KEPT_KINDS, "resid_post", "final_scale"}


def test_a_site_that_this_architecture_lacks_is_refused_and_not_made_up(random_lm):
    for kind, site in (
        ("gpt_neox", "L1.resid_mid"),
        ("gptj", "L1.resid_mid"),
        ("gptj", "L1.scores"),
        ("opt", "L1.scores"),
    ):
        run = random_lm(kind).run(Question(IDS))
        with pytest.raises(SiteError, match=f"{site} can't be read here: "):
            run.activation(site)


def test_a_site_or_position_out_of_range_is_refused(run):
    with pytest.raises(SiteError, match="layers 0 to 2, not 3"):
        run.activation("L3.z")
    with pytest.raises(SiteError, match="positions 0 to 6, not 7"):
        run.activation("L0.z@7")
    with pytest.raises(SiteError, match="heads 0 to 3, not 4"):
        run.pattern(0, 4)
    with pytest.raises(SiteError, match="Position 7"):
        run.next_tokens(7)


def test_one_token_has_predictions_and_no_loss(lm):
    run = lm.run(Question([5]))
    assert run.loss.shape == (0,) and run.n_pos == 1
    assert len(run.next_tokens()) == 5
    assert run.pattern(0, 0).tolist() == [[1.0]]


def test_a_run_can_t_be_changed(run):
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.ms = 0.0
    assert run.token_ids.tolist() == IDS
    run.token_ids[0] = 7
    assert run.token_ids.tolist() == IDS


def test_tokens_are_the_pieces_of_the_ids(lm):
    run = lm.run(Question(lm.tokenize("in the city é")))
    assert "".join(run.tokens[:-2]) == "in the city "
    assert run.tokens[-2:] == ("‹C3›", "‹A9›")


def test_the_same_question_is_answered_from_the_cache(lm):
    forget_runs(lm)
    first = lm.run(Question(IDS, (Ablate("L0H1.z", name="a"),)))
    assert lm.run(Question(IDS, (Ablate("L0H1.z", name="b"),))) is first
    assert lm.run(Question(IDS, (Ablate("L0H2.z"),))) is not first


def test_what_was_kept_for_one_is_there_for_the_next(lm):
    forget_runs(lm)
    lm.run(Question(IDS)).activation("L1.q")
    lm.run(Question(IDS)).activation("L2.q")
    run = lm.run(Question(IDS))
    assert {("q", 1), ("q", 2)} <= run.activations.keys()


def test_the_cache_drops_the_least_used_and_keeps_the_newest(lm):
    runs = [lm.run(Question([5, 6, n])) for n in range(4)]
    size = runs[0].nbytes()
    cache = RunCache(limit=int(2.5 * size))
    cache.put("w", runs[0])
    cache.put("w", runs[1])
    assert cache.get("w", runs[0].question) is runs[0]
    cache.put("w", runs[2])
    assert cache.get("w", runs[1].question) is None
    assert cache.get("w", runs[0].question) is runs[0] and cache.get("w", runs[2].question) is runs[2]
    assert cache.nbytes == 2 * size <= cache.limit
    tiny = RunCache(limit=1)
    tiny.put("w", runs[0])
    tiny.put("w", runs[1])
    assert tiny.get("w", runs[1].question) is runs[1] and tiny.get("w", runs[0].question) is None
    tiny.clear()
    assert tiny.nbytes == 0


def test_a_run_of_other_weights_is_no_answer(lm):
    run = lm.run(Question([5, 6, 7]))
    cache = RunCache()
    cache.put("these", run)
    assert cache.get("those", run.question) is None and cache.get("these", run.question) is run
    assert list(cache.on_tokens_of("those", run.question)) == []


def test_pinned_runs_stay_as_long_as_their_owner(lm):
    class Owner:
        pass

    runs = [lm.run(Question([5, 6, n])) for n in range(4)]
    cache, owner = RunCache(limit=int(2.5 * runs[0].nbytes())), Owner()
    cache.put("w", runs[0])
    cache.pin(owner, [runs[0].question])
    for run in runs[1:]:
        cache.put("w", run)
    assert cache.get("w", runs[0].question) is runs[0]
    assert cache.get("w", runs[1].question) is None and cache.get("w", runs[2].question) is None
    del owner
    cache.put("w", runs[1])
    cache.put("w", runs[2])
    assert cache.get("w", runs[0].question) is None


def test_the_limit_of_the_cache_is_a_setting(monkeypatch):
    assert RunCache().limit == 1_000_000_000
    monkeypatch.setenv("TRANSPECTOR_RUN_CACHE", "250")
    assert RunCache().limit == 250_000_000


def test_shared_storage_is_counted_once(run):
    n_bytes = run.nbytes()
    doubled = dataclasses.replace(run, activations={**run.activations, ("again", 0): run.activations["z", 0]})
    assert doubled.nbytes() == n_bytes
    weights = 4 * (7 * 512 + 3 * (3 * 7 * 48 + 7 * 4 * 12 + 4 * 7 * 7))
    assert n_bytes >= weights


def hooks_on(lm):
    """How many hooks each point has; some architectures have permanent ones of the bridge's own."""
    return {
        name: (len(point.fwd_hooks), len(point.bwd_hooks), len(point._forward_hooks))
        for name, point in lm.bridge.hook_dict.items()
    }


def test_a_cancelled_pass_leaves_no_hooks_and_the_next_is_right(lm, hf_model):
    forget_runs(lm)
    seen, before = [], hooks_on(lm)
    assert not any(map(any, before.values()))
    with pytest.raises(Cancelled):
        lm.run(Question(IDS, (Ablate("L0.z"),)), cancelled=lambda: len(seen) >= 2, progress=seen.append)
    assert seen == [0, 1]
    assert hooks_on(lm) == before
    assert (lm.run(Question(IDS)).logits - forward(hf_model, IDS).logits).abs().max() <= 1e-4


def test_an_error_inside_a_hook_leaves_no_hooks_and_the_next_pass_is_right(lm, hf_model, monkeypatch):
    forget_runs(lm)
    before = hooks_on(lm)

    def broken(self, whole, source):
        raise ZeroDivisionError("inside a hook")

    with monkeypatch.context() as patch:
        patch.setattr(Ablate, "apply", broken)
        with pytest.raises(ZeroDivisionError):
            lm.run(Question(IDS, (Ablate("L1.z"),)))
    assert hooks_on(lm) == before
    assert (lm.run(Question(IDS)).logits - forward(hf_model, IDS).logits).abs().max() <= 1e-4


@pytest.mark.parametrize("kind", ["opt", "gptj"])
def test_a_pass_cancelled_while_it_learns_a_pattern_leaves_no_hooks(random_lm, kind):
    lm = random_lm(kind)
    assert lm.wiring.pattern_through_z
    question = Question([11, 12, 13, 14], (Ablate("L2H1.pattern"),))
    seen, before = [], hooks_on(lm)
    with pytest.raises(Cancelled):
        lm.run(question, cancelled=lambda: len(seen) >= 1, progress=seen.append)
    assert hooks_on(lm) == before
    z = lm.run(question).activation("L2H1.z")
    assert not z.any()


def test_progress_names_every_layer(lm):
    forget_runs(lm)
    seen = []
    lm.run(Question(IDS), progress=seen.append)
    assert seen == [0, 1, 2]


def test_a_run_does_not_depend_on_the_caller_s_grad_mode(lm):
    forget_runs(lm)
    with torch.enable_grad():
        run = lm.run(Question(IDS))
    assert not run.logits.requires_grad and run.logits.grad_fn is None


def test_a_run_with_its_embedding_held_tells_what_it_did_not_keep(random_lm):
    lm = random_lm("llama")
    frozen = Question(IDS, (Freeze("embed", Question([5] * len(IDS))),))
    plain = lm.run(Question([5] * len(IDS)))
    assert np.abs(lm.run(frozen).activation("L1.q") - plain.activation("L1.q")).max() <= 1e-5


# Patterns that are too large to be kept


def patterns_kept(lm):
    return [at for run in lm.runs._runs.values() for at in run.activations if at[0] == "pattern"]


def text_of(lm, ids):
    """A text of as many tokens, to patch from."""
    text = lm.text.decode(ids[::-1])
    assert len(lm.tokenize(text)) == len(ids)
    return text


def changes(lm, ids):
    """Interventions that a pattern is read under: none, upstream, on patterns themselves, and from other runs."""
    text, other = text_of(lm, ids), Question(ids[::-1])
    yield ()
    yield (Ablate("L0H1.z"), Ablate("embed@2"))
    yield (Ablate("L1H2.pattern", "mean"),)
    yield (Patch("L1H0.pattern", "L1H2.pattern", text),)
    yield (Patch("L0.pattern", "L2.pattern", text), Ablate("L1.mlp_out"))
    yield (Freeze("L1.pattern", other), Ablate("L0.attn_out"))
    yield (Patch("L2H1.pattern", "L1H3.pattern"),)


def seen_of(lm, interventions, ids):
    run = lm.run(Question(ids, interventions))
    patterns = np.stack([run.pattern(layer, head) for layer in range(3) for head in range(lm.spec.n_heads)])
    small, maxima, _ = thumbnails(run, side=3)
    return run, patterns, small, maxima, strip_patterns(run, 1, 2), run.logits


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gemma2", "opt", "gptj", "bloom", "odd"])
def test_patterns_that_are_not_kept_are_made_anew_and_are_the_same(random_lm, request, monkeypatch, kind):
    lm = request.getfixturevalue("odd_lm") if kind == "odd" else random_lm(kind)
    assert lm.wiring.by_layer == (kind != "odd")
    ids = IDS
    for interventions in changes(lm, ids):
        forget_runs(lm)
        _, *expected = seen_of(lm, interventions, ids)
        assert patterns_kept(lm)
        forget_runs(lm)
        with monkeypatch.context() as patch:
            patch.setattr("transpector.state.run.PATTERN_BYTES", 0)
            run, *found = seen_of(lm, interventions, ids)
            for one, other in zip(found, expected, strict=True):
                # Thumbnails are bytes, of which one may round the other way.
                tolerance = 1 if one.dtype == np.uint8 else 1e-6
                assert np.abs(np.asarray(one, float) - np.asarray(other, float)).max() <= tolerance
            here = {("pattern", 1)} if any(i.reads_here for i in interventions) else set()
            assert set(patterns_kept(lm)) == here  # only what the run itself reads
            assert {at for at in run.activations if at[0] == "pattern"} == here
            n_bytes, in_all = run.nbytes(), lm.runs.nbytes
            seen_of(lm, interventions, ids)
            for layer in range(3):
                run.tensor(("pattern", layer))
            assert (run.nbytes(), lm.runs.nbytes) == (n_bytes, in_all)
    forget_runs(lm)


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_a_pattern_that_is_not_kept_is_the_plain_pass_s(random_lm, monkeypatch, kind):
    lm = random_lm(kind)
    forget_runs(lm)
    monkeypatch.setattr("transpector.state.run.PATTERN_BYTES", 0)

    def ablated(z):
        z[:, 1] = 0
        return z

    run = lm.run(Question(IDS, (Ablate("L0H1.z"),)))
    expected = forward(random_model(kind), IDS, {("z", 0): ablated}).activations
    for layer in range(3):
        for head in range(4):
            assert np.abs(run.pattern(layer, head) - expected["pattern", layer][head].numpy()).max() <= 1e-5
    assert not patterns_kept(lm)
    forget_runs(lm)


def test_what_else_was_asked_for_is_still_kept(random_lm, monkeypatch):
    lm = random_lm("llama")
    forget_runs(lm)
    monkeypatch.setattr("transpector.state.run.PATTERN_BYTES", 0)
    lm.run(Question(IDS)).activation("L1.q")
    assert ("q", 1) in lm.run(Question(IDS)).activations
    assert {kind for kind, _ in lm.run(Question(IDS)).activations} == {
        *KEPT_KINDS,
        "resid_post",
        "final_scale",
        "q",
    } - {"pattern"}
    forget_runs(lm)


def test_patterns_are_kept_up_to_so_many_bytes(random_lm, monkeypatch):
    lm = random_lm("llama")
    n_bytes = 3 * 4 * 7 * 7 * 4  # layers, heads, queries, keys, float32
    for limit, kept in ((n_bytes, True), (n_bytes - 1, False)):
        monkeypatch.setattr("transpector.state.run.PATTERN_BYTES", limit)
        forget_runs(lm)
        assert keeps_patterns(lm, 7) == kept
        assert (("pattern", 2) in lm.run(Question(IDS)).activations) == kept
    forget_runs(lm)
