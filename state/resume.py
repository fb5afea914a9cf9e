"""Resume: from which layer on a pass must be done, given a run on the same tokens."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from transpector.state.interventions import Intervention
from transpector.state.sites import Site
from transpector.state.wiring import Address

if TYPE_CHECKING:
    from transpector.state.run import Run

N_COMPARED = 16


@dataclass(frozen=True)
class Start:
    """The layer at which a pass begins, and the run that it has everything before that layer from."""

    run: "Run"
    layer: int

    def remaining(self, interventions: Iterable[Intervention]) -> list[Intervention]:
        """Those that the pass still has to apply; the residual stream that it begins with has felt the others."""
        entry = Site("resid_pre", self.layer)
        felt = entry.tensor in _by_address(self.run.writes)
        return [
            i for i in interventions if i.site.rank > entry.rank or (i.site.rank == entry.rank and not felt)
        ]


def best_start(
    runs: Iterable["Run"], writes: Iterable[Intervention], needed: Iterable[Address]
) -> Start | None:
    """The highest start that any of the runs on the same tokens allows; None if none saves a layer.

    ``needed`` is what the pass must have of the layers that it leaves out.
    """
    needed, wanted = set(needed), _by_address(writes)
    # Among the newest are the baseline and what was just changed; to compare hundreds would cost what it saves.
    starts = [Start(run, _first_layer(run, wanted, needed)) for run in islice(runs, N_COMPARED)]
    best = max(starts, key=lambda start: start.layer, default=None)
    return best if best is not None and best.layer > 0 else None


def _first_layer(run: "Run", wanted: "dict[Address, list[Intervention]]", needed: set[Address]) -> int:
    """The lowest layer that may differ from the run's, or that the run does not know enough of."""
    given = _by_address(run.writes)
    differ = {at for at in wanted.keys() | given.keys() if wanted.get(at) != given.get(at)}
    differ |= {at for at in needed if at not in run.activations}
    first = min((-1 if layer is None else layer for _, layer in differ), default=run.model.spec.n_layers - 1)
    if ("resid_pre", first) in differ and ("resid_pre", first) in given:
        first -= 1  # the run knows the residual stream only as it was after its own writes
    return first if ("resid_pre", first) in run.activations else 0


def _by_address(interventions: Iterable[Intervention]) -> dict[Address, list[Intervention]]:
    writes: dict[Address, list[Intervention]] = defaultdict(list)
    for intervention in interventions:
        writes[intervention.site.tensor].append(intervention)
    return dict(writes)
