"""Batch: many passes over one text at once, each with one intervention more, and each begun where it differs."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from transpector.state.errors import TextError
from transpector.state.grid import Grid, Index
from transpector.state.interventions import Ablate, Intervention, Patch
from transpector.state.metric import Metric, Readout
from transpector.state.past import KeysValues, caught, earlier
from transpector.state.run import Run, forward
from transpector.state.stack import Call
from transpector.state.wiring import LAST_RESID, Address, Pass, is_below

if TYPE_CHECKING:
    from transpector.state.models import Model

# Tokens that are worth doing at once: more are no quicker, and others would wait longer for their turn.
TOKENS = {"cuda": 16_384, "other": 2048}
TOKENS_UNEMBEDDED = {"cuda": 4096, "other": 256}
TOKENS_A_STEP = 64  # what it costs to do a layer at all, in tokens through it


@dataclass
class Ground:
    """What all passes of a sweep share: the run that they differ from, and how they are read. On the worker."""

    model: "Model"
    run: Run
    metric: Metric
    sources: Mapping[Intervention, Tensor]
    """What the run's own interventions read from other runs."""
    origin: Run | None
    """The run that the sweep's change reads from, if it reads from one."""
    memory: int
    """Bytes that passes may take beside the model and the runs."""
    _calls: dict[tuple[int, int], tuple[Call, ...]] = field(default_factory=dict)

    @cached_property
    def readout(self) -> Readout:
        """The metric on this text."""
        return self.metric.on(self.model.text, self.run.question.token_ids)

    @cached_property
    def terms(self) -> Float[Tensor, " read"]:
        """The readout's terms of the run."""
        return self.read(self.run.activations[LAST_RESID][None], self.readout.positions, 0)[0]

    @cached_property
    def past(self) -> tuple[KeysValues, ...]:
        """Keys and values of the run, which has no interventions where this is asked."""
        return self.model.stack.past(self.ids(0))

    @cached_property
    def read_here(self) -> frozenset[Address]:
        """What the run's own interventions read in the same run."""
        return frozenset(i.source_site.tensor for i in self.run.interventions if i.reads_here)

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return self.model.spec.n_layers

    def ids(self, first: int) -> Tensor:
        """Token ids from a position on, [1, pos]."""
        return torch.tensor([self.run.question.token_ids[first:]], device=self.model.spec.device)

    def calls(self, rows: int, first: int) -> tuple[Call, ...]:
        """The blocks, ready for so many rows of the text from a position on."""
        if (rows, first) not in self._calls:
            if any(other != first for _, other in self._calls):
                self._calls.clear()
            past = earlier(self.past, first) if first else None
            self._calls[rows, first] = self.model.stack.open(self.ids(first).expand(rows, -1), past).calls
        return self._calls[rows, first]

    def read(
        self, hidden: Float[Tensor, "row pos d_model"], positions: Sequence[int], first: int
    ) -> Float[Tensor, "row read"]:
        """The readout's terms at some positions, from the last residual of the positions from ``first`` on."""
        return torch.cat(list(self.reading(hidden, positions, first))).unflatten(0, (len(hidden), -1))

    def reading(
        self, hidden: Float[Tensor, "row pos d_model"], positions: Sequence[int], first: int
    ) -> Iterator[Tensor]:
        """The same a few at a time: only the rows of logits that are read are ever made, and never all at once."""
        tokens = hidden[:, [position - first for position in positions]].flatten(0, 1)
        where = list(positions) * len(hidden)
        for at in range(0, len(where), self.n_unembedded):
            logits = self.model.stack.close(tokens[at : at + self.n_unembedded, None])[:, 0]
            yield self.readout.terms(logits, where[at : at + self.n_unembedded])

    @property
    def n_unembedded(self) -> int:
        """How many tokens are unembedded at once."""
        return _on(self.model, TOKENS_UNEMBEDDED)

    def bytes_a_row(self, tokens: int) -> int:
        """An estimate of what one pass over so many tokens takes at most, beside the others."""
        spec = self.model.spec
        itemsize = self.run.activations[LAST_RESID].element_size()
        widest = 12 * spec.d_model + 4 * spec.d_mlp + len(self.read_here) * spec.d_model
        return itemsize * tokens * (widest + 4 * spec.n_heads * self.run.n_pos)


@dataclass
class Batch:
    """Cells of a grid whose passes go together, over the positions from ``first`` on; ``values`` once walked."""

    ground: Ground
    cells: Sequence[tuple[Index, Intervention]]
    first: int = 0
    values: dict[Index, float] = field(default_factory=dict)

    @property
    def n_tokens(self) -> int:
        """Tokens of each pass."""
        return self.ground.run.n_pos - self.first

    @cached_property
    def positions(self) -> list[int]:
        """Positions read that the passes can change."""
        return [position for position in self.ground.readout.positions if position >= self.first]

    @property
    def work(self) -> float:
        """What there is to do, in tokens through a layer."""
        if not self.positions:
            return 0.0
        layers = sum(self.ground.n_layers - cell.site.layer for _, cell in self.cells)
        return layers * self.n_tokens + self._unembedding * len(self.cells) * len(self.positions)

    @property
    def _unembedding(self) -> float:
        spec = self.ground.model.spec
        return spec.d_vocab * spec.d_model * self.ground.n_layers / max(1, spec.n_params)

    def walk(self) -> Iterator[float]:
        """Do it, layer by layer; yields the work done by each step. Nothing stays set on the model in between."""
        if not self.positions:  # a change can't reach what comes before it
            self.values = {index: 0.0 for index, _ in self.cells}
            return
        ground = self.ground
        if not ground.model.wiring.by_layer:
            yield from self._one_by_one()
            return
        hooked = Pass(ground.model.stack, ground.model.wiring, ground.run.writes, ground.sources)
        entering = defaultdict(list)
        for cell in self.cells:
            entering[cell[1].site.layer].append(cell)
        order: list[Index] = []
        hidden = None
        last, first = ground.n_layers - 1, self.first
        for layer in range(min(entering), ground.n_layers):
            if layer in entering:
                hidden = self._enter(hooked, layer, hidden, [cell for _, cell in entering[layer]])
                order += [index for index, _ in entering[layer]]
            if layer == last and len(self.positions) == 1 and self._is_plain(hooked, layer):
                hidden, first = self._only_read(hidden), self.positions[0]
            else:
                hidden = hooked.visit(layer, hidden, ground.calls(len(hidden), self.first)[layer])
            yield len(hidden) * self.n_tokens
        del hooked
        terms = []
        for some in ground.reading(hidden, self.positions, first):
            terms.append(some)
            yield self._unembedding * len(some)
        unchanged = len(ground.readout.positions) - len(self.positions)
        change = torch.cat(terms).unflatten(0, (len(order), -1)) - ground.terms[unchanged:]
        values = change.sum(-1) / len(ground.readout.positions)
        self.values = dict(zip(order, values.tolist(), strict=True))

    def _enter(
        self, hooked: Pass, layer: int, hidden: Tensor | None, cells: list[Intervention]
    ) -> Float[Tensor, "row pos d_model"]:
        """Add the rows that first differ at this layer: up to here they are the run."""
        run, at = self.ground.run, ("resid_pre", layer)
        old = 0 if hidden is None else len(hidden)
        # The run's residual stream has felt its own writes to it.
        hooked.writes[at] = [(intervention, slice(0, old)) for intervention, _ in hooked.writes[at]]
        for row, cell in enumerate(cells, old):
            cell_here = _moved(cell, -self.first) if self.first else cell
            if self.ground.origin is not None:
                hooked.sources[cell_here] = self.ground.origin.tensor(cell.source_site.tensor)
            hooked.write(cell_here, slice(row, row + 1))
        for address in self.ground.read_here:
            if is_below(address, layer):
                known = [hooked.kept[address]] if old else []
                fresh = run.tensor(address)
                hooked.kept[address] = torch.cat([*known, fresh.expand(len(cells), *fresh.shape)])
        fresh = run.activations[at][self.first :].expand(len(cells), -1, -1)
        return fresh if hidden is None else torch.cat([hidden, fresh])

    def _is_plain(self, hooked: Pass, layer: int) -> bool:
        """Whether a layer is done as it is, and for some positions only if one likes."""
        ground = self.ground
        written = any(writes and at[1] == layer for at, writes in hooked.writes.items())
        return ground.model.wiring.by_position and not ground.run.interventions and not written

    def _only_read(self, hidden: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row 1 d_model"]:
        """The stream after the last layer at the one position that is read; of the others keys and values suffice."""
        ground, rows, at = self.ground, len(hidden), self.positions[0]
        last = ground.n_layers - 1
        catching = earlier(ground.past, self.first, catching=True)
        ids = ground.ids(self.first).expand(rows, -1)
        all_of_it = ground.model.stack.open(ids, catching).calls[last]
        by_layer = list(ground.past)
        by_layer[last] = caught(lambda: all_of_it(hidden))
        one = ground.model.stack.open(ids[:, at - self.first :][:, :1], earlier(by_layer, at)).calls[last]
        return one(hidden[:, at - self.first :][:, :1])

    def _one_by_one(self) -> Iterator[float]:
        ground = self.ground
        before = ground.metric.of(ground.run)
        for index, cell in self.cells:
            question = replace(ground.run.question, interventions=(*ground.run.interventions, cell))
            sources = dict(ground.sources)
            if ground.origin is not None:
                sources[cell] = ground.origin.tensor(cell.source_site.tensor)
            run = forward(ground.model, question, sources=sources)
            self.values[index] = ground.metric.of(run) - before
            yield self.work / len(self.cells)


def batches(ground: Ground, grid: Grid, indices: Sequence[Index]) -> list[Batch]:
    """Cells of a grid in batches that fit the memory, the quickest first; raises TextError if not one pass fits."""
    cells = [(index, grid.intervention(grid.site(index))) for index in indices]
    wiring = ground.model.wiring
    through_z = grid.kind == "pattern" and wiring.pattern_through_z
    # What another position's keys and values would be is known only where nothing else is changed.
    if "pos" in grid.axes and wiring.by_position and not ground.run.interventions and not through_z:
        by_first = _by_first(ground, cells)
    else:
        by_first = {0: cells}
    most = _on(ground.model, TOKENS)
    found = []
    for first, together in sorted(by_first.items(), reverse=True):
        tokens = ground.run.n_pos - first
        need = ground.bytes_a_row(tokens)
        if need > ground.memory:
            raise TextError(
                f"One pass over {tokens:,} tokens takes about {need / 1e6:,.0f} MB beside the model; a sweep may "
                f"take {ground.memory / 1e6:,.0f} MB. Shorten the text, or give the sweep more memory."
            )
        rows = max(1, min(most // tokens, ground.memory // need))
        together.sort(key=lambda cell: -cell[1].site.layer)
        found += [Batch(ground, together[at : at + rows], first) for at in range(0, len(together), rows)]
    return found


def _on(model: "Model", by_device: Mapping[str, int]) -> int:
    return by_device.get(torch.device(model.spec.device).type, by_device["other"])


def _by_first(ground: Ground, cells: Sequence[tuple[Index, Intervention]]) -> dict[int, list]:
    """Cells by the position from which their passes are done, which may be a little before that of their change.

    To do a few positions more than need be is quicker than to do their layers once more with few rows.
    """
    by_position = defaultdict(list)
    for cell in cells:
        by_position[cell[1].site.position].append(cell)
    last = max(ground.readout.positions)
    found: dict[int, list] = {}
    first = -1
    for position, together in sorted(by_position.items()):
        layers = sum(ground.n_layers - cell.site.layer for _, cell in together)
        more = (position - first) * layers
        # What comes after all that is read is not to be done at all.
        if first < 0 or more > TOKENS_A_STEP * ground.n_layers or (first <= last < position):
            first = position
        found.setdefault(first, []).extend(together)
    return found


def _moved(cell: Ablate | Patch, by: int) -> Intervention:
    """The same where positions are counted from elsewhere; what it reads stays where it is."""
    site = replace(cell.site, position=cell.site.position + by)
    return replace(cell, target=site) if isinstance(cell, Patch) else replace(cell, site=site)
