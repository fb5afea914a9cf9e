"""Turns the progress bars of transformers and of the hub into our progress and our cancellation."""

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

Advance = Callable[[str, float, float | None], None]
"""Called as (what the bar is called, done, total or None); it may raise to stop the work."""

_thread = threading.local()
_previous_hook: Callable[..., Any] | None = None


class Bar(tqdm):
    """A bar that draws nothing and tells its `advance` about every step."""

    monitor_interval = 0  # no thread of tqdm's own
    advance: Advance

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Not `disable`: a disabled bar doesn't count. Its line breaks go nowhere.
        super().__init__(*args, **(kwargs | {"file": io.StringIO(), "disable": False}))

    def display(self, *args: Any, **kwargs: Any) -> bool:
        """Draw nothing: the page shows the progress."""
        return True

    def update(self, n: float | None = 1) -> bool | None:
        """Count `n` steps and tell; what `advance` raises passes through to the work."""
        shown = super().update(n)
        type(self).advance(self.desc or "", self.n, self.total)
        return shown

    def __iter__(self) -> Iterator[Any]:
        """Yield the items, one step each: tqdm's own loop skips steps that come quickly."""
        for item in self.iterable:
            yield item
            self.update(1)


def bar_class(advance: Advance) -> type[Bar]:
    """A class to pass as a library's `tqdm_class`; its bars may be stepped from any thread."""
    return type("Bar", (Bar,), {"advance": staticmethod(advance)})


@contextmanager
def heard(advance: Advance) -> Iterator[None]:
    """Within it, the bars that transformers opens in this thread go to `advance` and are not drawn.

    Other threads, a notebook's own downloads among them, keep the bars they had.
    """
    _listen()
    _thread.bar = bar_class(advance)
    try:
        yield
    finally:
        _thread.bar = None


def _listen() -> None:
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging

    global _previous_hook
    previous = logging.set_tqdm_hook(_open)
    if previous is not _open:
        _previous_hook = previous
    # Dequantising uses tqdm itself and has no hook: it is told apart by thread in the same way.
    drawn = getattr(modeling_gguf_pytorch_utils, "tqdm", None)
    if drawn is not None and not hasattr(drawn, "drawn"):

        def opened(*args: Any, **kwargs: Any) -> Any:
            return (getattr(_thread, "bar", None) or drawn)(*args, **kwargs)

        opened.drawn = drawn
        modeling_gguf_pytorch_utils.tqdm = opened


def _open(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    bar = getattr(_thread, "bar", None)
    if bar is not None:
        return bar(*args, **kwargs)
    if _previous_hook is not None:
        return _previous_hook(factory, args, kwargs)
    return factory(*args, **kwargs)
