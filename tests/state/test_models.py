"""A model is loaded or adopted whole, and leaves nothing behind when it goes."""

import gc
import threading
import time
import weakref

import pytest
import torch

import random_models
import transpector as tp
from reference import forward

TEXT = "The Eiffel Tower is in the city of"


@pytest.fixture
def bridge_of(random_directory):
    """A function: kind of random model -> a bridge as a user boots it."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    def bridge(kind="llama"):
        tokenizer = AutoTokenizer.from_pretrained(random_directory(kind))
        return TransformerBridge.boot_transformers(
            f"random-{kind}", hf_model=random_models.random_model(kind), tokenizer=tokenizer, device="cpu"
        )

    return bridge


def until_gone(*references):
    deadline = time.monotonic() + 10
    while any(reference() is not None for reference in references) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert [reference() for reference in references] == [None] * len(references)


def threads_of(name):
    return [thread for thread in threading.enumerate() if thread.name == f"transpector {name}"]


def test_a_model_that_is_dropped_frees_its_memory_and_ends_its_thread(random_directory):
    directory = str(random_directory("gpt2"))
    lm = tp.load_model(directory)
    before = threads_of(lm.name)
    session = tp.Session(model=lm, text=TEXT, interventions=[tp.Ablate("L0H0.z")]).wait(60)
    thread = lm.worker._thread
    gone = [weakref.ref(lm), weakref.ref(lm.bridge), weakref.ref(session.run), weakref.ref(session)]
    del lm, session
    until_gone(*gone)
    thread.join(10)
    assert not thread.is_alive() and thread in before


def test_loading_hides_no_model_from_the_garbage_collector(random_directory):
    frozen = gc.get_freeze_count()
    tp.load_model(str(random_directory("gpt2")))
    assert gc.get_freeze_count() == frozen


def test_a_bridge_of_yours_gives_the_same_numbers(random_lm, bridge_of):
    bridge = bridge_of()
    lm = tp.load_model(bridge)
    assert lm.bridge is bridge and lm.health.level == "healthy"
    assert (lm.spec.n_layers, lm.spec.n_heads, lm.spec.n_kv_heads, lm.spec.d_vocab) == (3, 4, 2, 512)
    ids = lm.tokenize(TEXT)
    assert ids == bridge.to_tokens(TEXT)[0].tolist(), (
        "a bridge begins with BOS, unlike the model's own tokenizer"
    )
    assert lm.tokenize(TEXT, bos=False) == random_lm("llama").tokenize(TEXT)
    question = tp.Question(ids, (tp.Ablate("L1H1.z"),))
    assert torch.equal(lm.run(question).logits, random_lm("llama").run(question).logits)


def test_a_session_takes_a_bridge_of_yours(bridge_of):
    session = tp.Session(model=bridge_of("gpt2"), text=TEXT).wait(60)
    reference = forward(random_models.random_model("gpt2"), session.run.token_ids)
    assert (session.run.logits - reference.logits).abs().max() <= 1e-4
    assert "".join(session.run.tokens[1:]) == TEXT


def test_one_bridge_is_one_model_however_often_it_is_given(bridge_of):
    bridge = bridge_of()
    lm = tp.load_model(bridge)
    assert tp.load_model(bridge) is lm
    assert tp.Session(model=bridge).model is lm
    gone = weakref.ref(lm)
    del lm
    until_gone(gone)
    assert tp.load_model(bridge).bridge is bridge


@pytest.mark.parametrize("thing", [None, 5, torch.nn.Linear(2, 2)], ids=lambda thing: type(thing).__name__)
def test_what_is_neither_name_nor_bridge_is_refused(thing):
    with pytest.raises(tp.ModelError, match=f"can't open a {type(thing).__name__}"):
        tp.load_model(thing)


def test_a_bridge_without_a_tokenizer_is_refused(bridge_of):
    bridge = bridge_of()
    bridge.tokenizer = None
    with pytest.raises(tp.ModelError, match="has no tokenizer"):
        tp.load_model(bridge)


def test_equal_models_have_equal_fingerprints(random_directory, tmp_path):
    # Not the one that tests share, whose weights may have been changed and restored.
    lm = tp.load_model(str(random_directory("gpt2")))
    assert lm.fingerprint() == tp.load_model(str(random_directory("gpt2"))).fingerprint()
    random_models.save("gpt2", tmp_path / "gpt2", seed=1)
    assert lm.fingerprint() != tp.load_model(str(tmp_path / "gpt2")).fingerprint()


def test_a_model_says_what_it_is(random_lm):
    assert "3 layers × 4 heads, healthy" in repr(random_lm("llama"))


def test_loading_reports_its_stages_and_stops_when_told(random_directory):
    from transpector.state.errors import Cancelled

    stages = []
    tp.load_model(str(random_directory("gpt2")), progress=lambda stage, fraction: stages.append(stage))
    assert stages[0] == "looking at the model" and stages[-1] == "testing what can be changed"
    for n in (1, len(set(stages)) - 1):
        told = []
        with pytest.raises(Cancelled):
            tp.load_model(
                str(random_directory("gpt2")),
                progress=lambda stage, fraction, told=told: told.append(stage),
                cancelled=lambda n=n, told=told: len(set(told)) >= n,
            )
        assert "testing what can be changed" not in told


def test_the_model_in_the_box_opens_with_its_defaults():
    lm = tp.load_model()
    assert lm.name == "builtin" and lm.health.level == "healthy"
