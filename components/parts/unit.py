"""Unit: the one neuron, or the one dimension of the residual stream, that is selected, and what it is called."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transpector.state.errors import SiteError
from transpector.state.sites import Site


def scalar_of(selection: Sequence[str]) -> Site | None:
    """The selected neuron or dimension, at its position if it has one; None if anything else is selected."""
    try:
        site = Site.parse(selection[0]) if len(selection) == 1 else None
    except SiteError:  # a part that is no site, or a whole layer
        return None
    return site if site is not None and site.is_scalar else None


def unit_of(selection: Sequence[str], spec: Any) -> Site | None:
    """The selected neuron or dimension at all positions; None if anything else is selected, or the model lacks it."""
    site = scalar_of(selection)
    if site is None:
        return None
    try:
        site.check(spec)
    except SiteError:  # of another model
        return None
    return replace(site, position=None)


def name_of(site: Site) -> str:
    """What a neuron or a dimension is called: L5N311, or L5D37.resid_pre."""
    name = str(site)
    return name.removesuffix(".mlp_post") if site.neuron is not None else name
