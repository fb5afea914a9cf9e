"""The contact sheet: the attention pattern of every head of every layer, in one canvas."""

from pathlib import Path

import numpy as np
import param
from jaxtyping import Float, UInt8
from panel.custom import JSComponent

from transpector.components import theme

SIDE = 64
"""The most pixels a thumbnail has each way."""


def thumbnails(
    patterns: Float[np.ndarray, "layer head query key"], side: int = SIDE
) -> tuple[UInt8[np.ndarray, "layer head row col"], int]:
    """Shrink patterns to thumbnails of at most `side` × `side`, and say how many positions a pixel spans.

    A pixel is 255 × the largest probability among its positions, rounded; so a lone bright entry never
    disappears, and an exact zero stays zero.
    """
    pooled = max(1, -(-patterns.shape[-1] // side))
    largest = _pool(_pool(patterns, pooled, axis=-2), pooled, axis=-1)
    if not np.isfinite(largest).all():
        raise ValueError("Some attention patterns hold values that are not finite.")
    return np.rint(np.clip(largest, 0, 1) * 255).astype(np.uint8), pooled


def maxima(patterns: Float[np.ndarray, "layer head query key"]) -> Float[np.ndarray, "layer head"]:
    """Give the largest probability of each head, past the first query.

    In a causal model the first query can only attend to itself: its 1.0 says nothing about the head.
    """
    return patterns[:, :, min(1, patterns.shape[2] - 1) :].max(axis=(-2, -1)).astype(np.float32)


def _pool(values: np.ndarray, span: int, axis: int) -> np.ndarray:
    if span == 1:
        return values
    rest = (slice(None),) * (-1 - axis)
    largest = values[(..., slice(None, None, span), *rest)].copy()
    for start in range(1, span):
        part = values[(..., slice(start, None, span), *rest)]
        within = largest[(..., slice(part.shape[axis]), *rest)]  # the last pixel may span fewer positions
        np.maximum(within, part, out=within)
    return largest


class ContactSheet(JSComponent):
    """Every layer × head as a thumbnail; a click or the arrow keys select one.

    Cells grow with the width, up to 120 px, as far as `max_height` (560 px unless given) allows; a model with
    many layers is laid out in several blocks of layers side by side, as many as make the cells largest.
    """

    thumbnails = param.Bytes(
        default=b"",
        doc="""
        uint8 [layer, head, row, col], 255 × probability; rows: query, columns: key. See `thumbnails`.""",
    )
    maxima = param.Bytes(
        default=b"",
        doc="""
        float32 [layer, head], each head's largest probability; the top of the scale "head". See `maxima`.""",
    )
    shape = param.NumericTuple(
        default=(0, 0, 0), length=3, doc="Layers, heads, and the side of a thumbnail in pixels."
    )
    pooled = param.Integer(
        default=1, bounds=(1, None), doc="How many positions a thumbnail's pixel spans, each way."
    )
    pieces = param.List(
        default=[],
        doc="""
        The text's tokens as they are to be shown, for the label by the pointer. Optional.""",
    )
    scale = param.Selector(
        default="global",
        objects=["global", "head"],
        doc="""
        What the strongest colour means: probability 1 (`global`), or each head's own maximum (`head`).""",
    )
    selected = param.NumericTuple(
        default=None, length=2, allow_None=True, doc="The selected (layer, head); None for none. Both ways."
    )
    marks = param.List(
        default=[],
        item_type=dict,
        doc="""
        Heads to mark: `{"layer": 5, "head": 1, "state": "ablated"}`; or frozen, patched, steered.""",
    )
    busy = param.Boolean(default=False, doc="Whether a newer run is under way: dims the picture a little.")
    dark = param.Boolean(default=False, doc="Whether the page is dark.")
    palette = param.Bytes(
        default=theme.sequential_bytes(), constant=True, doc="uint8 [ground, entry, channel]: the two scales."
    )

    _esm = Path(__file__).parent / "contact_sheet.js"
    _constants = theme.constants()

    def __init__(self, **params):
        params.setdefault("sizing_mode", "stretch_width")
        params.setdefault("max_height", 560)
        super().__init__(**params)

    def _process_property_change(self, msg: dict) -> dict:
        if isinstance(msg.get("selected"), list):  # JSON knows no tuples
            msg["selected"] = tuple(msg["selected"])
        return super()._process_property_change(msg)
