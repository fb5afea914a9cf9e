"""Grid: the sites of a causal map and the one change that is made at each of them in turn."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from transpector.state.errors import InterventionError, SiteError
from transpector.state.interventions import Ablate, Intervention, Patch, Question
from transpector.state.sites import AXES, Site

if TYPE_CHECKING:
    from transpector.state.models import Model

OF_A_HEAD = ("z", "q", "k", "v", "pattern")
KINDS_OVER: dict[str, tuple[str, ...]] = {
    "heads": OF_A_HEAD,
    "layers_positions": ("resid_pre", "attn_out", "mlp_out"),
    "heads_positions": OF_A_HEAD,
    "layers": ("mlp_out", "attn_out"),
    "neurons": ("mlp_post", "mlp_pre"),
}
"""What can be swept, and the kinds of site there; the first is taken unless another is named."""

Index = tuple[int, ...]


@dataclass(frozen=True)
class FromText:
    """The change of a sweep that patches each site from the same site in the run on another text."""

    text: str


def from_text(text: str) -> FromText:
    """Have a sweep patch each site from the same site in the run on another text, of as many tokens."""
    return FromText(text)


Change = Literal["zero", "mean"] | FromText


@dataclass(frozen=True)
class Grid:
    """Sites in rows and columns. ``layer`` is the one whose neurons are swept; None otherwise."""

    over: str
    kind: str
    change: Change
    n_layers: int
    n_heads: int
    n_pos: int
    layer: int | None = None
    d_mlp: int = 0

    @classmethod
    def of(
        cls,
        model: "Model",
        question: Question,
        over: str = "heads",
        kind: str | None = None,
        change: Change = "zero",
        layer: int | None = None,
    ) -> "Grid":
        """The grid of one model and text; raises SiteError or InterventionError for what can't be swept there."""
        n_pos = len(question.token_ids)
        if over not in KINDS_OVER:
            raise SiteError(f"over={over!r}: sweep over one of {', '.join(KINDS_OVER)}.")
        kind = KINDS_OVER[over][0] if kind is None else kind
        if kind not in KINDS_OVER[over]:
            raise SiteError(f"kind={kind!r} over {over}: use one of {', '.join(KINDS_OVER[over])}.")
        if change not in ("zero", "mean") and not isinstance(change, FromText):
            raise InterventionError(f"change={change!r}: use 'zero', 'mean' or from_text('text B').")
        if (layer is None) == (over == "neurons"):
            raise SiteError(
                "Neurons are swept in one layer: name it, layer=0."
                if layer is None
                else f"layer={layer}: only neurons are swept in one layer."
            )
        spec = model.spec
        grouped = "kv_head" in AXES[kind]
        grid = cls(
            over,
            kind,
            change,
            spec.n_layers,
            spec.n_kv_heads if grouped else spec.n_heads,
            n_pos,
            layer,
            spec.d_mlp,
        )
        if layer is not None:
            Site(kind, layer).check(spec)
        if isinstance(change, FromText):
            there = len(model.tokenize(change.text, question.bos))
            if there != n_pos:
                raise InterventionError(
                    f"Text B has {there} tokens, this one {n_pos}. A sweep patches position by position: "
                    "use texts of as many tokens."
                )
        model.check([grid.intervention(grid.site((0,) * len(grid.shape)))], n_pos)
        return grid

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes."""
        head = "kv_head" if "kv_head" in AXES[self.kind] else "head"
        return {
            "heads": ("layer", head),
            "layers_positions": ("layer", "pos"),
            "heads_positions": ("layer", head, "pos"),
            "layers": ("layer",),
            "neurons": ("neuron",),
        }[self.over]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        sizes = {"layer": self.n_layers, "pos": self.n_pos, "neuron": self.d_mlp}
        return tuple(sizes.get(axis, self.n_heads) for axis in self.axes)

    def __iter__(self) -> Iterator[Index]:
        return np.ndindex(self.shape)

    def site(self, index: Index) -> Site:
        """The site at a place of the grid."""
        at = dict(zip(self.axes, index, strict=True))
        return Site(
            self.kind,
            at.get("layer", self.layer),
            head=at.get("head", at.get("kv_head")),
            neuron=at.get("neuron"),
            position=at.get("pos"),
        )

    def intervention(self, site: Site) -> Intervention:
        """What is done at one site."""
        if isinstance(self.change, FromText):
            return Patch(site, site, self.change.text)
        return Ablate(site, self.change)
