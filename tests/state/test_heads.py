"""What heads are for, and which attend alike, counted once more by slow loops over Hugging Face's own attention."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import reference
import transpector as tp
from transpector.state import circuits, heads
from transpector.state.health import Ability

TOLERANCE = 1e-5
KINDS = ("llama", "gpt2", "gemma2", "gpt_neox")
IDS = (0, 5, 9, 7, 5, 9, 30, 7, 7, 5, 0, 12, 9)
"""Some tokens come once, some twice or more, one twice in a row."""


@pytest.fixture(scope="module")
def ask(random_lm):
    def run(kind, ids=IDS, *interventions):
        return random_lm(kind).run(tp.Question(ids, interventions))

    return run


@pytest.fixture(scope="module")
def attention(reference_model):
    """A function: kind of model -> what Hugging Face says of its attention; [layer, head, query, key]."""

    def patterns(kind, ids=IDS):
        with torch.no_grad():
            found = reference_model(kind)(torch.tensor([ids]), output_attentions=True).attentions
        return torch.cat(found).numpy()

    return patterns


def counted(pattern, ids):
    """The scores of one head, by the definitions; None where nothing is to be counted."""
    sums = {name: [] for name in heads.OF_ATTENTION}
    for query in range(1, len(ids)):
        sums["previous_token"].append(pattern[query, query - 1])
        sums["bos"].append(pattern[query, 0])
        sums["current_token"].append(pattern[query, query])
        same = [key for key in range(query) if ids[key] == ids[query]]
        after = [key + 1 for key in same if key + 1 != query]
        if same:
            sums["duplicate_token"].append(sum(pattern[query, key] for key in same))
        if after:
            sums["induction"].append(sum(pattern[query, key] for key in after))
    return {name: np.mean(each, dtype=np.float64) if each else None for name, each in sums.items()}


def in_common(one, other, queries):
    """Mean over the queries of the attention that both give, key by key."""
    return np.mean([sum(min(p, q) for p, q in zip(one[at], other[at], strict=True)) for at in queries])


def expect_scores(found, patterns, ids):
    assert found.names == tuple(heads.OF_ATTENTION) and found.values.dtype == np.float32
    for layer, head in np.ndindex(patterns.shape[:2]):
        for name, expected in counted(patterns[layer, head], ids).items():
            assert found[name][layer, head] == pytest.approx(expected, abs=TOLERANCE), (name, layer, head)


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_is_what_it_is_said_to_be(ask, attention, kind):
    found = heads.attention_scores(ask(kind))
    expect_scores(found, attention(kind), IDS)
    assert not found.notes


def test_scores_are_of_the_run_with_its_interventions(ask, reference_model):
    run = ask("llama", IDS, tp.Ablate("L0H1.z"))

    def without(z):
        z[:, 1] = 0
        return z

    written = reference.forward(reference_model("llama"), IDS, {("z", 0): without}).activations
    patterns = np.stack([written["pattern", layer].numpy() for layer in range(3)])
    expect_scores(heads.attention_scores(run), patterns, IDS)
    assert not np.allclose(run.pattern(1, 0), ask("llama").pattern(1, 0), atol=1e-3)


def test_a_token_is_not_what_followed_itself():
    assert np.argwhere(heads.followers([7, 7])).tolist() == []
    assert np.argwhere(heads.followers([7, 7, 7])).tolist() == [[2, 1]]
    assert np.argwhere(heads.earlier([7, 7, 7])).tolist() == [[1, 0], [2, 0], [2, 1]]
    assert np.argwhere(heads.followers([7, 8, 7, 9, 7])).tolist() == [[2, 1], [4, 1], [4, 3]]


def test_where_nothing_repeats_the_scores_of_repetition_are_unknown_and_say_why(ask):
    found = heads.attention_scores(ask("llama", (5, 6, 7)))
    unknown = {name for name in found.names if np.isnan(found[name]).all()}
    assert unknown == found.notes.keys() == {"duplicate_token", "induction"}
    assert "No token of the text is one that occurred before" in found.notes["duplicate_token"]
    assert not np.isnan(found["previous_token"]).any()
    assert found.top("induction") == []
    twice_in_a_row = heads.attention_scores(ask("llama", (5, 7, 7)))
    assert twice_in_a_row.notes.keys() == {"induction"}


def test_of_one_token_nothing_is_known(ask):
    run = ask("llama", (5,))
    found = heads.attention_scores(run)
    assert np.isnan(found.values).all() and found.notes.keys() == set(found.names)
    with pytest.raises(tp.SiteError, match="L1H2 attends to nothing past the first token"):
        heads.similar_heads(run, 1, 2)


def test_every_head_has_a_row_and_every_score_a_column(ask):
    found = heads.attention_scores(ask("llama"))
    frame = found.frame
    assert list(frame) == ["layer", "head", *heads.OF_ATTENTION] and len(frame) == 12
    assert (frame["bos"].to_numpy().reshape(3, 4) == found["bos"]).all()
    row = frame.iloc[7]
    assert (row["layer"], row["head"], row["induction"]) == (1, 3, found["induction"][1, 3])
    order = np.argsort(-found["bos"].ravel(), kind="stable")[:3]
    expected = [(*divmod(int(at), 4), float(found["bos"].ravel()[at])) for at in order]
    assert found.top("bos", 3) == expected
    assert len(found.top("bos", 100)) == 12
    with pytest.raises(tp.TextError, match="Score 'sink': use one of previous_token, "):
        found["sink"]


def test_every_score_has_a_definition_and_its_source():
    assert tuple(heads.SCORES) == (*heads.OF_ATTENTION, "copying")
    for score in heads.SCORES.values():
        assert score.label and score.definition.endswith(".") and "20" in score.source


def test_copying_is_said_of_the_weights(ask, random_lm):
    found = heads.head_scores(ask("llama"))
    assert found.names == tuple(heads.SCORES) and found.values.dtype == np.float32
    assert (found["copying"] == circuits.copying(random_lm("llama"))).all()
    assert (found.values[:-1] == heads.attention_scores(ask("llama")).values).all()
    assert not found.notes and list(found.frame)[-1] == "copying"


def test_where_the_weights_can_t_be_read_copying_is_unknown_and_says_why(ask, monkeypatch):
    def refuse(model):
        raise tp.ModelError("These weights are odd.")

    monkeypatch.setattr(circuits, "copying", refuse)
    found = heads.head_scores(ask("llama"))
    assert np.isnan(found["copying"]).all() and found.notes == {"copying": "These weights are odd."}
    assert not np.isnan(found.values[:-1]).any()


def test_what_can_t_be_read_is_refused_with_the_reason(random_lm, ask, monkeypatch):
    health, run = random_lm("llama").health, ask("llama")
    monkeypatch.setitem(health.abilities, "pattern", Ability(False, False, "it is hidden."))
    for measure in (
        heads.attention_scores,
        heads.head_scores,
        lambda run: heads.similar_heads(run, 0, 0),
        lambda run: heads.similarity(run, np.eye(len(IDS))),
    ):
        with pytest.raises(tp.SiteError, match="it is hidden"):
            measure(run)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_are_alike_by_the_attention_they_have_in_common(ask, attention, kind):
    patterns, run = attention(kind), ask(kind)
    frame = heads.similar_heads(run, 1, 2)
    assert list(frame) == ["layer", "head", "similarity"] and len(frame) == 11
    assert frame["similarity"].is_monotonic_decreasing and list(frame.index) == list(range(11))
    rows = {(layer, head): value for layer, head, value in frame.itertuples(index=False)}
    assert (1, 2) not in rows
    for (layer, head), value in rows.items():
        expected = in_common(patterns[layer, head], patterns[1, 2], range(1, len(IDS)))
        assert value == pytest.approx(expected, abs=TOLERANCE)
        total_variation = np.abs(patterns[layer, head] - patterns[1, 2])[1:].sum(-1).mean() / 2
        assert value == pytest.approx(1 - total_variation, abs=TOLERANCE)


def test_a_head_is_wholly_like_itself(ask):
    run = ask("llama")
    assert heads.similarity(run, run.pattern(1, 2))[1, 2] == pytest.approx(1, abs=TOLERANCE)


def test_heads_are_found_by_the_pattern_that_is_wanted_of_them(ask, attention):
    run, patterns = ask("gpt2"), attention("gpt2")
    wanted = np.zeros((len(IDS), len(IDS)))
    wanted[4, 1], wanted[4, 2], wanted[9, 0] = 1, 0.1, 0.3
    expected = [[in_common(pattern, wanted, (4, 9)) for pattern in layer] for layer in patterns]
    assert heads.similarity(run, wanted) == pytest.approx(np.array(expected), abs=TOLERANCE)
    best = heads.heads_with_pattern(run, wanted).iloc[0]
    assert (best["layer"], best["head"]) == np.unravel_index(np.argmax(expected), (3, 4))
    assert len(heads.heads_with_pattern(run, wanted)) == 12
    # What induction is scored by is a pattern that is wanted.
    induction = heads.attention_scores(run)["induction"]
    assert heads.similarity(run, heads.followers(IDS)) == pytest.approx(induction, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (np.ones((3, 13)), "is 3 × 13; this text has 13 queries × 13 keys"),
        (np.ones(13), "is 13; this text has"),
        (np.full((13, 13), np.nan), "below 0 or no number"),
        (np.full((13, 13), np.inf), "below 0 or no number"),
        (-np.eye(13), "below 0 or no number"),
        (np.zeros((13, 13)), "no query is wanted to attend"),
    ],
)
def test_what_is_no_pattern_on_the_text_is_refused(ask, wanted, message):
    with pytest.raises(tp.TextError, match=message):
        heads.heads_with_pattern(ask("llama"), wanted)


@pytest.mark.parametrize(("layer", "head"), [(3, 0), (0, 4), (0, -1)])
def test_a_head_that_is_not_there_is_like_none(ask, layer, head):
    with pytest.raises(tp.SiteError, match="this model has"):
        heads.similar_heads(ask("llama"), layer, head)


def test_random_tokens_are_written_twice(random_lm):
    model = random_lm("llama")
    question = heads.repeated_random(model)
    ids = question.token_ids
    assert len(ids) == 48 and ids[:24] == ids[24:] and 0 not in ids and len(set(ids)) > 12
    assert not question.bos and question == heads.repeated_random(model, seed=0)
    assert ids != heads.repeated_random(model, seed=1).token_ids
    assert heads.repeated_random(model, seed=None) != heads.repeated_random(model, seed=None)
    begun = heads.repeated_random(model, 5, bos=True)
    assert begun.bos and begun.token_ids[0] == model.text.bos_id and begun.token_ids[1:6] == ids[:5]
    with pytest.raises(tp.TextError, match="0 random tokens: ask for 1 or more"):
        heads.repeated_random(model, 0)
    with pytest.raises(tp.TextError, match="200 tokens; this model reads at most 128"):
        heads.repeated_random(model, 100)


def test_bos_is_in_front_where_the_tokenizer_puts_it(random_lm, monkeypatch):
    model = random_lm("llama")
    monkeypatch.setattr(model.text, "adds_bos", True)
    assert heads.repeated_random(model, 3).token_ids[0] == model.text.bos_id


@pytest.fixture(scope="module")
def repeated(builtin):
    return builtin.run(heads.repeated_random(builtin))


def test_the_built_in_model_s_induction_heads_are_those_of_layer_2(repeated):
    found = heads.attention_scores(repeated)
    top = found.top("induction", 9)
    assert [layer for layer, _, _ in top[:8]] == [2] * 8
    assert top[7][2] > 5 * top[8][2]
    assert {(layer, head) for layer, head, _ in found.top("previous_token", 3)} == {(1, 1), (1, 4), (1, 5)}


def test_without_its_induction_heads_the_second_copy_is_as_hard_as_the_first(builtin, repeated):
    top = heads.attention_scores(repeated).top("induction", 8)
    eight = tuple(tp.Ablate(f"L{layer}H{head}.z") for layer, head, _ in top)
    without = builtin.run(tp.Question(repeated.question.token_ids, eight))
    assert without.loss[24:].mean() >= repeated.loss[24:].mean() + 2


class Largest(TorchDispatchMode):
    """The largest storage that any operation makes anew, bytes."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if torch.is_tensor(t)}
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if torch.is_tensor(made) and made.untyped_storage().data_ptr() not in given:
                self.bytes = max(self.bytes, made.untyped_storage().nbytes())
        return out


def test_no_second_copy_of_a_layer_s_attention_is_made(builtin):
    run = builtin.run(heads.repeated_random(builtin, 250))
    own, one_head = run.pattern(2, 0), 500 * 500 * 4

    def most(work):
        with Largest() as largest:
            work()
        return largest.bytes

    for work in (lambda: heads.attention_scores(run), lambda: heads.similarity(run, own)):
        # On the worker's thread, where the mode is felt.
        assert 0 < builtin.worker.call(lambda work=work: most(work)) <= one_head
