"""ModelStore: the models that this process has loaded, each once, for everybody."""

import gc
import logging
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from importlib import import_module
from typing import TYPE_CHECKING

from transpector.state.errors import Cancelled

if TYPE_CHECKING:
    from transpector.state.models import Model

_log = logging.getLogger(__name__)

Key = tuple[str, str, str]  # name, device, dtype


class Loading:
    """One load under way, for as many as wait for it; it is stopped when nobody does."""

    def __init__(self, key: Key):
        self.name, self.device, self.dtype = key
        self.stage, self.fraction = "waiting", None
        self.model: Future[Model] = Future()
        self.is_abandoned = False  # once nobody waits any more, and from then on
        self._listeners: list[Callable[[str, float | None], None]] = []
        self._lock = threading.Lock()

    def listen(self, listener: Callable[[str, float | None], None]) -> bool:
        """Have ``listener(stage, fraction)`` called, on the loading thread, as it goes on; False if it is abandoned."""
        with self._lock:
            if not self.is_abandoned:
                self._listeners.append(listener)
            return not self.is_abandoned

    def leave(self, listener: Callable[[str, float | None], None]) -> None:
        """No longer wait; if nobody else does, the load stops at its next step."""
        with self._lock:
            if listener in self._listeners:
                self._listeners.remove(listener)
                self.is_abandoned = not self._listeners

    def advance(self, stage: str, fraction: float | None) -> None:
        """Tell everybody how far it is."""
        self.stage, self.fraction = stage, fraction
        for listener in list(self._listeners):
            try:
                listener(stage, fraction)
            except Exception:  # noqa: BLE001 - the others' load goes on
                _log.exception("A listener to a load failed.")


class ModelStore:
    """Loads each model once, in a thread of its own; keeps the ``limit`` last used.

    A model that leaves lives on as long as a session holds it.
    """

    def __init__(self, limit: int = 2):
        self.limit = limit
        self._models: OrderedDict[Key, Model] = OrderedDict()
        self._loading: dict[Key, Loading] = {}
        self._lock = threading.Lock()

    def request(
        self,
        name: str,
        device: str = "cpu",
        dtype: str = "float32",
        listener: Callable[[str, float | None], None] = lambda stage, fraction: None,
    ) -> Loading:
        """Begin to load a model, or join the load that is under way; its ``model`` is a future."""
        key = name.strip(), device, dtype
        with self._lock:
            if key in self._models:
                self._models.move_to_end(key)
                done = Loading(key)
                done.model.set_result(self._models[key])
                return done
            # An abandoned load may already be on its way out, so it can't be joined.
            loading = self._loading.get(key)
            if loading is None or not loading.listen(listener):
                loading = self._loading[key] = Loading(key)
                loading.listen(listener)
                threading.Thread(
                    target=self._load, args=(key, loading), name=f"load {name}", daemon=True
                ).start()
            return loading

    def loaded(self) -> "list[Model]":
        """The models kept, the last used last."""
        with self._lock:
            return list(self._models.values())

    def _load(self, key: Key, loading: Loading) -> None:
        try:
            load_model = _import()
            name, device, dtype = key
            model = load_model(
                name,
                device=device,
                dtype=dtype,
                progress=loading.advance,
                cancelled=lambda: loading.is_abandoned,
            )
            if loading.is_abandoned:
                raise Cancelled
            with self._lock:
                self._models[key] = model
                while len(self._models) > self.limit:
                    self._models.popitem(last=False)
            result, error = model, None
        except BaseException as failure:  # noqa: BLE001 - handed to whoever waits on the future
            result, error = None, failure
            _let_go(failure)
        with self._lock:
            if self._loading.get(key) is loading:
                del self._loading[key]
        if error is None:
            loading.model.set_result(result)
        else:
            loading.model.set_exception(error)


_importing = threading.Lock()


def _import() -> "Callable[..., Model]":
    """``load_model`` with the libraries it stands on; seconds, which the first paint does not wait for."""
    with _importing:
        first = gc.get_freeze_count() == 0
        import_module("transformer_lens.model_bridge")
        from transpector.state.models import load_model

        if first:
            # The collector need not walk the libraries again, which would stall the page for 0.4 s. Not after the
            # load: a model is full of cycles, and one that was frozen would never leave the memory.
            gc.collect()
            gc.freeze()
    return load_model


def _let_go(error: BaseException | None) -> None:
    """Empty the frames that an error came through: they hold weights for as long as somebody keeps the error."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


STORE = ModelStore()
