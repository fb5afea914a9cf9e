"""Touched: the heads and the positions that a change at a site is a change of."""

from collections.abc import Sequence
from typing import Any

from transpector.state.sites import Site


def heads_of(site: Site, spec: Any) -> Sequence[int]:
    """Heads of the site's layer; those that share a key-value head; none where the site is of no head."""
    axes = site.axes_of_kind
    if not {"head", "kv_head"} & set(axes):
        return ()
    if site.head is None:
        return range(spec.n_heads)
    shared = spec.n_heads // spec.n_kv_heads if "kv_head" in axes else 1
    return range(site.head * shared, (site.head + 1) * shared)


def positions_of(site: Site, n_pos: int) -> range:
    """Positions of a text that the site is at; none where it lies beyond."""
    at = site.index[site.position_axis]
    if isinstance(at, slice):
        return range(n_pos)[at]
    return range(n_pos)[at % n_pos :][:1] if -n_pos <= at < n_pos else range(0)
