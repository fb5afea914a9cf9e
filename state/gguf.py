"""What a GGUF file says about its model before its weights."""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transpector.state.errors import ModelError

# The scalar value types of the format by number; 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LONGEST_KEPT = 4096  # values of an array; the per-layer ones are kept, the vocabulary is only counted


@dataclass(frozen=True)
class Header:
    """What a GGUF file says before its weights; `metadata` holds arrays of strings only as their length."""

    architecture: str
    metadata: dict[str, Any]
    n_params: int

    def __getitem__(self, key: str) -> Any:
        """The value of an architecture's own key, such as "block_count"; None if absent."""
        return self.metadata.get(f"{self.architecture}.{key}")


def read_header(path: Path) -> Header:
    """Read a file's header without its weights, in some 50 ms where the gguf package needs seconds.

    Raises:
        ModelError: the file is unreadable, no GGUF, cut short, or not a whole language model.
    """
    damaged = f"{path} is damaged and can't be read as GGUF. Download it again."
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise ModelError(f"{path} is not a GGUF file: it doesn't begin with GGUF. Download it again.")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as blob:
                metadata, shapes, end = _Reader(blob).read()
    except OSError as error:
        raise ModelError(
            f"{path} can't be read: {error.strerror}. Check the path and its permissions."
        ) from error
    except (struct.error, IndexError, OverflowError) as error:
        raise ModelError(f"{path} is cut short: it ends within its header. Download it again.") from error
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ModelError(damaged) from error
    if end > size:
        raise ModelError(f"{path} is cut short: {size:,} of {end:,} bytes are there. Download it again.")
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ModelError(damaged)
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise ModelError(
            f"{path} holds a model's {kind}, not a model. Choose the file with the model itself."
        )
    if metadata.get("split.count", 1) > 1:
        raise ModelError(
            f"{path} is one of {metadata['split.count']} parts. "
            "Merge them: llama-gguf-split --merge PART1 OUTPUT"
        )
    return Header(architecture, metadata, sum(math.prod(shape) for shape in shapes))


class _Reader:
    """Walks the bytes of a header: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md."""

    def __init__(self, blob: mmap.mmap) -> None:
        self.blob = blob
        self.at = 4

    def read(self) -> tuple[dict[str, Any], list[tuple[int, ...]], int]:
        """The metadata, the tensors' shapes, and the size that the file must have."""
        version, n_tensors, n_keys = self.take("IQQ")
        if version not in (2, 3):
            raise ValueError(f"version {version}")
        metadata = {}
        for _ in range(n_keys):
            key = self.string()
            metadata[key] = self.value(self.take("I")[0])
        shapes, extents = [], []
        for _ in range(n_tensors):
            self.string()
            shape = self.take(f"{self.take('I')[0]}Q")
            kind, offset = self.take("IQ")
            shapes.append(shape)
            extents.append(offset + _bytes_of(kind, math.prod(shape)))
        alignment = metadata.get("general.alignment", 32)
        return metadata, shapes, -(-self.at // alignment) * alignment + max(extents, default=0)

    def take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self.blob, self.at)
        self.at += struct.calcsize("<" + form)
        return values

    def string(self) -> str:
        (length,) = self.take("Q")
        if self.at + length > len(self.blob):
            raise IndexError(length)
        self.at += length
        return self.blob[self.at - length : self.at].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.take(_SCALARS[kind])[0]
        if kind != _ARRAY:
            raise ValueError(f"value type {kind}")
        kind, length = self.take("IQ")
        if kind in _SCALARS:
            if length <= _LONGEST_KEPT:
                return list(self.take(f"{length}{_SCALARS[kind]}"))
            self.at += length * struct.calcsize("<" + _SCALARS[kind])
        elif kind == _STRING:
            blob, at, unpack = self.blob, self.at, struct.Struct("<Q").unpack_from
            for _ in range(length):  # a hundred thousand times: nothing but the walk
                at += 8 + unpack(blob, at)[0]
            self.at = at
        else:
            for _ in range(length):
                self.value(kind)
        return length


def _bytes_of(kind: int, n: int) -> int:
    import gguf

    try:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        return 0  # a type newer than the gguf package: transformers will say that it can't read it
    return n // block * size
