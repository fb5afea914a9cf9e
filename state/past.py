"""Past: the keys and values of a pass, for passes that differ from it only from some position on."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

KeysValues = tuple[Float[Tensor, "1 kv_head pos d_head"], Float[Tensor, "1 kv_head pos d_head"]]


class _Earlier(DynamicLayer):
    """Keys and values that stand before those of every call, for any number of rows, and never grow."""

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> KeysValues:
        return _after(self.keys, key_states), _after(self.values, value_states)


class _Caught(Exception):
    """Ends a block once its keys and values are known."""

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.keys, self.values = keys, values


class _Catching(_Earlier):
    """Keys and values that are wanted themselves, and nothing that is made of them."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> KeysValues:
        raise _Caught(*super().update(key_states, value_states))


def _after(earlier: Tensor, now: Tensor) -> Tensor:
    return torch.cat([earlier.expand(len(now), -1, -1, -1), now], dim=-2)


def empty() -> DynamicCache:
    """A cache that a pass fills with its keys and values."""
    return DynamicCache()


def keys_values(filled: DynamicCache) -> tuple[KeysValues, ...]:
    """What a pass left in its cache, by layer."""
    return tuple((layer.keys, layer.values) for layer in filled.layers)


def earlier(by_layer: Sequence[KeysValues], n_pos: int, catching: bool = False) -> DynamicCache:
    """The first ``n_pos`` positions as a cache, for passes over what follows, or to be ``caught`` with what follows."""
    kind = _Catching if catching else _Earlier
    cache = DynamicCache()
    cache.layers = [kind(keys[..., :n_pos, :], values[..., :n_pos, :]) for keys, values in by_layer]
    return cache


def caught(block: Callable[[], object]) -> KeysValues:
    """The keys and values, row by row, of a block that is called with a catching cache; the rest of it is not done."""
    try:
        block()
    except _Caught as end:
        return end.keys, end.values
    raise RuntimeError("The block did not ask its cache.")
