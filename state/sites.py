"""Site: the address of an activation, as in ``L5H1.z`` or ``L2.resid_pre@-1``."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transpector.state.errors import SiteError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transpector.state.spec import ModelSpec

# The axes of each kind, batch left out, in the order in which a forward pass comes by them.
AXES: dict[str, tuple[str, ...]] = {
    "embed": ("pos", "d_model"),
    "resid_pre": ("pos", "d_model"),
    "q": ("pos", "head", "d_head"),
    "k": ("pos", "kv_head", "d_head"),
    "v": ("pos", "kv_head", "d_head"),
    "scores": ("head", "query", "key"),
    "pattern": ("head", "query", "key"),
    "z": ("pos", "head", "d_head"),
    "attn_out": ("pos", "d_model"),
    "resid_mid": ("pos", "d_model"),
    "mlp_pre": ("pos", "d_mlp"),
    "mlp_post": ("pos", "d_mlp"),
    "mlp_out": ("pos", "d_model"),
}
KINDS = tuple(AXES)
# q, k and v are read from the same input, so none of them is upstream of another.
_RANK = {kind: rank for rank, kind in enumerate(KINDS)} | {"k": KINDS.index("q"), "v": KINDS.index("q")}

_OF_THE_STREAM = tuple(kind for kind, axes in AXES.items() if axes[-1] == "d_model")

_PATTERN = re.compile(
    r"(?:(?=[LD])(?:L(?P<layer>\d+))?(?:H(?P<head>\d+)|N(?P<neuron>\d+)|D(?P<dim>\d+))?\.)?(?P<kind>[a-z_]+)"
    r"(?:@(?:(?P<start>-?\d+)?(?P<colon>:)(?P<stop>-?\d+)?|(?P<position>-?\d+)))?"
)


@dataclass(frozen=True)
class Site:
    """Address of an activation of one text: a kind, and how much of it.

    ``position`` is one position (its axis is dropped), a half-open ``(start, stop)`` range, or None for all;
    negative ones count from the end. For ``scores`` and ``pattern`` it is the query position. ``head`` counts
    key-value heads for ``k`` and ``v``. ``dim`` is a dimension of the residual stream, or of what is added to it.
    """

    kind: str
    layer: int | None = None
    head: int | None = None
    neuron: int | None = None
    position: int | tuple[int | None, int | None] | None = None
    dim: int | None = None

    def __post_init__(self):
        if self.kind not in AXES:
            raise SiteError(f"{self.kind!r} is no kind of site. Use one of: {', '.join(KINDS)}.")
        if (self.layer is None) != (self.kind == "embed"):
            raise SiteError(
                "embed has no layer: write it as 'embed'."
                if self.kind == "embed"
                else f"{self.kind} needs a layer, as in 'L0.{self.kind}'."
            )
        if self.head is not None and self._head_axis is None:
            raise SiteError(f"{self.kind} has no heads: write 'L{self.layer}.{self.kind}'.")
        if self.neuron is not None and "d_mlp" not in self.axes_of_kind:
            raise SiteError(f"{self.kind} has no neurons: only mlp_pre and mlp_post do.")
        if self.dim is not None and "d_model" not in self.axes_of_kind:
            raise SiteError(
                f"{self.kind} has no dimensions of the residual stream: only {', '.join(_OF_THE_STREAM)} do."
            )

    @classmethod
    def parse(cls, text: "str | Site") -> "Site":
        """Read a site as it is printed; raises SiteError with the right form."""
        if isinstance(text, Site):
            return text
        match = _PATTERN.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise SiteError(
                f"{str(text)[:80]!r} is no site. Write it like L5H1.z, L9.mlp_out, L2.resid_pre@-1, "
                "L5N311.mlp_post@3, L5D37.resid_pre or embed."
            )
        part = {
            name: int(value)
            for name, value in match.groupdict().items()
            if name not in ("kind", "colon") and value
        }
        ends = part.pop("start", None), part.pop("stop", None)
        if match["colon"]:
            part["position"] = ends
        return cls(match["kind"], **part)

    def __str__(self) -> str:
        text = "" if self.layer is None else f"L{self.layer}"
        if self.head is not None:
            text += f"H{self.head}"
        if self.neuron is not None:
            text += f"N{self.neuron}"
        if self.dim is not None:
            text += f"D{self.dim}"
        text += f".{self.kind}" if text else self.kind
        if isinstance(self.position, tuple):
            start, stop = ("" if end is None else str(end) for end in self.position)
            text += f"@{start}:{stop}"
        elif self.position is not None:
            text += f"@{self.position}"
        return text

    @property
    def axes_of_kind(self) -> tuple[str, ...]:
        """Axes of the whole activation, batch left out."""
        return AXES[self.kind]

    @property
    def _head_axis(self) -> int | None:
        return next((i for i, axis in enumerate(self.axes_of_kind) if axis in ("head", "kv_head")), None)

    @property
    def position_axis(self) -> int:
        """Where the position stands in the whole activation; the query's for ``scores`` and ``pattern``."""
        return self.axes_of_kind.index("query" if "query" in self.axes_of_kind else "pos")

    @property
    def is_scalar(self) -> bool:
        """Whether it holds one number at a position: that of a neuron, or of a dimension."""
        return self.neuron is not None or self.dim is not None

    @property
    def tensor(self) -> tuple[str, int | None]:
        """The whole activation that this site is a part of: (kind, layer)."""
        return self.kind, self.layer

    @property
    def rank(self) -> tuple[int, int]:
        """When a forward pass comes by: a site of lower rank is upstream."""
        return (-1 if self.layer is None else self.layer), _RANK[self.kind]

    @property
    def index(self) -> tuple[int | slice, ...]:
        """What to index the whole activation with, batch left out."""
        index: list[int | slice] = [slice(None)] * len(self.axes_of_kind)
        if isinstance(self.position, tuple):
            index[self.position_axis] = slice(*self.position)
        elif self.position is not None:
            index[self.position_axis] = self.position
        if self.head is not None:
            index[self._head_axis] = self.head
        if self.neuron is not None:
            index[-1] = self.neuron
        if self.dim is not None:
            index[-1] = self.dim
        return tuple(index)

    def check(self, spec: "ModelSpec", n_pos: int | None = None) -> None:
        """Raise SiteError if this model, on a text of ``n_pos`` tokens, has no such site."""
        if self.layer is not None and not 0 <= self.layer < spec.n_layers:
            raise SiteError(f"{self}: this model has layers 0 to {spec.n_layers - 1}, not {self.layer}.")
        n_heads = spec.n_kv_heads if self.kind in ("k", "v") else spec.n_heads
        if self.head is not None and not 0 <= self.head < n_heads:
            word = "key-value heads" if self.kind in ("k", "v") and n_heads != spec.n_heads else "heads"
            raise SiteError(f"{self}: a layer of this model has {word} 0 to {n_heads - 1}, not {self.head}.")
        if self.neuron is not None and not 0 <= self.neuron < spec.d_mlp:
            raise SiteError(
                f"{self}: a layer of this model has neurons 0 to {spec.d_mlp - 1}, not {self.neuron}."
            )
        if self.dim is not None and not 0 <= self.dim < spec.d_model:
            raise SiteError(f"{self}: this model has dimensions 0 to {spec.d_model - 1}, not {self.dim}.")
        if n_pos is None or self.position is None:
            return
        if isinstance(self.position, tuple):
            if not range(*slice(*self.position).indices(n_pos)):
                raise SiteError(f"{self}: no position of this text of {n_pos} tokens lies in that range.")
        elif not -n_pos <= self.position < n_pos:
            raise SiteError(f"{self}: this text has positions 0 to {n_pos - 1}, not {self.position}.")

    def shape(self, spec: "ModelSpec", n_pos: int) -> tuple[int, ...]:
        """Shape of this site's value on a text of ``n_pos`` tokens, batch left out."""
        sizes = {
            "pos": n_pos,
            "query": n_pos,
            "key": n_pos,
            "head": spec.n_heads,
            "kv_head": spec.n_kv_heads,
            "d_head": spec.d_head,
            "d_model": spec.d_model,
            "d_mlp": spec.d_mlp,
        }
        whole = (sizes[axis] for axis in self.axes_of_kind)
        return tuple(
            len(range(*at.indices(size)))
            for size, at in zip(whole, self.index, strict=True)
            if isinstance(at, slice)
        )


def sites(spec: "ModelSpec", kind: str) -> "Iterator[Site]":
    """Every site of a kind, the whole activation of each layer, one head a site where the kind has heads."""
    if kind == "embed":
        yield Site(kind)
        return
    n_heads = {"head": spec.n_heads, "kv_head": spec.n_kv_heads}
    axis = next((axis for axis in AXES[kind] if axis in n_heads), None)
    for layer in range(spec.n_layers):
        for head in range(n_heads[axis]) if axis else (None,):
            yield Site(kind, layer, head)
