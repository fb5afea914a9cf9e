import struct

import gguf
import gguf_files
import pytest

import random_models
from transpector.state.errors import ModelError
from transpector.state.gguf import read_header


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    gguf_files.write_llama(path)
    return path


def refusal(path) -> str:
    with pytest.raises(ModelError) as caught:
        read_header(path)
    return str(caught.value)


def test_the_header_says_what_the_gguf_package_reads(file):
    header = read_header(file)
    reader = gguf.GGUFReader(file)
    assert header.architecture == "llama"
    assert header.n_params == sum(int(tensor.n_elements) for tensor in reader.tensors)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            array = field.types[0] == gguf.GGUFValueType.ARRAY
            assert header.metadata[key] == (len(field.data) if array else field.contents()) or array, key
    assert header["block_count"] == random_models.N_LAYERS
    assert header.metadata["tokenizer.ggml.tokens"] == random_models.D_VOCAB
    assert header["absent"] is None


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.3, 0.9, 0.999])
def test_a_file_cut_short_anywhere_says_so(file, tmp_path, share):
    short = tmp_path / "short.gguf"
    short.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    message = refusal(short)
    assert "Download it again" in message and "short.gguf" in message
    assert "cut short" in message or share < 0.001


def test_what_is_no_gguf_says_so(tmp_path):
    path = tmp_path / "page.gguf"
    path.write_bytes(b"<!doctype html><title>404</title>" * 10)
    assert "not a GGUF" in refusal(path)
    assert "can't be read" in refusal(tmp_path / "absent.gguf")


@pytest.mark.parametrize("seed", range(40))
def test_any_damaged_header_is_refused_or_read_but_never_breaks(file, tmp_path, seed):
    import random

    random = random.Random(seed)
    blob = bytearray(file.read_bytes())
    for _ in range(8):
        blob[random.randrange(4, 3000)] = random.randrange(256)
    path = tmp_path / "damaged.gguf"
    path.write_bytes(blob)
    try:
        read_header(path)
    except ModelError as error:
        assert len(str(error)) < 500


def test_absurd_counts_neither_hang_nor_exhaust_memory(tmp_path):
    path = tmp_path / "absurd.gguf"
    huge = 2**62
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, huge, huge) + struct.pack("<Q", huge) + b"x" * 64)
    assert "again" in refusal(path)
    nested = struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + nested)
    assert "again" in refusal(path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("general.type", "adapter", "adapter"),
        ("general.type", "mmproj", "mmproj"),
        ("split.count", 3, "one of 3 parts"),
    ],
)
def test_what_is_only_part_of_a_model_is_refused(tmp_path, key, value, words):
    path = tmp_path / "part.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    (writer.add_string if isinstance(value, str) else writer.add_uint16)(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert words in refusal(path)
