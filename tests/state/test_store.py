"""The store loads each model once, for everybody, and forgets what nobody needs."""

import gc
import threading
import time
import weakref

import pytest

from transpector.state import models
from transpector.state.errors import Cancelled, ModelError
from transpector.state.store import ModelStore


class Loader:
    """Stands in for ``load_model``: goes on, step by step, only when it is let."""

    def __init__(self):
        self.began: list[str] = []
        self.cancelled: list[str] = []
        self.go = threading.Event()

    def __call__(self, name, *, device, dtype, progress, cancelled):
        self.began.append(name)
        progress("reading", 0.5)
        deadline = time.monotonic() + 10
        while not self.go.wait(0.002) and time.monotonic() < deadline:
            if cancelled():
                self.cancelled.append(name)
                raise Cancelled
        if name == "bad":
            weights = Weights()
            self.weights = weakref.ref(weights)
            raise ModelError("There is no such model.")
        progress("done", 1.0)
        return Weights(name)


class Weights:
    """Something that a weak reference can watch."""

    def __init__(self, name=""):
        self.name = name


@pytest.fixture
def loader(monkeypatch):
    loader = Loader()
    monkeypatch.setattr(models, "load_model", loader)
    yield loader
    loader.go.set()
    for thread in threading.enumerate():
        if thread.name.startswith("load "):
            thread.join(10)


def until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.002)


def test_a_model_is_loaded_once_for_all_who_ask_at_the_same_time(loader):
    store, loadings = ModelStore(), []
    threads = [threading.Thread(target=lambda: loadings.append(store.request(" a "))) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    loader.go.set()
    loaded = {id(loading.model.result(10)) for loading in loadings}
    assert loader.began == ["a"] and len(loaded) == 1
    assert store.request("a").model.result(0) is loadings[0].model.result()
    assert loader.began == ["a"]


def test_a_real_model_is_loaded_once_for_all_who_ask_at_the_same_time(random_directory):
    store, name = ModelStore(), str(random_directory("llama"))
    loadings = [store.request(name) for _ in range(4)]
    first, *others = [loading.model.result(60) for loading in loadings]
    assert all(other is first for other in others)
    assert first.health.level == "healthy"


def test_another_dtype_is_another_model(loader):
    store = ModelStore()
    loader.go.set()
    assert store.request("a").model.result(10) is not store.request("a", dtype="bfloat16").model.result(10)


def test_everybody_who_waits_is_told_how_far_it_is(loader):
    store, told = ModelStore(), []
    loading = store.request("a", listener=lambda *stage: told.append(("first", *stage)))
    until(lambda: told)
    assert (loading.stage, loading.fraction) == ("reading", 0.5)
    store.request("a", listener=lambda *stage: told.append(("second", *stage)))
    loader.go.set()
    loading.model.result(10)
    assert told == [("first", "reading", 0.5), ("first", "done", 1.0), ("second", "done", 1.0)]


def test_one_who_can_t_be_told_does_not_stop_the_others_load(loader, caplog):
    def gone(stage, fraction):
        raise RuntimeError("the page is closed")

    store = ModelStore()
    store.request("a", listener=gone)
    other = store.request("a")
    loader.go.set()
    assert other.model.result(10).name == "a"
    assert "A listener to a load failed." in caplog.text


def test_only_the_last_used_are_kept(loader):
    store = ModelStore(limit=2)
    loader.go.set()
    for name in ("a", "b", "a", "c"):
        store.request(name).model.result(10)
    assert [model.name for model in store.loaded()] == ["a", "c"]
    assert loader.began == ["a", "b", "c"]


def test_one_that_leaves_lives_on_only_where_it_is_held(loader):
    store = ModelStore(limit=1)
    loader.go.set()
    held = store.request("a").model.result(10)
    gone = weakref.ref(store.request("b").model.result(10))
    store.request("c").model.result(10)
    until(lambda: gc.collect() is not None and gone() is None)
    assert held.name == "a" and len(store.loaded()) == 1


def test_a_load_that_everybody_left_stops_at_its_next_step(loader):
    store, listeners = ModelStore(), [lambda *_: None, lambda *_: 1]
    loading, again = (store.request("a", listener=listener) for listener in listeners)
    assert again is loading
    loading.leave(listeners[0])
    time.sleep(0.02)
    assert not loading.is_abandoned and not loader.cancelled
    loading.leave(listeners[1])
    with pytest.raises(Cancelled):
        loading.model.result(10)
    assert loader.cancelled == ["a"] and store.loaded() == []


def test_an_abandoned_load_is_not_joined_but_begun_anew(loader):
    store = ModelStore()

    def listener(stage, fraction):
        pass

    first = store.request("a", listener=listener)
    first.leave(listener)
    assert not first.listen(listener)
    assert first.is_abandoned, "once and for all, or the one who joins would be told that it was cancelled"
    second = store.request("a")
    assert second is not first
    until(lambda: first.model.done())
    assert store.request("a") is second
    loader.go.set()
    assert second.model.result(10).name == "a"
    assert loader.began == ["a", "a"]


def test_leaving_twice_or_without_having_joined_abandons_nothing(loader):
    store = ModelStore()
    loading = store.request("a")
    loading.leave(lambda *_: None)
    loading.leave(lambda *_: None)
    assert not loading.is_abandoned


def test_a_failed_load_is_told_to_all_and_tried_again_next_time(loader):
    store = ModelStore()
    loadings = [store.request("bad") for _ in range(2)]
    loader.go.set()
    for loading in loadings:
        with pytest.raises(ModelError, match="no such model"):
            loading.model.result(10)
    with pytest.raises(ModelError):
        store.request("bad").model.result(10)
    assert loader.began == ["bad", "bad"]


def test_a_failed_load_s_error_holds_no_weights(loader):
    loading = ModelStore().request("bad")
    loader.go.set()
    error = loading.model.exception(10)
    gc.collect()
    assert loader.weights() is None
    assert error.__traceback__ is not None, "where it happened can still be told"


def test_asking_does_not_wait_for_the_load(loader):
    store = ModelStore()
    began = time.monotonic()
    store.request("a")
    store.request("b")
    store.request("a")
    assert time.monotonic() - began < 1
    assert not store.loaded()


def test_a_model_that_the_store_lets_go_leaves_the_memory(random_directory):
    """Though the libraries are hidden from the garbage collector."""
    store = ModelStore(limit=1)
    model = store.request(str(random_directory("gpt2"))).model.result(60)
    assert gc.get_freeze_count() > 0
    gone, weights = weakref.ref(model), weakref.ref(model.bridge.original_model)
    del model
    store.request(str(random_directory("llama"))).model.result(60)
    gc.collect()
    assert gone() is None and weights() is None
