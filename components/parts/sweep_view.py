"""Sweep view: what a page says of a sweep: its title, the names of its places, and the best number of each."""

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from transpector.components.base import figures, visible
from transpector.state.grid import Index
from transpector.state.sites import Site

DONE = {"zero": "set to zero", "mean": "set to its mean", "text-b": "patched from text B"}
EACH = {
    "heads": "head by head",
    "layers_positions": "by layer and position",
    "heads_positions": "by head and position",
    "layers": "layer by layer",
    "neurons": "neurons of layer {}",
}


class SweepView:
    """A sweep as it is shown; ``estimated`` is itself, or the estimate whose largest it has run, or None."""

    def __init__(self, sweep: Any, estimated: Any = None):
        self.sweep, self.grid, self.unit = sweep, sweep.grid, sweep.metric.unit
        self.estimated = sweep if sweep.estimated else None if sweep.estimate is None else estimated
        change = self.grid.change
        self.change = change if isinstance(change, str) else "text-b"

    @property
    def n_axes(self) -> int:
        """1 for bars, 2 for a heat map, 3 for one that shows a position of each head."""
        return len(self.grid.shape)

    @property
    def filename(self) -> str:
        """What its files are called, without what kind of file."""
        grid = self.grid
        layer = [] if grid.layer is None else [f"L{grid.layer}"]
        estimate = ["estimate"] if self.estimated else []
        name = ["transpector", grid.over, *layer, grid.kind, self.change, *estimate]
        return "-".join(name).replace("_", "-")

    def title(self, where: str) -> tuple[str, str]:
        """What is shown, in two lines; ``where`` says at which positions."""
        sweep, grid, metric = self.sweep, self.grid, self.sweep.metric
        title = f"{grid.kind} {DONE[self.change]}, {EACH[grid.over].format(grid.layer)}"
        n = len(sweep.question.interventions)
        beside = f", beside {n} intervention{'s' * (n > 1)}" if n else ""
        says = [f"change of {metric.label} ({metric.unit}){beside}", where]
        if self.estimated:
            title = f"Estimate: {title}"
            run = (
                "" if sweep.estimated else "; pale unless run" if self.n_axes == 1 else "; dots: run exactly"
            )
            says.append("first order, from gradients" + run)
        return title, " · ".join(filter(None, says))

    def names(self) -> tuple[list[str], list[str], tuple[list[str], list[str]], list[str]]:
        """Labels of the rows and of the columns, the two halves of each address, and the tokens."""
        grid, sweep = self.grid, self.sweep
        layers = [f"L{layer}" for layer in range(grid.n_layers)]
        pieces = visible(sweep.model.pieces(sweep.question.token_ids)) if "pos" in grid.axes else []
        if grid.over == "neurons":
            return [], [], ([], [f"L{grid.layer}N{at}.{grid.kind}" for at in range(grid.d_mlp)]), []
        if grid.over == "layers":
            return layers, [], ([f"{layer}.{grid.kind}" for layer in layers], []), []
        if grid.over == "layers_positions":
            places = [f"@{at}" for at in range(grid.n_pos)]
            return layers, pieces, ([f"{layer}.{grid.kind}" for layer in layers], places), pieces
        heads = [f"H{head}" for head in range(grid.n_heads)]
        return layers, heads, (layers, [f"{head}.{grid.kind}" for head in heads]), pieces

    def numbers(self) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."] | None]:
        """The best number known of each site; and of those that were run, the estimate, if there is one."""
        array, estimate = self.sweep.array, self.sweep.estimate
        if estimate is None:
            return array, None
        run = np.isfinite(array)
        return np.where(run, array, estimate), np.where(run, estimate, np.float32(np.nan))

    def place(
        self, values: Float[np.ndarray, "..."], position: int | None
    ) -> Int[np.ndarray, "row col"] | None:
        """The position that is shown of each head: one for all, or the one of its largest change."""
        if self.n_axes < 3:
            return None
        if position is None:
            return np.abs(np.nan_to_num(values)).argmax(-1)
        return np.full(self.grid.shape[:2], position % self.grid.n_pos)

    def rows(
        self, values: Float[np.ndarray, "..."], estimate: Float[np.ndarray, "..."] | None, most: int
    ) -> tuple[list[Index], list[dict[str, Any]]]:
        """The largest changes, in order, or all that were run beside an estimate: where, and as rows of a list."""
        ranked = values if estimate is None else np.where(np.isfinite(estimate), values, np.nan)
        size = np.nan_to_num(np.abs(ranked), nan=-1).ravel()
        n = min(size.size, most if estimate is None else self.sweep.total)
        places = np.argpartition(-size, n - 1)[:n]
        places = places[np.argsort(-size[places], kind="stable")]
        found = [tuple(map(int, np.unravel_index(at, values.shape))) for at in places if size[at] >= 0]
        rows = []
        for index in found:
            site, value = str(self.grid.site(index)), float(values[index])
            row = {"site": site, "change": value, "label": figures(value, signed=True)}
            row["hint"] = f"{site}: {value:+.6f} {self.unit}"
            if estimate is not None:
                row["estimate"] = figures(float(estimate[index]), signed=True)
                row["hint"] += f", estimate {float(estimate[index]):+.6f}"
            rows.append(row)
        return found, rows

    def says(self, index: Index) -> str:
        """The number of one site in words."""
        values, estimate = self.numbers()
        value, guess = float(values[index]), float("nan") if estimate is None else float(estimate[index])
        if np.isnan(value):
            return "not yet"
        said = f"{figures(value, signed=True)} {self.unit}"
        if not np.isnan(guess):
            return f"{said}, estimate {figures(guess, signed=True)}"
        return f"{said} (estimate)" if self.estimated else said

    def progress(self) -> str:
        """How far it is, how long it has taken, and how long it will."""
        sweep = self.sweep
        sites = f"{sweep.total:,} " + (
            "largest" if sweep.estimate is not None else "site" + "s" * (sweep.total != 1)
        )
        took = f"{sweep.elapsed:.1f} s"
        if sweep.state == "failed":
            return ""
        if sweep.state == "cancelled":
            return f"Cancelled: {sweep.done:,} of {sites}, {took}"
        if sweep.state == "done":
            return f"{sites}{' estimated' if sweep.estimated else ''} in {took}"
        left = sweep.remaining
        about = "" if left is None else f" · about {left:.1f} s left"
        return f"{sweep.done:,} of {sites} · {took}{about}"

    def agreement(self) -> str:
        """How well the estimate ranks what was run; nothing where there is no estimate of it."""
        sweep = self.sweep
        if sweep.estimate is None:
            return ""
        found = sweep.agreement
        number = "–" if found is None or found != found else f"{found:.2f}".replace("-", "−")
        return f"{sweep.done:,} largest run exactly: rank correlation with the estimate {number}"

    def selection(self, index: Index) -> dict[str, Any]:
        """What a session selects with a site: its head and its position; a key-value head stands for its first."""
        at = dict(zip(self.grid.axes, index, strict=True))
        selected: dict[str, Any] = {}
        if self.grid.over.startswith("heads"):
            shared = self.sweep.model.spec.n_heads // self.grid.n_heads
            selected["head"] = index[0], index[1] * shared
        if "pos" in at:
            selected["position"] = at["pos"]
        return selected

    def of_head(self, head: tuple[int, int]) -> Index | None:
        """The row and the column of a head, where there are heads."""
        if not self.grid.over.startswith("heads"):
            return None
        return head[0], head[1] * self.grid.n_heads // self.sweep.model.spec.n_heads

    def touched(self, changes: Iterable[tuple[str, Site]]) -> Iterator[tuple[Index, str]]:
        """The rows and columns whose sites are changed, each with what is done there, by verb."""
        grid = self.grid
        axes = dict(zip(grid.axes, grid.shape, strict=True))
        for verb, site in changes:
            if site.kind != grid.kind or grid.layer not in (None, site.layer):
                continue
            at = {"layer": site.layer, "head": site.head, "kv_head": site.head, "neuron": site.neuron}
            at["pos"] = site.position if isinstance(site.position, int) else None
            if any(at[axis] is not None and at[axis] >= size for axis, size in axes.items()):
                continue  # of another model, or of a longer text
            spans = [range(size) if at[axis] is None else [at[axis] % size] for axis, size in axes.items()]
            for index in product(*spans[:2]):
                yield index, verb

    def csv(self) -> str:
        """Every site known, a row each; beside estimates what was run of them."""
        frame = self.sweep.frame
        if self.sweep.estimate is not None:
            frame = self.estimated.frame.merge(frame[["site", "change"]], on="site", how="left")
        return frame.to_csv(index=False)
