import dataclasses
import json

import gguf_files
import pytest
import torch
from transformers import AutoConfig

import random_models
from transpector.state import spec
from transpector.state.catalogue import resolve
from transpector.state.errors import ModelError
from transpector.state.spec import DTYPES, describe, devices


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    return {kind: random_models.save(kind, directory / kind) for kind in random_models.KINDS}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSPECTOR_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", random_models.KINDS)
def test_a_model_is_known_before_it_is_loaded(saved, kind):
    described = describe(resolve(saved[kind]))
    model = random_models.random_model(kind)
    config = AutoConfig.from_pretrained(saved[kind])
    assert described.architecture == type(model).__name__
    assert described.n_params == sum(parameter.numel() for parameter in model.parameters())
    assert described.n_layers == config.num_hidden_layers
    assert described.n_heads == config.num_attention_heads
    assert described.n_kv_heads == getattr(config, "num_key_value_heads", config.num_attention_heads)
    assert described.d_model == config.hidden_size
    assert described.d_head == getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    assert described.d_vocab == config.vocab_size
    shapes = {tuple(parameter.shape) for parameter in model.parameters()}
    assert {(described.d_mlp, described.d_model), (described.d_model, described.d_mlp)} & shapes
    if kind != "bloom":  # ALiBi has no limit
        assert described.n_ctx == random_models.N_POSITIONS


def test_a_gguf_is_described_like_its_original(saved, tmp_path):
    path = tmp_path / "tiny.gguf"
    gguf_files.write_llama(path)
    same = ("n_layers", "n_heads", "n_kv_heads", "d_model", "d_head", "d_mlp", "d_vocab", "n_ctx", "n_params")
    left, right = (dataclasses.asdict(describe(resolve(p))) for p in (path, saved["llama"]))
    assert {key: left[key] for key in same} == {key: right[key] for key in same}
    assert left["bytes_needed"] > right["bytes_needed"]


def test_memory_is_counted_in_bytes_of_the_dtype(saved):
    needed = {dtype: describe(resolve(saved["llama"]), dtype=dtype).bytes_needed for dtype in DTYPES}
    n_params = describe(resolve(saved["llama"])).n_params
    assert needed["float32"] - needed["bfloat16"] == 2 * n_params
    assert needed["float16"] == needed["bfloat16"] > 2 * n_params


def test_a_model_fits_only_into_what_is_free(saved, monkeypatch):
    described = describe(resolve(saved["llama"]))
    assert described.fits and described.bytes_free > 10**8
    assert not dataclasses.replace(described, bytes_free=described.bytes_needed - 1).fits


def test_the_memory_of_a_container_is_its_limit_not_the_machines(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 1000\n")
    monkeypatch.setattr(spec, "_CONTROL_GROUP", tmp_path)
    assert spec.free_memory("cpu") == 3000
    (tmp_path / "memory.max").write_text("max\n")
    assert spec.free_memory("cpu") > 3000


def test_devices_are_those_of_this_machine():
    assert devices()[0] == "cpu"
    assert len([device for device in devices() if device.startswith("cuda:")]) == torch.cuda.device_count()


@pytest.mark.parametrize(
    "settings", [{"device": "cuda:99"}, {"device": "tpu"}, {"dtype": "int8"}, {"dtype": ""}]
)
def test_an_unknown_device_or_dtype_names_the_choices(saved, settings):
    with pytest.raises(ModelError, match=r"Choose one of (cpu|float32)"):
        describe(resolve(saved["llama"]), **settings)


def refusal(path) -> str:
    with pytest.raises(ModelError) as caught:
        describe(resolve(path))
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "not a causal language model"),
        ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, "encoder-decoder"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
    ],
)
def test_what_predicts_no_next_token_or_is_quantised_is_refused(tmp_path, changes, words):
    path = random_models.save("llama", tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))
    assert words in refusal(path)


@pytest.mark.parametrize("keep", [0, 4, 9, 2000, -1])
def test_safetensors_cut_short_say_so(tmp_path, keep):
    weights = random_models.save("llama", tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    assert "Download it again" in refusal(tmp_path)


@pytest.mark.parametrize(
    "start", [b"\xff" * 64, b"\x10" + b"\0" * 7 + b"[1, 2, 3, 4, 5 ]", b"<!doctype html>" * 9]
)
def test_what_is_no_safetensors_says_so(tmp_path, start):
    (random_models.save("llama", tmp_path) / "model.safetensors").write_bytes(start)
    assert "damaged" in refusal(tmp_path)


def test_a_placeholder_of_git_lfs_says_how_to_fetch_the_weights(tmp_path):
    weights = random_models.save("llama", tmp_path) / "model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 100\n")
    assert "git lfs pull" in refusal(tmp_path)


def test_masks_and_tied_copies_in_the_file_are_no_parameters(tmp_path):
    from safetensors.torch import load_file, save_file

    path = random_models.save("gpt2", tmp_path)
    expected = describe(resolve(path)).n_params
    tensors = load_file(path / "model.safetensors")
    tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 128, 128)
    tensors["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, path / "model.safetensors")
    assert describe(resolve(path)).n_params == expected


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        ({"n_embd": 8, "n_head": 2, "n_inner": None}, {"d_mlp": 32, "d_head": 4, "n_kv_heads": 2}),
        ({"hidden_size": 8, "num_attention_heads": 4, "multi_query": True}, {"n_kv_heads": 1}),
        ({"text_config": {"hidden_size": 8, "num_attention_heads": 4}}, {"d_model": 8}),
        ({"hidden_size": 8, "intermediate_size": [4, 16]}, {"d_mlp": 16, "n_heads": 0, "d_head": 0}),
        ({"model_type": "nothing"}, {"n_layers": 0, "n_ctx": 0}),
    ],
)
def test_sizes_are_found_under_whatever_name_they_have(config, sizes):
    described = dataclasses.asdict(spec.describe_config("name", config, 10, "cpu", "float32"))
    assert {key: described[key] for key in sizes} == sizes


def test_a_model_that_was_removed_meanwhile_says_so(tmp_path):
    entry = resolve(random_models.save("llama", tmp_path / "model"))
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="no longer at"):
        describe(entry)
