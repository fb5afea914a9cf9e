"""The files of a model's directory: its configuration, its weight files, and what their headers say."""

import json
import math
from pathlib import Path
from typing import Any

from transpector.state.errors import ModelError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Any of these makes a tokenizer; transformers decides which it can use.
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5")
_LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
_SMALLEST_TENSOR = {"I64", "I32", "I16", "I8", "U8", "BOOL"}  # indices and masks, not parameters


def read_config(path: Path) -> dict[str, Any]:
    """The configuration in a directory.

    Raises:
        ModelError: there is no config.json, or it is not what a configuration looks like.
    """
    try:
        config = json.loads((path / "config.json").read_bytes())
    except FileNotFoundError as error:
        raise ModelError(
            f"{path} has no config.json. Copy config.json from where the model came from."
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path / 'config.json'} can't be read: {error}. Copy it again from where the model came from."
        ) from error
    if not isinstance(config, dict):
        raise ModelError(
            f"{path / 'config.json'} is no model's configuration. Copy it from where the model came from."
        )
    return config


def weight_files(path: Path) -> list[Path]:
    """The safetensors files that make up the weights; empty unless all of them are there."""
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    files = [path / shard for shard in _shards(path)]
    return files if all(file.is_file() for file in files) else []


def has_tokenizer(path: Path) -> bool:
    """Whether the directory holds a vocabulary of any kind."""
    return any((path / name).is_file() for name in _TOKENIZERS) or bool(list(path.glob("*.tiktoken")))


def require_weights(name: str, path: Path) -> None:
    """Refuse a directory without complete safetensors weights, and say what is wrong with it.

    Raises:
        ModelError: weights are absent, incomplete, or in a format that can run code.
    """
    if weight_files(path):
        return
    if (path / INDEX).is_file():
        missing = [shard for shard in _shards(path) if not (path / shard).is_file()]
        if missing:
            raise ModelError(
                f"{name} lacks {len(missing)} of its weight files: {listed(missing)}. Download them again."
            )
        raise ModelError(f"{name} has a damaged {INDEX}. Download it again.")
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        raise pickled(name, pickles)
    raise ModelError(f"{name} is a directory without weights. It needs {WEIGHTS} or one .gguf file.")


def pickled(name: str, files: list[str]) -> ModelError:
    """The refusal of weights in a format that can run code."""
    return ModelError(
        f"{name} has its weights only as {listed(files)}, a format that can run code when it is opened. "
        "Convert them to safetensors where you trust them: from_pretrained, then save_pretrained(directory)."
    )


def count_parameters(path: Path, config: dict[str, Any]) -> int:
    """The number of parameters by the headers of the weight files; tied ones count once, masks don't.

    Raises:
        ModelError: a weight file is cut short or damaged.
    """
    shapes: dict[str, list[int]] = {}
    for file in weight_files(path):
        for tensor, about in _header(file).items():
            # Old GPT-2 checkpoints store their causal mask as a four-dimensional "bias".
            mask = tensor.endswith(".bias") and len(about["shape"]) > 2
            buffer = (
                mask or tensor.endswith((".masked_bias", ".inv_freq")) or about["dtype"] in _SMALLEST_TENSOR
            )
            if not buffer:
                shapes[tensor] = about["shape"]
    if config.get("tie_word_embeddings") and len(shapes) > 1:
        for tensor in ("lm_head.weight", "output.weight", "embed_out.weight"):
            shapes.pop(tensor, None)
    return sum(math.prod(shape) for shape in shapes.values())


def listed(names: list[str], most: int = 3) -> str:
    """The first few of `names` in a sentence."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _shards(path: Path) -> list[str]:
    try:
        names = {str(name) for name in json.loads((path / INDEX).read_bytes())["weight_map"].values()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []
    # An index that points out of its directory is none that transformers wrote.
    return sorted(name for name in names if Path(name).name == name)


def _header(file: Path) -> dict[str, dict[str, Any]]:
    damaged = f"{file} is damaged and can't be read as safetensors. Download it again."
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            if start == b"version ":
                raise ModelError(
                    f"{file} is only a placeholder of git LFS. Fetch the weights with: git lfs pull"
                )
            length = int.from_bytes(start, "little")
            if len(start) < 8 or not 0 < length <= _LARGEST_HEADER:
                raise ModelError(damaged)
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        end = 8 + length + max((about["data_offsets"][1] for about in header.values()), default=0)
        if end > size:
            raise ModelError(f"{file} is cut short: {size:,} of {end:,} bytes are there. Download it again.")
        return {name: {"shape": about["shape"], "dtype": about["dtype"]} for name, about in header.items()}
    except OSError as error:
        raise ModelError(f"{file} can't be read: {error.strerror}. Check its permissions.") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(damaged) from error
