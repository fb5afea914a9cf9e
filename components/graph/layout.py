"""Layout: where every part of a model's graph is drawn, layers folded to a card or unfolded."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import ceil, sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transpector.state.graph import Graph, Node

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

CARD_SIZE = (176, 116)
ROW_OF_A_HEAD = 44
_SIZES = {
    "embed": (104, 64),
    "pos_embed": (104, 44),
    "embed_ln": (84, 32),
    "resid_pre": (92, 44),
    "resid_mid": (92, 44),
    "resid_post": (92, 44),
    "ln1": (56, 32),
    "ln1_post": (80, 32),
    "ln2": (56, 32),
    "ln2_post": (80, 32),
    "ln_final": (76, 32),
    "q": (36, 16),
    "k": (36, 16),
    "v": (36, 16),
    "z": (92, 38),
    "attn_out": (92, 44),
    "mlp_pre": (120, 48),
    "mlp_pre_linear": (120, 48),
    "mlp_post": (100, 48),
    "mlp_out": (92, 44),
    "unembed": (208, 152),
}
_POSITION = (92, 28)
_STEP = 40  # px from a query to its key, and on to its value
_GAP = 36  # px between two columns, for the wires
_BETWEEN = 40  # px between two layers, each way
_ASPECT = 1.35  # width by height that a whole picture of folded layers comes near to
_LABELS = {
    "resid_pre": "resid pre",
    "resid_mid": "resid mid",
    "resid_post": "resid post",
    "attn_out": "attn out",
    "mlp_pre": "mlp pre",
    "mlp_pre_linear": "mlp pre linear",
    "mlp_post": "mlp post",
    "mlp_out": "mlp out",
    "ln1_post": "ln1 post",
    "ln2_post": "ln2 post",
    "ln_final": "ln final",
    "embed_ln": "embed ln",
    "pos_embed": "positions",
    "embed": "embed",
    "unembed": "output",
}


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


def lay_out(graph: "Graph", view: View, tokens: Collection[str] = ()) -> Drawing:
    """Draw a graph: the residual stream from left to right in rows, as a text is read.

    ``tokens`` are those of the text, for the streams that are drawn by position.
    """
    layers = sorted({node.layer for node in graph.nodes if node.layer is not None})
    first, last = view.layers or (layers[0], layers[-1])
    shown = [layer for layer in layers if first <= layer <= last]
    blocks = [_Block.of_ends(graph, view, ("embed", "pos_embed", "embed_ln"))]
    for layer in shown:
        unfolded = layer in view.unfolded
        blocks.append(_Block.of_layer(graph, view, layer, tokens) if unfolded else _Block.card(layer))
    blocks.append(_Block.of_ends(graph, view, ("ln_final", "unembed")))
    rows = _in_rows([block for block in blocks if block.boxes])
    boxes = [box for row in rows for box in row]
    home = _homes(graph, view, {box.id for box in boxes})
    turns = {box.id: at for at, row in enumerate(rows) for box in row}
    wires = [piece for wire in _wires(graph, home) for piece in _turned(wire, turns)]
    return Drawing(tuple(boxes), tuple(dict.fromkeys(wires)), home)


class _Block:
    """Boxes that are placed together, about the height at which the stream goes through them."""

    def __init__(self) -> None:
        self.boxes: list[Box] = []
        self.width = 0.0
        self.above = self.below = 0.0  # px that it takes above the stream and below it

    @classmethod
    def card(cls, layer: int) -> "_Block":
        block = cls()
        width, height = CARD_SIZE
        block.boxes = [Box(card_of(layer), CARD, f"L{layer}", 0, -height / 2, width, height)]
        block.width, block.above, block.below = width, height / 2, height / 2
        return block

    @classmethod
    def of_ends(cls, graph: "Graph", view: View, kinds: tuple[str, ...]) -> "_Block":
        """What comes before the first layer, or after the last."""
        block = cls()
        nodes = {node.kind: node for node in graph.layer(None) if view.shows(node)}
        drawn = [nodes[kind] for kind in kinds if kind in nodes]
        beside = "pos_embed" in nodes and "embed" in nodes
        x = 0.0
        for node in drawn:
            width, height = _SIZES[node.kind]
            y = -height / 2
            if beside and node.kind == "embed":
                y = -height - 8
            elif beside and node.kind == "pos_embed":
                x, y = 0.0, 8
            block.boxes.append(_box(node, x, y))
            block.above, block.below = max(block.above, -y), max(block.below, y + height)
            x += width + _GAP
        block.width = x - _GAP if drawn else 0.0
        return block

    @classmethod
    def of_layer(cls, graph: "Graph", view: View, layer: int, tokens: Collection[str]) -> "_Block":
        nodes = graph.layer(layer)
        has = {node.kind for node in nodes}
        beside = "mlp_out" in has and "resid_mid" not in has
        shown = [node for node in nodes if view.shows(node)]
        return _Unfolded(shown, layer, beside, tokens if layer in view.by_position else ()).block()


class _Unfolded:
    """One layer in full: attention above the stream; its MLP after it, or below where they work side by side."""

    PAD, HEAD = 20, 36

    def __init__(self, nodes: "list[Node]", layer: int, beside: bool, tokens: Collection[str]):
        self.layer, self.tokens = layer, list(tokens)
        self.kinds = {node.kind for node in nodes}
        self.of = {kind: [node for node in nodes if node.kind == kind] for kind in self.kinds}
        self.beside = beside
        self.boxes: list[Box] = []

    def block(self) -> _Block:
        n_rows = max([len(self.of.get(kind, ())) for kind in ("z", "q")])
        high = max(n_rows * ROW_OF_A_HEAD, 2 * 56)
        middle = -(high / 2 + 44)  # of what attention is made of, above the stream
        x = self._column(["resid_pre"], self.PAD, 0)
        start = x
        x = self._column(["ln1"], x, middle)
        x = self._heads(x, middle)
        x = self._column(["ln1_post"], x, middle)
        x = self._column(["attn_out"], x, middle)
        below = 40.0
        if self.beside:
            end = self._mlp(start, 96.0)
            x, below = max(x, end), 96.0 + 64
        else:
            x = self._column(["resid_mid"], x, 0)
            x = self._mlp(x, middle)
        x = self._column(["resid_post"], x, 0)
        width = max(x - _GAP + self.PAD, 240)
        below = self._positions(width, below)
        block = _Block()
        block.width, block.above, block.below = width, high + 44 + self.HEAD, below + 8
        name = card_of(self.layer)
        frame = Box(name, LAYER, f"L{self.layer}", 0, -block.above, width, block.above + block.below)
        block.boxes = [frame, *(replace(box, parent=box.parent or name) for box in self.boxes)]
        return block

    def _column(self, kinds: Iterable[str], x: float, middle: float) -> float:
        """Place nodes one above the other, in the middle; give where the next column begins."""
        nodes = [node for kind in kinds for node in self.of.get(kind, ())]
        if not nodes:
            return x
        sizes = [_SIZES[node.kind] for node in nodes]
        y = middle - (sum(height for _, height in sizes) + 16 * (len(nodes) - 1)) / 2
        for node, (_, height) in zip(nodes, sizes, strict=True):
            self.boxes.append(_box(node, x, y))
            y += height + 16
        return x + max(width for width, _ in sizes) + _GAP

    def _heads(self, x: float, middle: float) -> float:
        """A row for each head: its query, key and value in steps, so that no wire hides behind another, and the head."""
        heads = max(self.of.get("z", ()), self.of.get("q", ()), key=len)
        if not heads:
            return x
        top = middle - len(heads) * ROW_OF_A_HEAD / 2
        right = x
        for step, kind in enumerate(kind for kind in ("q", "k", "v") if kind in self.kinds):
            shared = len(heads) / len(self.of[kind])
            for at, node in enumerate(self.of[kind]):
                row = (at + 0.5) * shared - 0.5
                self.boxes.append(_box(node, x + _STEP * step, top + row * ROW_OF_A_HEAD + 14 * step))
            right = x + _STEP * step + _SIZES[kind][0] + _GAP
        for row, node in enumerate(self.of.get("z", ())):
            self.boxes.append(_box(node, right, top + row * ROW_OF_A_HEAD + 3))
        return right + _SIZES["z"][0] + _GAP + 12 if "z" in self.kinds else right

    def _mlp(self, x: float, middle: float) -> float:
        for kinds in (["ln2"], ["mlp_pre", "mlp_pre_linear"], ["mlp_post"], ["ln2_post"], ["mlp_out"]):
            x = self._column(kinds, x, middle)
        return x

    def _positions(self, width: float, below: float) -> float:
        """The stream as a node for each token, in rows under everything; give how far down it reaches."""
        nodes = self.of.get("resid_pre", [])
        if not self.tokens or not nodes:
            return below
        wide, high = _POSITION
        n_columns = max(1, int((width - 2 * self.PAD) // (wide + 8)))
        n_rows = ceil(len(self.tokens) / n_columns)
        strip = Box(
            f"{nodes[0].id}@",
            STRIP,
            f"resid pre by position ({len(self.tokens)})",
            self.PAD - 8,
            below + 8,
            n_columns * (wide + 8) + 8,
            n_rows * (high + 8) + 32,
        )
        self.boxes.append(strip)
        for position, token in enumerate(self.tokens):
            row, column = divmod(position, n_columns)
            x, y = self.PAD + column * (wide + 8), strip.y + 28 + row * (high + 8)
            node = nodes[0].at(position)
            self.boxes.append(Box(node.id, "position", f"{position}\u2002{token}", x, y, wide, high))
        return strip.y + strip.height


def card_of(layer: int) -> str:
    """The id of the box that a layer is drawn as."""
    return f"L{layer}"


def _box(node: "Node", x: float, y: float) -> Box:
    width, height = _SIZES[node.kind]
    label = _LABELS.get(node.kind, node.kind)
    if node.kind == "z":
        label = f"H{node.head}"
    return Box(node.id, node.kind, label, x, y, width, height)


def _in_rows(blocks: list[_Block]) -> list[list[Box]]:
    """Blocks from left to right, in rows; a turn ends each row but the last."""
    # As wide as suits folded layers, so that one which is unfolded moves the others as little as may be.
    cell = (CARD_SIZE[0] + _BETWEEN, CARD_SIZE[1] + _BETWEEN)
    n_columns = max(4, round(sqrt(len(blocks) * _ASPECT * cell[1] / cell[0])))
    width = max([n_columns * cell[0] - _BETWEEN, *(block.width for block in blocks)])
    rows: list[list[_Block]] = [[]]
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


def turn_of(row: int) -> str:
    """The id of the box in which the stream goes on from a row to the next."""
    return f"turn{row}"


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
