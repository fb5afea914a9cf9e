"""Attribution: what every change of a grid would do to the metric, estimated from gradients."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from transpector.state.batch import Ground
from transpector.state.errors import InterventionError
from transpector.state.grid import Grid
from transpector.state.sites import Site
from transpector.state.wiring import LAST_RESID, Address, Pass, is_below


def attribution(ground: Ground, grid: Grid) -> "Iterator[Float[np.ndarray, '...']]":
    """Estimate the grid from its last layer down, yielding its array, axes as the grid's, after each.

    To first order a change of an activation from a to b moves the metric by (b − a) · d metric / d a: attribution
    patching, Nanda 2023; Syed, Rager and Conmy 2023, "Attribution Patching Outperforms Automated Circuit Discovery".
    The run has the residual stream before every layer, so each is done and gone back through on its own, and the
    memory is that of one. Raises InterventionError where the metric has no gradient at the sites.
    """
    layers = range(grid.n_layers) if grid.layer is None else [grid.layer]
    out = np.full(grid.shape, np.nan, np.float32)
    gradient = _of_the_metric(ground)
    elsewhere: dict[Address, Tensor] = {}  # gradients of what higher layers read in this same run
    for layer in reversed(range(min(layers), ground.n_layers)):
        at = (grid.kind, layer) if layer in layers else None
        value, gradient, of_value = _through(ground, layer, at, gradient, elsewhere)
        if at is not None:
            if of_value is None:
                raise InterventionError(
                    f"{grid.kind} can't be estimated in this model: its gradient is out of reach. "
                    "Sweep without an estimate."
                )
            site = Site(*at)
            change = (_changed(ground, grid, site, value) - value) * of_value[0]
            summed = _summed(change, site.axes_of_kind, grid).float().cpu().numpy()
            out[... if grid.layer is not None else layer] = summed
        yield out.copy()


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
    ground: Ground, layer: int, wanted: Address | None, gradient: Tensor, elsewhere: dict[Address, Tensor]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The wanted activation of a layer, and the gradients with respect to the stream before it and to that."""
    run, entry = ground.run, ("resid_pre", layer)
    hooked = Pass(
        ground.model.stack,
        ground.model.wiring,
        run.interventions,
        ground.sources,
        keep=[wanted] if wanted else [],
    )
    hooked.writes.pop(entry, None)  # the run has it as it is after them
    stream = run.activations[entry][None].detach().requires_grad_()
    below = [address for address in ground.read_here if is_below(address, layer)]
    for address in below:
        hooked.kept[address] = run.tensor(address)[None].detach().requires_grad_()
    with torch.enable_grad():
        after = hooked.visit(layer, stream, ground.calls(1, 0)[layer])
        ends, weights = [after], [gradient]
        for address in [address for address in elsewhere if address[1] == layer]:
            if hooked.kept[address].requires_grad:
                ends.append(hooked.kept[address])
                weights.append(elsewhere.pop(address))
        value = hooked.kept[wanted] if wanted else stream
        starts = [stream, value, *(hooked.kept[address] for address in below)]
        usable = [start for start in starts if start.requires_grad]
        found = iter(torch.autograd.grad(ends, usable, weights, allow_unused=True))
        gradients = [next(found) if start.requires_grad else None for start in starts]
    for address, more in zip(below, gradients[2:], strict=True):
        if more is not None:
            elsewhere[address] = elsewhere.get(address, 0) + more
    before = torch.zeros_like(stream) if gradients[0] is None else gradients[0]
    return value[0].detach(), before, gradients[1]


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
