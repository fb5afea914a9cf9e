"""Attribution: the metric's gradient, layer by layer from the top, and what changes of a grid are estimated from it."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from transpector.state.batch import Ground
from transpector.state.errors import InterventionError
from transpector.state.grid import Grid
from transpector.state.metric import Metric
from transpector.state.sites import Site
from transpector.state.wiring import LAST_RESID, Address, Pass, is_below

if TYPE_CHECKING:
    from transpector.state.run import Run

EMBED = ("embed", None)

Felt = dict[Address, tuple[Tensor, Tensor | None]]
"""Activations, batch left out, and the metric's gradient with respect to each; None where that is out of reach."""


def ground_of(run: "Run", metric: Metric) -> Ground:
    """What a way back from the metric begins with, on the worker."""
    model, writes = run.model, run.writes
    sources, _ = model.sources(run.question, writes)
    run = model.complete(run, {write.source_site.tensor for write in writes if write.reads_here})
    return Ground(model, run, metric, sources, origin=None, memory=0)


def attribution(ground: Ground, grid: Grid) -> "Iterator[Float[np.ndarray, '...']]":
    """Estimate the grid from its last layer down, yielding its array, axes as the grid's, after each.

    To first order a change of an activation from a to b moves the metric by (b − a) · d metric / d a: attribution
    patching, Nanda 2023; Syed, Rager and Conmy 2023, "Attribution Patching Outperforms Automated Circuit Discovery".
    Raises InterventionError where the metric has no gradient at the sites.
    """
    layers = range(grid.n_layers) if grid.layer is None else [grid.layer]
    out = np.full(grid.shape, np.nan, np.float32)
    for felt in backward(ground, [(grid.kind, layer) for layer in layers]):
        for at, (value, gradient) in felt.items():
            if gradient is None:
                raise InterventionError(
                    f"{grid.kind} can't be estimated in this model: its gradient is out of reach. "
                    "Sweep without an estimate."
                )
            site = Site(*at)
            change = (_changed(ground, grid, site, value) - value) * gradient
            summed = _summed(change, site.axes_of_kind, grid).float().cpu().numpy()
            out[... if grid.layer is not None else site.layer] = summed
        yield out.copy()


def backward(ground: Ground, wanted: Iterable[Address]) -> Iterator[Felt]:
    """Go back from the metric to the lowest wanted activation; yields those of each layer, from the last one down.

    The run has the residual stream before every layer, so each is done and gone back through on its own, and the
    memory is that of one. An activation is what it is after the run's own interventions, and its gradient passes
    back through those above it. The last residual stream comes with the last layer, the embedding by itself at the end.
    """
    wanted = set(wanted)
    gradient = _of_the_metric(ground)
    felt: Felt = {}
    if LAST_RESID in wanted:
        felt[LAST_RESID] = ground.run.activations[LAST_RESID], gradient[0]
    elsewhere: dict[Address, Tensor] = {}  # gradients of what higher layers read in this same run
    lowest = min(
        (0 if layer is None else layer for _, layer in wanted - {LAST_RESID}), default=ground.n_layers - 1
    )
    for layer in reversed(range(lowest, ground.n_layers)):
        here = [at for at in wanted if at[1] == layer]
        gradient, found = _through(ground, layer, here, gradient, elsewhere)
        yield felt | found
        felt = {}
    if EMBED in wanted:
        yield _to_the_embedding(ground, gradient, elsewhere)


def _of_the_metric(ground: Ground) -> Float[Tensor, "1 pos d_model"]:
    """The metric's gradient with respect to the last residual stream."""
    last = ground.run.activations[LAST_RESID]
    gradient = torch.zeros_like(last)
    positions = ground.readout.positions
    for at in range(0, len(positions), ground.n_unembedded):
        some = list(positions[at : at + ground.n_unembedded])
        with torch.enable_grad():
            rows = last[some].detach().requires_grad_()
            terms = ground.readout.terms(ground.model.stack.close(rows[:, None])[:, 0], some)
            (gradient[some],) = torch.autograd.grad(terms.sum() / len(positions), rows)
    return gradient[None]


def _through(
    ground: Ground, layer: int, wanted: list[Address], gradient: Tensor, elsewhere: dict[Address, Tensor]
) -> tuple[Tensor, Felt]:
    """The gradient with respect to the stream before a layer, given that after it, and what is wanted of the layer."""
    entry, after = ("resid_pre", layer), ("resid_pre", layer + 1)
    hooked = Pass(ground.model.stack, ground.model.wiring, ground.run.writes, ground.sources, keep=wanted)
    hooked.writes.pop(entry, None)  # the run has it as it is after them
    stream = ground.run.activations[entry][None].detach().requires_grad_()
    below = _leaves(ground, hooked, layer)
    with torch.enable_grad():
        # The gradient that is given is that of the stream as it was after the run's writes to it.
        end = hooked._change(after, hooked.visit(layer, stream, ground.calls(1, 0)[layer]))
        ends, weights = [end], [gradient]
        for address in [address for address in elsewhere if address[1] == layer]:
            ends.append(hooked.kept[address])
            weights.append(elsewhere.pop(address))
        values = [hooked.kept[at] for at in wanted]
        before, *found = _gradients(ends, weights, [stream, *values, *below.values()])
    for address, more in zip(below, found[len(values) :], strict=True):
        if more is not None:
            elsewhere[address] = elsewhere.get(address, 0) + more
    felt = {
        at: (value[0].detach(), None if of_value is None else of_value[0])
        for at, value, of_value in zip(wanted, values, found, strict=False)
    }
    return torch.zeros_like(stream) if before is None else before, felt


def _to_the_embedding(ground: Ground, gradient: Tensor, elsewhere: dict[Address, Tensor]) -> Felt:
    """What the tokens put into the stream, given the gradient with respect to the stream before the first layer."""
    hooked = Pass(ground.model.stack, ground.model.wiring, ground.run.writes, ground.sources)
    ids = ground.ids(0)

    def leaf(whole: Tensor, hook: object) -> Tensor:
        hooked.kept[EMBED] = hooked._change(EMBED, whole).detach().requires_grad_()
        return hooked.kept[EMBED]

    with torch.enable_grad():
        with ground.model.stack.hooked([("hook_embed", leaf)]):
            entry = ground.model.stack.open(ids)
        end, embed = hooked._change(("resid_pre", 0), entry.hidden), hooked.kept[EMBED]
        ends, weights = [end], [gradient]
        if EMBED in elsewhere:
            ends.append(embed)
            weights.append(elsewhere.pop(EMBED))
        (found,) = _gradients(ends, weights, [embed])
    return {EMBED: (embed[0].detach(), None if found is None else found[0])}


def _leaves(ground: Ground, hooked: Pass, layer: int) -> dict[Address, Tensor]:
    """What the run's interventions may read below a layer, put where a pass from that layer on looks for it."""
    below = [address for address in ground.read_here if is_below(address, layer)]
    for address in below:
        hooked.kept[address] = ground.run.tensor(address)[None].detach().requires_grad_()
    return {address: hooked.kept[address] for address in below}


def _gradients(ends: list[Tensor], weights: list[Tensor], starts: list[Tensor]) -> list[Tensor | None]:
    """Of the weighted ends with respect to each start; None where nothing leads from one to the other."""
    both = [(end, weight) for end, weight in zip(ends, weights, strict=True) if end.requires_grad]
    usable = [start for start in starts if start.requires_grad]
    if not both or not usable:
        return [None] * len(starts)
    ends, weights = zip(*both, strict=True)
    found = iter(torch.autograd.grad(ends, usable, weights, allow_unused=True))
    return [next(found) if start.requires_grad else None for start in starts]


def _changed(ground: Ground, grid: Grid, site: Site, value: Tensor) -> Tensor:
    """An activation with the grid's change made at all its sites together."""
    source = None
    if ground.origin is not None:
        source = ground.origin.tensor(site.tensor).to(value.device, value.dtype)
    return grid.intervention(site).apply(value, source)


def _summed(change: Tensor, axes: tuple[str, ...], grid: Grid) -> Tensor:
    """Summed over the axes that the grid does not have."""
    named = [{"d_mlp": "neuron", "query": "pos"}.get(axis, axis) for axis in axes]
    others = [at for at, axis in enumerate(named) if axis not in grid.axes]
    kept = [axis for axis in named if axis in grid.axes]
    summed = change.sum(others) if others else change
    return summed.permute([kept.index(axis) for axis in grid.axes if axis != "layer"])
