import json
import os
import subprocess
import sys
import threading
import time

import gguf
import gguf_files
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import random_models
from transpector.state import conversion
from transpector.state.conversion import cache_directory, convert, converted
from transpector.state.errors import Cancelled, ModelError

TEXT = "The Eiffel Tower is in the city of Paris, naïve 🗼"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, gguf_files.write_llama(path)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSPECTOR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def never() -> bool:
    return False


def silent(*_) -> None:
    pass


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_conversion_holds_the_weights_and_the_tokenizer_of_the_original(original, dtype, capfd):
    path, model = original
    directory = convert(path, dtype, silent, never)
    assert capfd.readouterr() == ("", "")
    loaded = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", local_files_only=True)
    assert loaded.dtype == getattr(torch, dtype)
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.to(loaded.dtype)), name
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in config
    ids = AutoTokenizer.from_pretrained(directory, local_files_only=True)(TEXT).input_ids
    assert ids == random_models.tokenizer()(TEXT).input_ids


def test_a_second_conversion_is_the_first(original, monkeypatch):
    directory = convert(original[0], "float32", silent, never)
    assert converted(original[0], "float32") == directory
    assert converted(original[0], "float16") is None
    monkeypatch.setattr(conversion, "_write", None)
    assert convert(original[0], "float32", silent, never) == directory


def test_a_changed_file_is_converted_anew_and_its_old_conversion_removed(original, tmp_path):
    path = tmp_path / "changing.gguf"
    path.write_bytes(original[0].read_bytes())
    first = convert(path, "float32", silent, never)
    os.utime(path, ns=(1, 1))
    assert converted(path, "float32") is None
    second = convert(path, "float32", silent, never)
    assert second != first and not first.exists()


def test_progress_rises_and_ends_near_the_whole(original):
    told = []
    convert(original[0], "float32", lambda what, fraction: told.append((what, fraction)), never)
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions) and fractions[0] == 0.0 and fractions[-1] == 0.9 and len(told) > 20


@pytest.mark.parametrize("after", [0, 1, 3, 15])
def test_a_cancelled_conversion_leaves_nothing_behind(original, cache, after):
    told = []
    with pytest.raises(Cancelled):
        convert(original[0], "float32", lambda *step: told.append(step), lambda: len(told) >= after)
    assert [path for path in cache.glob("*") if path.suffix != ".lock"] == []
    assert converted(original[0], "float32") is None


def test_a_conversion_cancelled_while_it_is_written_leaves_nothing_behind(original, cache):
    told = []
    with pytest.raises(Cancelled):
        convert(original[0], "float32", lambda *step: told.append(step), lambda: ("converting", 0.9) in told)
    assert [path for path in cache.glob("*") if path.suffix != ".lock"] == []


def test_threads_that_convert_the_same_file_share_one_conversion(original, monkeypatch):
    written, results = [], []
    write = conversion._write
    monkeypatch.setattr(conversion, "_write", lambda *args: (written.append(1), write(*args)))
    run = lambda: results.append(convert(original[0], "float32", silent, never))  # noqa: E731
    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and len(set(results)) == 1 and len(written) == 1


def test_one_who_waits_for_another_conversion_can_give_up(original):
    began, release = threading.Event(), threading.Event()

    def hold(*_) -> None:
        began.set()
        release.wait(30)

    holder = threading.Thread(target=convert, args=(original[0], "float32", hold, never))
    holder.start()
    assert began.wait(30)
    start = time.monotonic()
    with pytest.raises(Cancelled):
        convert(original[0], "float32", silent, lambda: time.monotonic() - start > 0.5)
    release.set()
    holder.join()


def test_processes_that_convert_the_same_file_do_not_disturb_each_other(original, cache):
    program = (
        "import sys; from pathlib import Path; from transpector.state.conversion import convert;"
        "import torch; torch.set_num_threads(1);"
        "print(convert(Path(sys.argv[1]), 'float32', lambda *_: None, lambda: False))"
    )
    command = [sys.executable, "-c", program, str(original[0])]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = {process.communicate(timeout=200)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs == {str(converted(original[0], "float32"))}
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1


def test_what_a_killed_conversion_left_is_cleared(original, cache):
    directory = convert(original[0], "float32", silent, never)
    (directory / "transpector.json").unlink()
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
    partial = cache / f"{directory.name}.partial-dead"
    partial.mkdir()
    assert convert(original[0], "float32", silent, never) == directory
    assert not partial.exists()


def test_a_truncated_file_is_refused(original, tmp_path):
    path = tmp_path / "short.gguf"
    path.write_bytes(original[0].read_bytes()[:-5000])
    with pytest.raises(ModelError, match="cut short"):
        convert(path, "float32", silent, never)


def put_gguf(path, architecture: str, tensors: int = 0):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("architecture", ["mamba99", "clip", "llama"])
def test_what_transformers_cannot_read_is_refused_with_the_architecture(tmp_path, cache, architecture):
    path = put_gguf(tmp_path / "odd.gguf", architecture)
    with pytest.raises(ModelError, match=f"architecture {architecture}.*Choose the same model"):
        convert(path, "float32", silent, never)
    assert [path for path in cache.glob("*") if path.suffix != ".lock"] == []


def test_weights_that_are_absent_are_not_made_up(original, tmp_path):
    model = random_models.random_model("llama")
    state = dict(model.state_dict())
    state.pop("model.layers.1.mlp.up_proj.weight")
    model.state_dict = lambda: state
    path = tmp_path / "holes.gguf"
    gguf_files.write_llama(path, model)
    with pytest.raises(ModelError, match="lacks 1 of the weights"):
        convert(path, "float32", silent, never)


def test_a_full_disk_is_noticed_before_the_work(original, monkeypatch):
    usage = conversion.shutil.disk_usage("/")
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ModelError, match="TRANSPECTOR_CACHE"):
        convert(original[0], "float32", silent, never)


def test_a_cache_that_cannot_be_written_says_where_to_put_it(original, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRANSPECTOR_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match="TRANSPECTOR_CACHE"):
        convert(original[0], "float32", silent, never)


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("TRANSPECTOR_CACHE", "/own")
    assert str(cache_directory()) == "/own"
    monkeypatch.delenv("TRANSPECTOR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert str(cache_directory()) == "/xdg/transpector"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "transpector"
