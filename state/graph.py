"""Graph: the parts of one model and what each of them reads, found from its own hook points."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from transpector.state.errors import InterventionError, SiteError
from transpector.state.interventions import Patch
from transpector.state.sites import Site
from transpector.state.wiring import HOOKS

if TYPE_CHECKING:
    from transpector.state.models import Model

Size = str | int

_OF_THE_BLOCK = {
    "resid_pre": "blocks.{layer}.hook_resid_pre",
    "ln1": "blocks.{layer}.ln1.hook_out",
    **HOOKS,
    "ln1_post": "blocks.{layer}.ln1_post.hook_out",
    "resid_mid": "blocks.{layer}.hook_resid_mid",
    "ln2": "blocks.{layer}.ln2.hook_out",
    "mlp_pre_linear": "blocks.{layer}.mlp.hook_pre_linear",
    "ln2_post": "blocks.{layer}.ln2_post.hook_out",
}
NORMS = ("ln1", "ln1_post", "ln2", "ln2_post")


@dataclass(frozen=True)
class Node:
    """A part of the model, by the activation that it writes.

    ``kind`` is the kind of its site, or TransformerLens's name of the part where the activation is no site; ``hook``
    its hook point, of which a head or a position is a slice. ``shape`` is that of its value on one text, and
    ``takes`` of what it reads from each part before it; "pos" stands for the number of tokens. ``head`` counts
    key-value heads for ``k`` and ``v``.
    """

    id: str
    kind: str
    hook: str
    shape: tuple[Size, ...]
    takes: tuple[Size, ...]
    layer: int | None = None
    head: int | None = None
    site: Site | None = None

    @property
    def position(self) -> int | None:
        """The one position that it stands for; None for all."""
        return None if self.site is None else self.site.position

    def at(self, position: int) -> "Node":
        """The same part at one position of the text."""
        site = replace(self.site, position=position)
        return replace(self, id=str(site), site=site, shape=self.shape[1:], takes=self.takes[1:])


@dataclass(frozen=True)
class Edge:
    """What ``source`` writes, ``target`` reads; ids of nodes."""

    source: str
    target: str


@dataclass(frozen=True)
class Graph:
    """The parts of a model in the order of the forward pass, and what each of them reads."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    def __getitem__(self, id: str) -> Node:
        if id in self._by_id:
            return self._by_id[id]
        # A residual stream at one position is a part too, but only once it is asked for.
        whole, at, position = id.rpartition("@")
        if at and whole in self._by_id and self._by_id[whole].site and position.isdecimal():
            return self._by_id[whole].at(int(position))
        raise SiteError(f"{id[:80]!r} is no part of this model.")

    def __contains__(self, id: str) -> bool:
        try:
            self[id]
        except SiteError:
            return False
        return True

    @cached_property
    def _by_id(self) -> dict[str, Node]:
        return {node.id: node for node in self.nodes}

    def touched(self, site: Site) -> tuple[Node, ...]:
        """The parts that a site is the value of, or a share of: a head's pattern counts as the head."""
        kind = {"pattern": "z", "scores": "z"}.get(site.kind, site.kind)
        return tuple(
            node
            for node in self.nodes
            if (node.kind, node.layer) == (kind, site.layer) and site.head in (None, node.head)
        )

    def layer(self, layer: int | None) -> tuple[Node, ...]:
        """The parts of a layer, or those outside every layer."""
        return tuple(node for node in self.nodes if node.layer == layer)


_known: "WeakKeyDictionary[Model, Graph]" = WeakKeyDictionary()


def graph(model: "Model") -> Graph:
    """Every part of a model, down to its heads: layers, norms, q, k, v, attention, MLP and the residual stream.

    Read off the hook points that the model has, so that blocks whose attention and MLP work side by side, heads that
    share keys and values, and layers without an MLP come out as what they are.
    """
    known = _known.get(model)
    if known is None:
        known = _known[model] = _Builder(model).build()
    return known


def drawn(
    model: "Model", source: Node, target: Node, n_pos: int, text: str | None = None, bos: bool | None = None
) -> Patch:
    """The patch that a line from one part to another stands for: from the same run, or from that on another text.

    Raises TranspectorError with the reason, if there can be no such patch in a run of ``n_pos`` tokens.
    """
    for node in (source, target):
        if node.site is None:
            raise InterventionError(
                f"{node.id} is no activation that can be patched. Draw to or from its neighbour."
            )
    patch = Patch(target.site, source.site, text)
    model.check([patch], n_pos, bos)
    return patch


class _Builder:
    def __init__(self, model: "Model"):
        self.spec, self.hooks = model.spec, model.stack.names
        self.parallel = model.wiring.parallel
        self.stream = ("pos", model.spec.d_model)
        self.nodes: list[Node] = []
        self.edges: list[Edge] = []

    def build(self) -> Graph:
        stream = self._embed()
        for layer in range(self.spec.n_layers):
            stream = self._block(layer, stream)
        last = self.spec.n_layers - 1
        hook = f"blocks.{last}.hook_resid_post"
        after = self._add(
            Node(f"L{last}.resid_post", "resid_post", hook, self.stream, self.stream, last), stream
        )
        for part, shape in (("ln_final", self.stream), ("unembed", ("pos", self.spec.d_vocab))):
            if (hook := f"{part}.hook_out") in self.hooks:
                after = self._add(Node(part, part, hook, shape, self.stream), [after])
        return Graph(tuple(self.nodes), tuple(self.edges))

    def _add(self, node: Node, reads: Iterable[str] = ()) -> str:
        self.nodes.append(node)
        self.edges += [Edge(source, node.id) for source in reads]
        return node.id

    def _embed(self) -> list[str]:
        stream, site = self.stream, Site("embed")
        parts = [self._add(Node("embed", "embed", "hook_embed", stream, stream, site=site))]
        if "pos_embed.hook_out" in self.hooks:
            parts.append(self._add(Node("pos_embed", "pos_embed", "pos_embed.hook_out", stream, stream)))
        if "embed_ln.hook_out" in self.hooks:
            parts = [self._add(Node("embed_ln", "embed_ln", "embed_ln.hook_out", stream, stream), parts)]
        return parts

    def _block(self, layer: int, stream: list[str]) -> list[str]:
        """Add a layer that reads the stream; give what the next residual stream is the sum of."""
        before = self._part("resid_pre", layer, stream)
        parts = [*before]
        normed = self._part("ln1", layer, before) or before
        attended = self._attention(layer, normed)
        parts += attended
        if attended and not self.parallel:
            parts = self._part("resid_mid", layer, parts) or parts
        # Side by side, an MLP without a norm of its own reads what attention reads.
        read = normed if self.parallel else parts
        return parts + self._mlp(layer, self._part("ln2", layer, before if self.parallel else parts) or read)

    def _attention(self, layer: int, normed: list[str]) -> list[str]:
        if not self._has("z", layer):
            return self._part("attn_out", layer, normed)
        spec = self.spec
        q = [self._head("q", layer, head, normed) for head in range(spec.n_heads)]
        k, v = ([self._head(kind, layer, head, normed) for head in range(spec.n_kv_heads)] for kind in "kv")
        heads = []
        for head in range(spec.n_heads):
            shared = head * spec.n_kv_heads // spec.n_heads
            heads.append(self._head("z", layer, head, [q[head], k[shared], v[shared]]))
        written = self._part("ln1_post", layer, heads, ("pos", spec.d_head))
        return self._part("attn_out", layer, written or heads, None if written else ("pos", spec.d_head))

    def _mlp(self, layer: int, normed: list[str]) -> list[str]:
        hidden = ("pos", self.spec.d_mlp)
        pre = self._part("mlp_pre", layer, normed, shape=hidden)
        pre += self._part("mlp_pre_linear", layer, normed, shape=hidden)
        post = self._part("mlp_post", layer, pre or normed, hidden if pre else None, hidden)
        takes = hidden if post else None
        written = self._part("ln2_post", layer, post or normed, takes)
        return self._part("mlp_out", layer, written or post or normed, None if written else takes)

    def _has(self, kind: str, layer: int) -> bool:
        return _OF_THE_BLOCK[kind].format(layer=layer) in self.hooks

    def _part(
        self,
        kind: str,
        layer: int,
        reads: list[str],
        takes: tuple[Size, ...] | None = None,
        shape: tuple[Size, ...] | None = None,
    ) -> list[str]:
        """Add the part, if this layer has it."""
        if not self._has(kind, layer):
            return []
        site = Site(kind, layer) if kind not in (*NORMS, "mlp_pre_linear") else None
        hook = _OF_THE_BLOCK[kind].format(layer=layer)
        takes, shape = takes or self.stream, shape or self.stream
        node = Node(f"L{layer}.{kind}", kind, hook, shape, takes, layer, site=site)
        return [self._add(node, reads)]

    def _head(self, kind: str, layer: int, head: int, reads: list[str]) -> str:
        shape = ("pos", self.spec.d_head)
        site = Site(kind, layer, head)
        takes = shape if kind == "z" else self.stream
        hook = _OF_THE_BLOCK[kind].format(layer=layer)
        return self._add(Node(str(site), kind, hook, shape, takes, layer, head, site), reads)
