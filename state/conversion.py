"""The one-time conversion of a GGUF file into a directory that loads in a second."""

import functools
import glob
import hashlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from transpector.state.errors import Cancelled, ModelError
from transpector.state.gguf import Header, read_header

Progress = Callable[[str, float | None], None]
"""Called with what is being done and the fraction of it that is done, or None where that isn't known."""

_ORIGIN = "transpector.json"  # in a conversion: which file it was made from
_ITEM_SIZE = {"float32": 4, "bfloat16": 2, "float16": 2}

# One conversion at a time in this process: each holds the dequantised weights beside the file.
_converting = threading.Lock()


def cache_directory() -> Path:
    """Where conversions are kept: TRANSPECTOR_CACHE, else transpector in the user's cache directory."""
    if own := os.environ.get("TRANSPECTOR_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "transpector"


def converted(path: Path, dtype: str) -> Path | None:
    """The conversion of this very file, if there is one already."""
    try:
        target = cache_directory() / _key(path, dtype)
    except OSError:
        return None
    return target if (target / _ORIGIN).is_file() else None


def conversions(stem: str) -> list[Path]:
    """The conversions of files whose name starts with `stem`, whether or not those files still exist."""
    return sorted(origin.parent for origin in cache_directory().glob(f"{stem}*/{_ORIGIN}"))


def convert(path: Path, dtype: str, progress: Progress, cancelled: Callable[[], bool]) -> Path:
    """Convert a GGUF file once, and give the directory that transformers can load.

    Safe to call from several threads and processes: one converts, the others wait for it.

    Raises:
        ModelError: the file is damaged, transformers can't read its architecture, or there is no room for it.
        Cancelled: `cancelled()` became true; nothing is left behind.
    """
    from filelock import FileLock, Timeout

    if found := converted(path, dtype):
        return found
    header = read_header(path)
    target = cache_directory() / _key(path, dtype)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _require_room(target.parent, header.n_params * _ITEM_SIZE[dtype], path)
        lock = FileLock(target.parent / f"{target.name}.lock")
        while True:
            _stop_if(cancelled)
            try:
                lock.acquire(timeout=0.2)
                break
            except Timeout:
                progress("waiting for another conversion of the same file", None)
        try:
            if not (target / _ORIGIN).is_file():
                _convert_into(target, path, header, dtype, progress, cancelled)
        finally:
            lock.release()
    except OSError as error:
        raise ModelError(
            f"{path} can't be converted into {target.parent}: {error.strerror or error}. "
            "Choose another place with the environment variable TRANSPECTOR_CACHE."
        ) from error
    return target


def _convert_into(
    target: Path, path: Path, header: Header, dtype: str, progress: Progress, cancelled: Callable[[], bool]
) -> None:
    _clear(target, path, dtype)
    partial = target.with_name(f"{target.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        while not _converting.acquire(timeout=0.2):
            progress("waiting for another conversion", None)
            _stop_if(cancelled)
        try:
            _write(partial, path, header, dtype, progress, cancelled)
        finally:
            _converting.release()
        (partial / _ORIGIN).write_text(json.dumps({"source": str(path), "dtype": dtype}))
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(
    partial: Path, path: Path, header: Header, dtype: str, progress: Progress, cancelled: Callable[[], bool]
) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from transpector.state import bars

    def advance(what: str, done: float, total: float | None) -> None:
        _stop_if(cancelled)
        if total and "quantiz" in what:
            progress("converting", 0.3 + 0.5 * done / total)

    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name, "local_files_only": True}
    try:
        with bars.heard(advance), _remembered():
            progress("converting", 0.0)
            config = AutoConfig.from_pretrained(**where)
            _stop_if(cancelled)
            progress("converting", 0.25)
            model, loaded = AutoModelForCausalLM.from_pretrained(
                **where,
                config=config,
                dtype=getattr(torch, dtype),
                quantization_config=GgufConfig(dequantize=True),
                output_loading_info=True,
            )
            _stop_if(cancelled)
            progress("converting", 0.85)
            tokenizer = AutoTokenizer.from_pretrained(**where, config=config)
    except (
        ArithmeticError,
        AttributeError,
        ImportError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise ModelError(
            f"{path} is a GGUF of architecture {header.architecture}, which transformers couldn't read "
            f"({_first_line(error)}). Choose the same model in safetensors."
        ) from error
    if loaded["missing_keys"]:
        raise ModelError(
            f"{path} lacks {len(loaded['missing_keys'])} of the weights that {type(model).__name__} needs. "
            "Choose the same model in safetensors."
        )
    _stop_if(cancelled)
    # Dequantised by now: with these marks left, transformers refuses to save, and to load what was saved.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    progress("converting", 0.9)
    with bars.heard(advance):
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)


@contextmanager
def _remembered() -> Iterator[None]:
    """Within it, a file is parsed and its names are mapped once: transformers asks for both again and again.

    SmolLM2 converts in a third of the time.
    """
    import gguf

    reader, names = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = functools.cache(reader), functools.cache(names)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, names


def _key(path: Path, dtype: str) -> str:
    path = path.resolve()
    about = path.stat()
    digest = hashlib.sha256(f"{path}\0{about.st_size}\0{about.st_mtime_ns}".encode(errors="surrogatepass"))
    return f"{path.stem[:80]}-{digest.hexdigest()[:16]}-{dtype}"


def _clear(target: Path, path: Path, dtype: str) -> None:
    """Remove what a killed conversion left, and the conversions of earlier contents of the same file."""
    for partial in target.parent.glob(f"{glob.escape(target.name)}.partial-*"):
        shutil.rmtree(partial, ignore_errors=True)
    for origin in target.parent.glob(f"{glob.escape(path.stem[:80])}-*-{dtype}/{_ORIGIN}"):
        try:
            same = json.loads(origin.read_bytes())["source"] == str(path)
        except (OSError, ValueError, LookupError, TypeError):
            same = False
        if same and origin.parent != target:
            shutil.rmtree(origin.parent, ignore_errors=True)


def _require_room(directory: Path, n_bytes: int, path: Path) -> None:
    free = shutil.disk_usage(directory).free
    if n_bytes * 1.02 > free:
        raise ModelError(
            f"Converting {path.name} needs {n_bytes / 1e9:.2f} GB in {directory}, which has "
            f"{free / 1e9:.2f} GB free. Make room, or choose another place with the environment variable "
            "TRANSPECTOR_CACHE."
        )


def _stop_if(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise Cancelled("The conversion was stopped.")


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
