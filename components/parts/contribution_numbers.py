"""Contribution numbers: what each part adds to the metric's logit, in the run and in the baseline, as views show it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from transpector.components.base import figures
from transpector.state.errors import TranspectorError
from transpector.state.metric import Metric

NOW, BASELINE, DIFFERENCE = SHOWN = ("Now", "Baseline", "Difference")
BESIDE = ("attn_out", "attn_bias", "written", "beside")
"""Kinds of what a layer adds beside its heads and its MLP; the first stands for heads that can't be told apart."""
ROUNDING = 1e-5  # of the largest


@dataclass(frozen=True, eq=False)
class ContributionNumbers:
    """Contributions to one logit in the run, and to the same in the baseline if that is another run.

    ``hidden`` says why those of a layer's neurons are not known, where they were asked for.
    """

    now: Any
    before: Any = None
    hidden: str = ""

    @classmethod
    def of(
        cls, run: Any, baseline: Any, metric: Metric, position: int, layer: int | None = None
    ) -> "ContributionNumbers":
        """Measure them, with the neurons of ``layer`` if one is given; on the model's worker.

        ``position`` is that of a metric that has none of its own. Raises TranspectorError if nothing can be told.
        """
        from transpector.state.contributions import contributions  # brings torch

        at = min(position, run.n_pos - 1) if metric.kind == "loss" else None
        hidden = ""
        try:
            now = contributions(run, metric, position=at, layer=layer)
        except TranspectorError as error:
            if layer is None:
                raise
            now, layer, hidden = contributions(run, metric, position=at), None, str(error)
        if baseline is run:
            return cls(now, None, hidden)
        before = contributions(baseline, metric, position=at, layer=layer)
        if before.target != now.target:  # after the last token, each run has a likeliest one of its own
            token = int(run.logits[now.position].argmax())
            same = replace(
                metric, kind="log_prob", answer=run.model.pieces([token])[0], position=now.position
            )
            try:
                before = contributions(baseline, same, layer=layer)
            except TranspectorError:  # what is no text of its own can't be named
                before = None
        return cls(now, before, hidden)

    @property
    def top(self) -> float:
        """The number of the strongest colour, one for the run and the baseline: of the largest head, if heads are known."""
        both = [found for found in (self.now, self.before) if found is not None]
        return _largest(*(found.heads for found in both)) or _largest(*map(by_layer, both)) or 1.0

    def shown(
        self, which: str, of: Callable[[Any], dict[str, float]]
    ) -> tuple[dict[str, float], dict[str, float] | None]:
        """Of the now, the baseline or the difference the numbers that are shown, and those told beside them, if any are."""
        now, before = of(self.now), None if self.before is None else of(self.before)
        if before is None or which == NOW:
            return now, before
        if which == BASELINE:
            return before, None
        return {name: now.get(name, 0) - before.get(name, 0) for name in {**now, **before}}, None

    def cells(self, which: str) -> tuple[np.ndarray, np.ndarray | None, float]:
        """The same of ``by_layer``, and the number of the strongest colour: one for the now and the baseline."""
        now, before = by_layer(self.now), None if self.before is None else by_layer(self.before)
        if before is None or which == NOW:
            return now, before, self.top
        if which == BASELINE:
            return before, None, self.top
        change = now - before
        return change, None, _largest(change[:, : self.now.heads.shape[1]]) or _largest(change) or 1.0


def by_layer(found: Any) -> Float[np.ndarray, "layer column"]:
    """What each head adds; then, if there are any, each layer's MLP; and last what else is added there."""
    beside = np.zeros((len(found.heads), 1), np.float32)
    for part, value in zip(found.parts, found.values, strict=True):
        layer, _, kind = part.rpartition(".")
        if kind in BESIDE:
            beside[min(int(layer[1:]), len(beside) - 1)] += value
    mlps = [found.mlps[:, None]] if len(found.mlps) else []
    return np.concatenate([found.heads, *mlps, beside], axis=1)


def of_parts(found: Any) -> dict[str, float]:
    """What each part adds, by id."""
    return dict(zip(found.parts, found.values.tolist(), strict=True))


def of_neurons(found: Any) -> dict[str, float]:
    """What each neuron of the layer adds, by name."""
    return {f"L{found.layer}N{at}": value for at, value in enumerate(found.neurons.tolist())}


def of_no_neuron(found: Any) -> dict[str, float]:
    """What the layer's MLP adds beside its neurons."""
    return {"beside them": found.neuron_rest}


def ranked(
    now: Mapping[str, float], before: Mapping[str, float] | None, most: int, others: str
) -> tuple[list[str], list[dict[str, Any]]]:
    """The largest of either, in order: their names, and as rows of a list; last the sum of the ``others``."""
    names = list(dict.fromkeys([*now, *(before or ())]))
    size = {name: max(abs(now.get(name, 0)), abs((before or now).get(name, 0))) for name in names}
    names.sort(key=lambda name: -size[name])  # stable: of equals, the earlier in the model comes first

    def told(name: str, *of: str) -> dict[str, Any]:
        was = None if before is None else sum(before.get(each, 0) for each in of)
        return row(name, sum(now.get(each, 0) for each in of), was)

    rows = [told(name, name) for name in names[:most]]
    if left := names[most:]:
        rows.append(told(f"{len(left):,} {others}", *left) | {"rest": True})
    return names[:most], rows


def row(name: str, value: float, before: float | None) -> dict[str, Any]:
    """A row of a list, as it takes one."""
    told = {"site": name, "change": value, "label": figures(value, signed=True)}
    told["hint"] = f"{name}: {value:+.4f} logits"
    if before is not None:
        told |= {"before": before, "estimate": figures(before, signed=True)}
        told["hint"] += f", baseline {before:+.4f}"
    return told


def reach(rows: list[dict[str, Any]]) -> float:
    """The largest magnitude among those rows that stand for one thing."""
    each = [row for row in rows if not row.get("rest")]
    return (
        max((abs(row[name]) for row in each for name in ("change", "before") if name in row), default=0)
        or 1.0
    )


def _largest(*arrays: Float[np.ndarray, "layer column"]) -> float:
    return max(float(np.abs(np.nan_to_num(array)).max(initial=0)) for array in arrays)
