"""Block: what is placed together in a graph's drawing: a layer, folded or in full, or what is before and after them all."""

from collections.abc import Collection, Iterable
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING

from transpector.components.graph.drawing import CARD, LAYER, STRIP, Box, View, card_of

if TYPE_CHECKING:
    from transpector.state.graph import Graph, Node

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


class Block:
    """Boxes that are placed together, about the height at which the stream goes through them."""

    def __init__(self) -> None:
        self.boxes: list[Box] = []
        self.width = 0.0
        self.above = self.below = 0.0  # px that it takes above the stream and below it

    @classmethod
    def card(cls, layer: int) -> "Block":
        block = cls()
        width, height = CARD_SIZE
        block.boxes = [Box(card_of(layer), CARD, f"L{layer}", 0, -height / 2, width, height)]
        block.width, block.above, block.below = width, height / 2, height / 2
        return block

    @classmethod
    def of_ends(cls, graph: "Graph", view: View, kinds: tuple[str, ...]) -> "Block":
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
    def of_layer(cls, graph: "Graph", view: View, layer: int, tokens: Collection[str]) -> "Block":
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

    def block(self) -> Block:
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
        block = Block()
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


def _box(node: "Node", x: float, y: float) -> Box:
    width, height = _SIZES[node.kind]
    label = _LABELS.get(node.kind, node.kind)
    if node.kind == "z":
        label = f"H{node.head}"
    return Box(node.id, node.kind, label, x, y, width, height)
