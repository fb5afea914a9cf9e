"""Stack: a model's blocks, called one by one with the arguments that the model itself would give them."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from transpector.state.past import KeysValues

Call = Callable[[Tensor], Tensor]
"""One block, with all its arguments but the residual stream that it is given."""

Visit = Callable[[int, Tensor, Call], Tensor]
"""What is done at a block: its layer, the residual stream before it, and the block; gives the stream after it."""

_LEVEL = 7919  # marks our hooks among those of others


class _Opened(Exception):
    """Ends a pass once every block has told what it was called with."""


@dataclass(frozen=True)
class Entry:
    """What the model does before its first block: the residual stream, and each block as it would be called."""

    hidden: Float[Tensor, "batch pos d_model"]
    calls: tuple[Call, ...]


class Stack:
    """The blocks of one model, entered and left at any layer. Only on the model's worker.

    ``open`` has the model prepare masks and positions for a shape, ``close`` turns the last residual into logits;
    in both the model runs its own code around blocks that hand on what they are given. Between the two nothing is
    set on the model, so whoever walks the blocks may stop, wait, or start at another layer.
    """

    def __init__(self, bridge: "TransformerBridge"):
        self.bridge = bridge
        self.blocks = tuple(bridge.blocks)
        self._points = bridge.hook_dict
        self._n_returned = [0] * len(self.blocks)  # how long a tuple each returns; 0 if none

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def names(self) -> Collection[str]:
        """TransformerLens's names of the model's hook points."""
        return self._points.keys()

    def learn(self, token_ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        """A plain pass, which shows what the blocks return; to be done once, before any other."""

        def look(layer: int) -> Callable[..., None]:
            def hook(block: Any, given: Any, returned: Any) -> None:
                self._n_returned[layer] = len(returned) if isinstance(returned, tuple) else 0

            return hook

        handles = [block.register_forward_hook(look(layer)) for layer, block in enumerate(self.blocks)]
        try:
            return self.bridge(token_ids, return_type="logits")
        finally:
            for handle in handles:
                handle.remove()

    def open(self, token_ids: Int[Tensor, "batch pos"], past: Any = None) -> Entry:
        """Do what comes before the first block, for texts that continue what the cache ``past`` holds."""
        hidden: list[Tensor] = []
        calls: list[Call] = []

        def note(layer: int) -> Callable[..., Any]:
            def told(*args: Any, **kwargs: Any) -> Any:
                stream = args[0] if args else kwargs["hidden_states"]
                hidden.append(stream)
                calls.append(_call(self.blocks[layer], args[1:] if args else None, kwargs))
                if len(calls) == len(self.blocks):
                    raise _Opened
                return self._returned(layer, stream)

            return told

        cache = {"use_cache": False} if past is None else {"past_key_values": past}
        try:
            with self._replaced(note):
                self.bridge(token_ids, return_type=None, **cache)
        except _Opened:
            pass
        return Entry(hidden[0], tuple(calls))

    def past(self, token_ids: Int[Tensor, "batch pos"]) -> "tuple[KeysValues, ...]":
        """Keys and values of every layer of a plain pass, as ``past.earlier`` takes them."""
        from transpector.state import past  # brings transformers, which nothing else here needs

        cache = past.empty()
        entry = self.open(token_ids, cache)
        hidden = entry.hidden
        for call in entry.calls:
            hidden = call(hidden)
        return past.keys_values(cache)

    def close(self, hidden: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of the residual stream after the last block."""
        with self._replaced(lambda layer: lambda *args, **kwargs: self._returned(layer, hidden)):
            # The ids only have to be as many: what the model makes of them is never read.
            ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=self.bridge.cfg.device)
            return self.bridge(ids, return_type="logits", use_cache=False)

    def norm(self, hidden: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """What the unembedding reads of the residual stream after the last block."""
        return self.bridge.ln_final(hidden)

    def through(
        self, token_ids: Int[Tensor, "batch pos"], visit: Visit
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """One pass of the model's own, each block visited: for models that do something between their blocks."""

        def wrap(layer: int) -> Callable[..., Any]:
            forward = self.blocks[layer].forward

            def visited(*args: Any, **kwargs: Any) -> Any:
                stream = args[0] if args else kwargs["hidden_states"]
                call = _call(forward, args[1:] if args else None, kwargs)
                return self._returned(layer, visit(layer, stream, call))

            return visited

        with self._replaced(wrap):
            return self.bridge(token_ids, return_type="logits", use_cache=False)

    @contextmanager
    def hooked(self, hooks: list[tuple[str, Callable[..., Tensor | None]]]) -> Iterator[None]:
        """Have functions called at hook points, by name, and changed there if they return something."""
        points = [self._points[name] for name, _ in hooks]
        try:
            for point, (_, hook) in zip(points, hooks, strict=True):
                point.add_hook(hook, level=_LEVEL)
            yield
        finally:
            for point in points:
                point.remove_hooks("fwd", level=_LEVEL)

    def _returned(self, layer: int, stream: Tensor) -> Any:
        length = self._n_returned[layer]
        return (stream, *[None] * (length - 1)) if length else stream

    @contextmanager
    def _replaced(self, forward: Callable[[int], Callable[..., Any]]) -> Iterator[None]:
        replacements = [forward(layer) for layer in range(len(self))]
        before = [vars(block).get("forward") for block in self.blocks]  # somebody may have set one too
        try:
            # Set past the bridge's own __setattr__, which would hand it on to the module that it wraps.
            for block, replacement in zip(self.blocks, replacements, strict=True):
                object.__setattr__(block, "forward", replacement)
            yield
        finally:
            for block, earlier in zip(self.blocks, before, strict=True):
                vars(block).pop("forward", None)
                if earlier is not None:
                    object.__setattr__(block, "forward", earlier)


def _call(block: Callable[..., Any], rest: tuple | None, kwargs: dict[str, Any]) -> Call:
    """A block that still wants its residual stream, given by position (``rest`` follows it) or by name."""

    def call(stream: Tensor) -> Tensor:
        if rest is None:
            returned = block(**{**kwargs, "hidden_states": stream})
        else:
            returned = block(stream, *rest, **kwargs)
        return returned[0] if isinstance(returned, tuple) else returned

    return call
