"""Pictures: small images of activations, as rules of a stylesheet that put them on their nodes."""

import base64
import io
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from transpector.components import theme

LEVELS = 32  # of a scale: more can't be told apart in a thumbnail, and would be sent for nothing
GAP = 2  # px between two thumbnails of a strip
BAR_HEIGHT = 24  # px of a picture of bars; it is stretched to its node


def thumbnail(pattern: UInt8[np.ndarray, "row col"], dark: bool) -> str:
    """One head's pattern, as a `data:` address; 255 is probability 1."""
    return _png(*_levels(pattern, dark))


def strip(patterns: UInt8[np.ndarray, "head row col"], dark: bool, n_rows: int) -> str:
    """The patterns of a layer's heads beside one another, in so many rows."""
    n_heads, side = patterns.shape[:2]
    n_columns = -(-n_heads // n_rows)
    whole = np.zeros((n_rows * (side + GAP) - GAP, n_columns * (side + GAP) - GAP), np.uint8)
    for head, pattern in enumerate(patterns):
        row, column = (at * (side + GAP) for at in divmod(head, n_columns))
        whole[row : row + side, column : column + side] = pattern
    return _png(*_levels(whole, dark))


def bars(heights: Float[np.ndarray, " pos"], colour: str) -> str:
    """A bar for each position; heights from 0 to 1."""
    filled = np.rint(np.clip(heights, 0, 1) * BAR_HEIGHT)
    filled = np.where((heights > 0) & (filled < 1), 1, filled)
    from_below = np.arange(BAR_HEIGHT, 0, -1)[:, None]
    rgb = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return _png((from_below <= filled).astype(np.uint8), np.array([rgb, rgb]), clear=True)


def rule(id: str, *images: str, sizes: Iterable[str], places: Iterable[str]) -> str:
    """The rule that puts images on a node; sizes and places as in CSS."""
    urls = ", ".join(f"url({image})" for image in images)
    return (
        f"{at(id)} .rf-node-content {{ background-image: {urls}; background-size: {', '.join(sizes)}; "
        f"background-position: {', '.join(places)}; }}"
    )


def at(id: str) -> str:
    """The selector of a node. Ids are made of names and numbers, never of a text."""
    return f'.react-flow__node[data-id="{id}"]'


def heights(norms: Mapping[str, Float[np.ndarray, " pos"]]) -> dict[str, Float[np.ndarray, " pos"]]:
    """Norms on one scale: of those past the first position, whose norm may be hundreds of times the others'."""
    past_first = [values[min(1, len(values) - 1) :] for values in norms.values()]
    top = max((float(np.quantile(values, 0.95)) for values in past_first), default=0.0) or 1.0
    return {id: values / top for id, values in norms.items()}


def _levels(values: UInt8[np.ndarray, "row col"], dark: bool) -> tuple[np.ndarray, np.ndarray]:
    """Values as entries of a shorter scale, and that scale; what is not nothing stays so."""
    rounded = np.rint(values * ((LEVELS - 1) / 255))
    entries = np.where(values > 0, np.maximum(rounded, 1), 0).astype(np.uint8)
    return entries, theme.sequential(dark)[np.linspace(0, 255, LEVELS).astype(int)]


def _png(indices: UInt8[np.ndarray, "row col"], palette: np.ndarray, clear: bool = False) -> str:
    image = Image.frombytes("P", indices.shape[::-1], np.ascontiguousarray(indices).tobytes())
    image.putpalette(np.ascontiguousarray(palette).astype(np.uint8).tobytes())
    written = io.BytesIO()
    image.save(written, "PNG", **({"transparency": 0} if clear else {}))
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()
