"""Sweep: the metric under many interventions, one at a time, as results arrive."""

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakSet

import numpy as np
import torch
from jaxtyping import Float
from tqdm import tqdm

from transpector.state.attribution import attribution
from transpector.state.batch import Ground, batches
from transpector.state.errors import InterventionError, TextError
from transpector.state.grid import Change, FromText, Grid, Index
from transpector.state.interventions import Intervention, Question
from transpector.state.metric import Metric
from transpector.state.task import Task

if TYPE_CHECKING:
    import pandas as pd

    from transpector.state.models import Model
    from transpector.state.session import Session


def sweep(
    session: "Session",
    over: str = "heads",
    kind: str | None = None,
    change: Change = "zero",
    estimate: bool = False,
    *,
    layer: int | None = None,
    memory: int | None = None,
) -> "Sweep":
    """Begin to measure what one change does at every site in turn, beside the session's own interventions.

    ``over`` is heads, layers_positions, heads_positions, layers, or neurons (of one ``layer``); ``kind`` is the kind
    of site, z, resid_pre, z, mlp_out or mlp_post unless named; ``change`` is zero, mean or ``from_text("text B")``.
    With ``estimate`` gradients give the whole map at the cost of about three passes; ``Sweep.verify`` then runs the
    largest. ``memory`` is what passes may take beside the model, bytes. Raises TranspectorError.
    """
    question, model = session.question, session.model
    grid = Grid.of(model, question, over, kind, change, layer)
    return Sweep(model, question, session.metric, grid, session.tasks, estimated=estimate, memory=memory)


class _Bar(tqdm):
    monitor_interval = 0  # no thread of tqdm's own


@dataclass
class _Done:
    """How far a sweep is."""

    cells: int = 0
    work: float = 0.0
    total: float = 0.0


class Sweep(Task):
    """A causal map in the making. Its numbers are metric after − metric before, NaN where not known yet.

    It goes behind everybody's runs on the model's worker, a layer of a batch at a time, and may be iterated over
    (partial arrays, with a progress bar), waited for with ``result``, or given up with ``cancel``.
    """

    noun: ClassVar = "sweep"

    def __init__(
        self,
        model: "Model",
        question: Question,
        metric: Metric,
        grid: Grid,
        siblings: "WeakSet[Task]",
        *,
        estimated: bool = False,
        only: Iterable[Index] | None = None,
        estimate: Float[np.ndarray, "..."] | None = None,
        memory: int | None = None,
    ):
        metric.on(model.text, question.token_ids)  # raises what is wrong with it here
        super().__init__(model, siblings)
        self.question, self.metric, self.grid = question, metric, grid
        self.estimated = estimated
        self.estimate = estimate
        """The array that the largest were chosen from to be run; None if nothing was estimated."""
        self._memory = _memory(model) if memory is None else memory
        self._indices = list(grid) if only is None else list(only)
        self._values = np.full(grid.shape, np.nan, np.float32)
        self._done = _Done()
        self._submit()

    def __repr__(self) -> str:
        return f"<Sweep {self.grid.kind} over {self.grid.over}, {self.change}: {self.done} of {self.total}, {self.state}>"

    # What there is to know

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the array's axes."""
        return self.grid.axes

    @property
    def array(self) -> Float[np.ndarray, "..."]:
        """Metric after − metric before at every site, NaN where not known; float32, a copy."""
        with self._changed:
            return self._values.copy()

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return np.asarray(self.array, dtype)

    @property
    def frame(self) -> "pd.DataFrame":
        """A row a known site: its place by axis, ``site``, ``change``, and ``estimate`` where there is one."""
        import pandas as pd

        array = self.array
        known = [index for index in self._indices if not math.isnan(array[index])]
        columns = {axis: [index[at] for index in known] for at, axis in enumerate(self.axes)}
        columns |= {"site": [str(self.grid.site(index)) for index in known]}
        name = "estimate" if self.estimated else "change"
        columns |= {name: np.array([array[index] for index in known], np.float32)}
        if self.estimate is not None:
            columns |= {"estimate": np.array([self.estimate[index] for index in known], np.float32)}
        return pd.DataFrame(columns)

    @property
    def change(self) -> str:
        """What is done at each site, in a few words."""
        change = self.grid.change
        return f"from “{change.text}”" if isinstance(change, FromText) else change

    @property
    def done(self) -> int:
        """Sites measured."""
        return self._done.cells

    @property
    def total(self) -> int:
        """Sites to measure."""
        return len(self._indices)

    @property
    def fraction(self) -> float:
        """How much of the work is done, 0 to 1."""
        return min(1.0, self._done.work / self._done.total) if self._done.total else 0.0

    @property
    def remaining(self) -> float | None:
        """Seconds that it will still take, judged by what it took so far; None until that says something."""
        if self.is_over:
            return 0.0
        return self.elapsed * (1 / self.fraction - 1) if self.fraction > 0.02 else None

    @property
    def agreement(self) -> float | None:
        """Spearman's rank correlation of what was run with its estimate; None without one, or with fewer than two."""
        if self.estimate is None:
            return None
        import pandas as pd

        array = self.array
        known = ~np.isnan(array)
        if known.sum() < 2:
            return None
        ranks = [pd.Series(values[known]).rank() for values in (array, self.estimate)]
        return float(ranks[0].corr(ranks[1]))

    def intervention(self, index: Index) -> Intervention:
        """What was done at a place of the array, to be kept in a session's interventions."""
        return self.grid.intervention(self.grid.site(index))

    # What can be done

    def __iter__(self) -> Iterator[Float[np.ndarray, "..."]]:
        with _Bar(total=self.total, unit="site", desc=f"{self.grid.kind} over {self.grid.over}") as bar:
            over = False
            while not over:
                with self._changed:
                    self._changed.wait_for(lambda: self.done > bar.n or self.is_over)
                    done, over = self.done, self.is_over
                bar.update(done - bar.n)
                yield self.array
        self.result()

    def verify(self, k: int = 20) -> "Sweep":
        """Run the k sites whose estimates are largest; the new sweep has both, and their ``agreement``."""
        if not self.estimated:
            raise InterventionError("Only an estimate can be verified: begin the sweep with estimate=True.")
        estimate = self.array
        if np.isnan(estimate).all():
            raise InterventionError("There is nothing to verify yet: wait for the estimate.")
        flat = np.nan_to_num(np.abs(estimate)).ravel()
        largest = np.argsort(-flat, kind="stable")[: max(1, k)]
        only = [tuple(int(at) for at in np.unravel_index(place, estimate.shape)) for place in largest]
        return Sweep(
            self.model,
            self.question,
            self.metric,
            self.grid,
            self._siblings,
            only=only,
            estimate=estimate,
            memory=self._memory,
        )

    # How it is done

    def _walked(self) -> Iterator[None]:
        ground = self._ground()
        yield
        if self.estimated:
            yield from self._estimate(ground)
            return
        planned = batches(ground, self.grid, self._indices)
        self._done.total = sum(batch.work for batch in planned)
        for batch in planned:
            for work in batch.walk():
                self._done.work += work
                self._tell()
                yield
            self._learn(batch.values)
            batch.values = {}

    def _ground(self) -> Ground:
        model, question = self.model, self.question
        sources, _ = model.sources(question, question.interventions)
        here = {i.source_site.tensor for i in question.interventions if i.reads_here}
        run = model.answer(question, frozenset(here))
        first = self.grid.intervention(self.grid.site(self._indices[0]))
        origin = None
        for elsewhere in first.origins(question, model.tokenize):
            addresses = {self.grid.site(index).tensor for index in self._indices}
            origin = model.answer(elsewhere, frozenset(addresses))
        return Ground(model, run, self.metric, sources, origin, self._memory)

    def _estimate(self, ground: Ground) -> Iterator[None]:
        if not self.model.wiring.by_layer:
            raise InterventionError(
                "This architecture can't be estimated: its layers can't be done one by one."
            )
        need = 3 * ground.bytes_a_row(ground.run.n_pos)
        if need > self._memory:
            raise TextError(
                f"An estimate on {ground.run.n_pos:,} tokens takes about {need / 1e6:,.0f} MB beside the model; it may "
                f"take {self._memory / 1e6:,.0f} MB. Shorten the text, or give it more memory."
            )
        self._done.total = ground.n_layers
        for array in attribution(ground, self.grid):
            self._done.work += 1
            known = {index: float(array[index]) for index in self._indices if not math.isnan(array[index])}
            self._learn(known)
            yield

    def _learn(self, values: dict[Index, float]) -> None:
        with self._changed:
            if self.is_over:  # given up meanwhile
                return
            for index, value in values.items():
                self._values[index] = value
            self._done.cells = int((~np.isnan(self._values)).sum())
        self._tell()


def _memory(model: "Model") -> int:
    """What a sweep may take beside the model unless it is told, bytes: ``TRANSPECTOR_SWEEP_MEMORY`` MB, or 512 MB.

    On an accelerator it is a quarter of what is free there.
    """
    if "TRANSPECTOR_SWEEP_MEMORY" in os.environ:
        return int(float(os.environ["TRANSPECTOR_SWEEP_MEMORY"]) * 1e6)
    device = torch.device(model.spec.device)
    return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else 512_000_000
