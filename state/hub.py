"""Hugging Face's hub: whether it can be reached, what a model there consists of, and its download."""

import re
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transpector.state import checkpoint
from transpector.state.bars import bar_class
from transpector.state.conversion import Progress
from transpector.state.errors import Cancelled, ModelError

_PATIENCE = 3.0  # seconds for the hub to answer at all
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_SMALL = (".json", ".txt", ".model", ".tiktoken", ".jinja")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5")
_ITEM_SIZE = {"float32": 4, "float64": 8}  # bytes a parameter as stored; 2 for the rest


@dataclass(frozen=True)
class Listing:
    """What loading a hub model takes: its files, their bytes, and where its configuration lies already."""

    name: str
    directory: Path
    files: tuple[str, ...]
    n_bytes: int
    n_params: int


def look_up(name: str) -> Listing:
    """Ask the hub what the model `name` consists of, and fetch its configuration.

    Raises:
        ModelError: there is no network, no such model, no permission, or nothing in it that can be loaded.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download

    if not reachable():
        raise ModelError(
            f"{name} is not on this computer, and {constants.ENDPOINT} can't be reached. "
            "Connect to the internet, or choose a model marked local."
        )
    with _explained(name):
        about = HfApi(endpoint=constants.ENDPOINT).model_info(name, files_metadata=True, timeout=5)
        sizes = {file.rfilename: file.size or 0 for file in about.siblings or [] if "/" not in file.rfilename}
        weights = (
            [checkpoint.WEIGHTS] if checkpoint.WEIGHTS in sizes else sorted(filter(_SHARD.fullmatch, sizes))
        )
        if not weights:
            raise _unloadable(name, list(sizes))
        config = Path(hf_hub_download(name, "config.json", endpoint=constants.ENDPOINT, etag_timeout=5))
    files = (*weights, *sorted(file for file in sizes if file.endswith(_SMALL)))
    n_params = about.safetensors.total if about.safetensors else 0
    if not n_params:
        stored = checkpoint.read_config(config.parent)
        item_size = _ITEM_SIZE.get(stored.get("dtype") or stored.get("torch_dtype"), 2)
        n_params = sum(sizes[file] for file in weights) // item_size
    return Listing(name, config.parent, files, sum(sizes[file] for file in files), n_params)


def download(listing: Listing, progress: Progress, cancelled: Callable[[], bool]) -> Path:
    """Download the files of `listing` into the Hugging Face cache, and give their directory.

    What is already there isn't fetched again, and an interrupted download goes on where it stopped.

    Raises:
        ModelError: the connection broke, the disk is full, or permission was refused.
        Cancelled: `cancelled()` became true.
    """
    from huggingface_hub import constants, snapshot_download

    most, telling = 0.0, threading.Lock()  # files come in several threads

    def advance(what: str, done: float, total: float | None) -> None:
        nonlocal most
        if cancelled():
            raise Cancelled("The download was stopped.")
        with telling:
            if "files" in what or done <= most:  # the bar that counts files comes with those that count bytes
                return
            most = done
            whole = max(listing.n_bytes, most, 1)
            progress(f"downloading {most / 1e6:,.0f} of {whole / 1e6:,.0f} MB", most / whole)

    progress("downloading", 0.0)
    with _explained(listing.name), _interruptible():
        path = snapshot_download(
            listing.name,
            allow_patterns=list(listing.files),
            endpoint=constants.ENDPOINT,
            tqdm_class=bar_class(advance),
            etag_timeout=5,
            max_workers=4,
        )
    if cancelled():
        raise Cancelled("The download was stopped.")
    return Path(path)


def reachable() -> bool:
    """Whether the hub answers within some seconds; its own client would try for a minute."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return False
    address = urllib.parse.urlsplit(constants.ENDPOINT)
    proxy = urllib.request.getproxies().get(address.scheme)
    if proxy and not urllib.request.proxy_bypass(address.hostname or ""):
        address = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    answered = threading.Event()

    def connect() -> None:
        port = address.port or (80 if address.scheme == "http" else 443)
        try:
            socket.create_connection((address.hostname, port), timeout=_PATIENCE).close()
        except OSError:
            return
        answered.set()

    # In a thread of its own, because looking up a name can't be given a time limit.
    thread = threading.Thread(target=connect, name="transpector-reachable", daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return answered.is_set()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Within it, downloads go over plain HTTP: the faster Xet client doesn't let a callback stop it."""
    from huggingface_hub import constants

    before = constants.HF_HUB_DISABLE_XET
    constants.HF_HUB_DISABLE_XET = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns what the hub's client raises into sentences."""
    from huggingface_hub import errors

    # The transport's own errors are of a library whose name changes with the client's version.
    transport = tuple(c for c in errors.HfHubHTTPError.__mro__ if c.__name__ == "HTTPError")
    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{name} asks you to accept its conditions: open https://huggingface.co/{name}, accept, "
            "then log in with: hf auth login"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"The hub has no model {name}, or it is private. Check the spelling, or log in: hf auth login"
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise ModelError(
            f"{name} has no config.json on the hub, so it can't be loaded. Choose another."
        ) from error
    except (OSError, *transport) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ModelError(f"{name} couldn't be fetched from the hub: {reason}. Try again.") from error


def _unloadable(name: str, files: list[str]) -> ModelError:
    if pickles := [file for file in files if file.endswith(_PICKLES)]:
        return checkpoint.pickled(name, sorted(pickles))
    if ggufs := [file for file in files if file.lower().endswith(".gguf")]:
        return ModelError(
            f"{name} has GGUF files only: {checkpoint.listed(ggufs)}. "
            f"Download one with hf download {name} FILE, and give its path."
        )
    return ModelError(f"{name} has no weights in safetensors on the hub. Choose another model.")
