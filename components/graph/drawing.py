"""Drawing: a graph as it is drawn, in rectangles and the wires between them, and what of it is to be seen."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transpector.state.graph import Node

GROUPS: dict[str, tuple[str, ...]] = {
    "Stream": ("resid_pre", "resid_mid", "resid_post"),
    "Norms": ("ln1", "ln1_post", "ln2", "ln2_post", "ln_final", "embed_ln"),
    "q k v": ("q", "k", "v"),
    "Heads": ("z",),
    "Out": ("attn_out",),
    "MLP": ("mlp_pre", "mlp_pre_linear", "mlp_post", "mlp_out"),
}
"""What can be left out of the picture, each by the kinds of node that it stands for."""

CARD, LAYER, STRIP, TURN = "card", "layer", "strip", "turn"
STREAM, WIRE = "stream", "wire"


@dataclass(frozen=True)
class Box:
    """A rectangle in px. ``kind`` is a node's, or card, layer or strip; ``parent`` is the box that it moves with.

    A turn is where the stream goes on in the next row: in at its upper right corner, left at ``turn`` px below its
    top, and out at its lower left one.
    """

    id: str
    kind: str
    label: str
    x: float
    y: float
    width: float
    height: float
    parent: str | None = None
    turn: float = 0.0


@dataclass(frozen=True)
class Wire:
    """A line between two boxes; ``kind`` says whether it is part of the residual stream."""

    source: str
    target: str
    kind: str

    @property
    def id(self) -> str:
        """Its name on the page."""
        return f"{self.source}>{self.target}"


@dataclass(frozen=True)
class Drawing:
    """A graph as it is drawn, and which box each of its nodes is part of."""

    boxes: tuple[Box, ...]
    wires: tuple[Wire, ...]
    home: dict[str, str | None]
    """By id of a node: the box that shows it, itself or its layer's card; None where it is left out."""

    def __getitem__(self, id: str) -> Box:
        return self._by_id[id]

    def __contains__(self, id: str) -> bool:
        return id in self._by_id

    @cached_property
    def _by_id(self) -> dict[str, Box]:
        return {box.id: box for box in self.boxes}

    def bounds(self, ids: Collection[str] = ()) -> tuple[float, float, float, float]:
        """Left, top, width and height of some boxes, or of all."""
        boxes = [box for box in self.boxes if not ids or box.id in ids]
        left, top = min(box.x for box in boxes), min(box.y for box in boxes)
        right = max(box.x + box.width for box in boxes)
        return left, top, right - left, max(box.y + box.height for box in boxes) - top


@dataclass(frozen=True)
class View:
    """What of a graph is to be seen: which layers unfolded, which by position, which left out."""

    unfolded: frozenset[int] = frozenset()
    by_position: frozenset[int] = frozenset()
    """Layers whose residual stream is drawn as a node for each token."""
    layers: tuple[int, int] | None = None
    """First and last layer shown; None for all."""
    without: frozenset[str] = frozenset()
    """Those of GROUPS that are left out."""

    def shows(self, node: "Node") -> bool:
        """Whether a node is drawn, if its layer is unfolded."""
        if self.layers is not None and node.layer is not None:
            first, last = self.layers
            if not first <= node.layer <= last:
                return False
        return not any(node.kind in GROUPS[group] for group in self.without)


def card_of(layer: int) -> str:
    """The id of the box that a layer is drawn as."""
    return f"L{layer}"


def turn_of(row: int) -> str:
    """The id of the box in which the stream goes on from a row to the next."""
    return f"turn{row}"
