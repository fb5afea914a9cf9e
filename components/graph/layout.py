"""Layout: where every part of a model's graph is drawn, in rows from left to right, as a text is read."""

from collections.abc import Collection
from dataclasses import replace
from itertools import pairwise
from math import sqrt
from typing import TYPE_CHECKING

from transpector.components.graph.block import CARD_SIZE, Block
from transpector.components.graph.drawing import (
    GROUPS,
    STREAM,
    TURN,
    WIRE,
    Box,
    Drawing,
    View,
    Wire,
    card_of,
    turn_of,
)

if TYPE_CHECKING:
    from transpector.state.graph import Graph, Node

_BETWEEN = 40  # px between two layers, each way
_ASPECT = 1.35  # width by height that a whole picture of folded layers comes near to


def lay_out(graph: "Graph", view: View, tokens: Collection[str] = ()) -> Drawing:
    """Draw a graph: the residual stream from left to right in rows, as a text is read.

    ``tokens`` are those of the text, for the streams that are drawn by position.
    """
    layers = sorted({node.layer for node in graph.nodes if node.layer is not None})
    first, last = view.layers or (layers[0], layers[-1])
    shown = [layer for layer in layers if first <= layer <= last]
    blocks = [Block.of_ends(graph, view, ("embed", "pos_embed", "embed_ln"))]
    for layer in shown:
        unfolded = layer in view.unfolded
        blocks.append(Block.of_layer(graph, view, layer, tokens) if unfolded else Block.card(layer))
    blocks.append(Block.of_ends(graph, view, ("ln_final", "unembed")))
    rows = _in_rows([block for block in blocks if block.boxes])
    boxes = [box for row in rows for box in row]
    home = _homes(graph, view, {box.id for box in boxes})
    turns = {box.id: at for at, row in enumerate(rows) for box in row}
    wires = [piece for wire in _wires(graph, home) for piece in _turned(wire, turns)]
    return Drawing(tuple(boxes), tuple(dict.fromkeys(wires)), home)


def _in_rows(blocks: list[Block]) -> list[list[Box]]:
    """Blocks from left to right, in rows; a turn ends each row but the last."""
    # As wide as suits folded layers, so that one which is unfolded moves the others as little as may be.
    cell = (CARD_SIZE[0] + _BETWEEN, CARD_SIZE[1] + _BETWEEN)
    n_columns = max(4, round(sqrt(len(blocks) * _ASPECT * cell[1] / cell[0])))
    width = max([n_columns * cell[0] - _BETWEEN, *(block.width for block in blocks)])
    rows: list[list[Block]] = [[]]
    taken = 0.0
    for block in blocks:
        if rows[-1] and taken + block.width > width:
            rows.append([])
            taken = 0.0
        rows[-1].append(block)
        taken += block.width + _BETWEEN
    placed: list[list[Box]] = []
    streams, bottoms, ends = [], [], []
    top = 0.0
    for row in rows:
        stream = top + max(block.above for block in row)
        x = 0.0
        boxes: list[Box] = []
        for block in row:
            boxes += [replace(box, x=box.x + x, y=box.y + stream) for box in block.boxes]
            x += block.width + _BETWEEN
        placed.append(boxes)
        streams.append(stream)
        bottoms.append(stream + max(block.below for block in row))
        ends.append(x - _BETWEEN)
        top = bottoms[-1] + _BETWEEN
    margin = _BETWEEN / 2
    for at, (stream, bottom, end) in enumerate(zip(streams[:-1], bottoms, ends, strict=False)):
        size = (end + 2 * margin, streams[at + 1] - stream)
        placed[at].append(Box(turn_of(at), TURN, "", -margin, stream, *size, turn=bottom + margin - stream))
    return placed


def _turned(wire: Wire, rows: dict[str, int]) -> list[Wire]:
    """A wire from one row to another, in pieces from turn to turn."""
    first, last = rows[wire.source], rows[wire.target]
    through = [wire.source, *(turn_of(row) for row in range(first, last)), wire.target]
    pieces = [Wire(source, target, wire.kind) for source, target in pairwise(through)]
    # Within a turn there is only the stream.
    return [replace(piece, kind=STREAM) if piece.source != wire.source else piece for piece in pieces]


def _homes(graph: "Graph", view: View, boxes: set[str]) -> dict[str, str | None]:
    home: dict[str, str | None] = {}
    for node in graph.nodes:
        card = None if node.layer is None or node.layer in view.unfolded else card_of(node.layer)
        at = card or node.id
        home[node.id] = at if at in boxes and (card or view.shows(node)) else None
    return home


def _wires(graph: "Graph", home: dict[str, str | None]) -> list[Wire]:
    """The edges between boxes; through what is left out, from what it reads to what reads it."""
    reads: dict[str, list[str]] = {}
    for edge in graph.edges:
        reads.setdefault(edge.target, []).append(edge.source)
    reached: dict[str, frozenset[str]] = {}

    def sources(id: str) -> frozenset[str]:
        """The nodes in sight whose values come to a node straight, or through what is left out."""
        if id not in reached:
            found: set[str] = set()
            for source in reads.get(id, ()):
                found |= {source} if home[source] is not None else sources(source)
            reached[id] = frozenset(found)
        return reached[id]

    wires: dict[tuple[str, str], str] = {}
    for node in graph.nodes:  # in the order of the pass, so recursion is never deep
        at = home[node.id]
        for source in sorted(sources(node.id)):
            if at is not None and home[source] != at:
                kind = STREAM if _is_stream(graph[source], home) and _is_stream(node, home) else WIRE
                wires[home[source], at] = max(kind, wires.get((home[source], at), ""), key=_weight)
    return [Wire(source, target, kind) for (source, target), kind in wires.items()]


def _weight(kind: str) -> int:
    return ("", WIRE, STREAM).index(kind)


def _is_stream(node: "Node", home: dict[str, str | None]) -> bool:
    folded = node.layer is not None and home[node.id] == card_of(node.layer)
    return folded or node.layer is None or node.kind in GROUPS["Stream"]
