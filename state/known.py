"""Known: what is found out about a model once, and kept for as long as its weights stay as they are."""

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transpector.state.models import Model

Found = TypeVar("Found")


def once_for_weights(find: "Callable[[Model], Found]") -> "Callable[[Model], Found]":
    """Have a function of a model, which is only ever called on its worker, look once for its weights as they are."""
    known: WeakKeyDictionary[Model, tuple[str, Found]] = WeakKeyDictionary()

    @wraps(find)
    def recalled(model: "Model") -> Found:
        fingerprint = model.fingerprint()
        if model not in known or known[model][0] != fingerprint:
            known[model] = fingerprint, find(model)
        return known[model][1]

    return recalled
