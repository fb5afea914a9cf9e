"""ModelStore: the models that this process has loaded, each once, for everybody."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from transpector.state.errors import Cancelled

if TYPE_CHECKING:
    from transpector.state.models import Model

Key = tuple[str, str, str]  # name, device, dtype


class Loading:
    """One load under way, for as many as wait for it; it is stopped when nobody does."""

    def __init__(self, key: Key):
        self.name, self.device, self.dtype = key
        self.stage, self.fraction = "waiting", None
        self.model: Future[Model] = Future()
        self._listeners: list[Callable[[str, float | None], None]] = []

    def listen(self, listener: Callable[[str, float | None], None]) -> None:
        """Have ``listener(stage, fraction)`` called, on the loading thread, as it goes on."""
        self._listeners.append(listener)

    def leave(self, listener: Callable[[str, float | None], None]) -> None:
        """No longer wait; if nobody else does, the load stops at its next step."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits any more."""
        return not self._listeners

    def advance(self, stage: str, fraction: float | None) -> None:
        """Tell everybody how far it is."""
        self.stage, self.fraction = stage, fraction
        for listener in list(self._listeners):
            listener(stage, fraction)


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
            if loading is None or loading.is_abandoned:
                loading = self._loading[key] = Loading(key)
                loading.listen(listener)
                threading.Thread(
                    target=self._load, args=(key, loading), name=f"load {name}", daemon=True
                ).start()
            else:
                loading.listen(listener)
            return loading

    def loaded(self) -> "list[Model]":
        """The models kept, the last used last."""
        with self._lock:
            return list(self._models.values())

    def _load(self, key: Key, loading: Loading) -> None:
        try:
            from transpector.state.models import (
                load_model,
            )  # brings torch, which the first paint does not wait for

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
        with self._lock:
            if self._loading.get(key) is loading:
                del self._loading[key]
        if error is None:
            loading.model.set_result(result)
        else:
            loading.model.set_exception(error)


STORE = ModelStore()
