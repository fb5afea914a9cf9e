"""Unit numbers: what the neurons of a layer, or the dimensions of the stream before it, do at a position, and their ranking."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Float

from transpector.components.base import figures
from transpector.components.parts import gradient
from transpector.components.parts.contribution_numbers import ContributionNumbers
from transpector.components.parts.gradient import PATIENCE
from transpector.components.parts.touched import positions_of
from transpector.components.parts.weight_numbers import Told
from transpector.state.errors import Cancelled, SiteError, TranspectorError
from transpector.state.sites import Site

NEURONS, STREAM = OF = ("Neurons", "Stream")
KINDS = {NEURONS: "mlp_post", STREAM: "resid_pre"}
ACTIVATION, WRITTEN, ADDS, EFFECT = RANKINGS = (
    "Activation",
    "Written norm",
    "Adds to the metric",
    "Effect of zeroing (estimate)",
)
N_TOKENS = 6  # of each list
N_KNOWN = 32  # units whose tokens are kept

Values = Float[np.ndarray, " unit"]


@dataclass(frozen=True)
class Asked:
    """Which units of which layer are ranked, and by what."""

    of: str
    layer: int
    by: str

    def site(self, unit: int) -> Site:
        """The site of one of them."""
        which = {"neuron": unit} if self.of == NEURONS else {"dim": unit}
        return Site(KINDS[self.of], self.layer, **which)


@dataclass(frozen=True, eq=False)
class UnitRanking:
    """The units of a layer with the number they are ranked by, in the run, and in the baseline if that is another.

    ``doing`` and ``did`` are what each does at the position, by the name of the number.
    """

    asked: Asked
    position: int
    now: Values
    before: Values | None
    doing: dict[str, Values]
    did: dict[str, Values] | None
    unit: str
    says: str

    @property
    def order(self) -> np.ndarray:
        """The units, that which is furthest from zero now or before first."""
        size = np.abs(self.now) if self.before is None else np.maximum(np.abs(self.now), np.abs(self.before))
        return np.argsort(-size, kind="stable")

    def rows(self, names: list[str]) -> list[dict[str, Any]]:
        """The first of them, called so, as rows of a list."""
        return [self._row(name, unit) for name, unit in zip(names, self.order.tolist(), strict=False)]

    def _row(self, name: str, unit: int) -> dict[str, Any]:
        signed = self.asked.by != WRITTEN
        row = {"site": name, "change": float(self.now[unit])}
        row["label"] = figures(row["change"], signed)
        if self.before is not None:
            row["before"] = float(self.before[unit])
            row["estimate"] = figures(row["before"], signed)
        told = [name, told_of(self.doing, unit)]
        told += [f"baseline: {told_of(self.did, unit)}"] if self.did is not None else []
        if self.asked.by in (ADDS, EFFECT):
            was = "" if self.before is None else f", baseline {figures(row['before'], True)}"
            told.append(f"{self.asked.by.lower()}: {row['label']}{was} {self.unit}")
        return row | {"hint": "\n".join(told)}


@dataclass(frozen=True, eq=False)
class UnitNumbers:
    """One unit in full: what it does and did at the position, and its weights as tokens."""

    site: Site
    n_units: int
    where: str
    doing: dict[str, float]
    did: dict[str, float] | None
    changed: bool
    tokens: Told


def told_of(numbers: dict[str, Values], unit: int) -> str:
    """What a unit does, in words."""
    return ", ".join(
        f"{name} {figures(float(values[unit]), name != NORM)}" for name, values in numbers.items()
    )


ACTS, GATE, VALUE, PRE, NORM = "activation", "gate", "value", "before the curve", "written norm"


class UnitMeasure:
    """Measures units, each thing once for a run or a model; on the model's worker.

    ``stale`` says whether nobody waits for a ranking any more; ``slow`` is called once it takes its time.
    """

    def __init__(self, stale: Callable[[Asked], bool], slow: Callable[[], None]):
        self._stale, self._slow = stale, slow
        self._rankings: WeakKeyDictionary[Any, tuple[tuple, UnitRanking]] = WeakKeyDictionary()
        self._effects: WeakKeyDictionary[Any, dict[tuple, Values]] = WeakKeyDictionary()
        self._tokens: dict[tuple, Told] = {}

    def clear(self) -> None:
        """Forget everything."""
        self._rankings.clear()
        self._effects.clear()
        self._tokens.clear()

    def ranking(self, run: Any, baseline: Any, metric: Any, position: int, asked: Asked) -> UnitRanking:
        """The units that are asked for; raises TranspectorError where they, or what they are ranked by, can't be told."""
        key = asked, position, metric if asked.by in (ADDS, EFFECT) else None
        if run not in self._rankings or self._rankings[run][0] != key:
            reason = unable_of(run.model).get(asked.of) or unable_by(run, metric, asked).get(asked.by)
            if reason:
                raise SiteError(reason)
            self._rankings[run] = key, self._ranking(run, baseline, metric, position, asked)
        return self._rankings[run][1]

    def _ranking(self, run: Any, baseline: Any, metric: Any, position: int, asked: Asked) -> UnitRanking:
        runs = [run] if baseline is run else [run, baseline]
        doing = [_doing(each, asked, position) for each in runs]
        units = (
            f"neurons of layer {asked.layer}"
            if asked.of == NEURONS
            else f"dimensions before layer {asked.layer}"
        )
        among = f"of the {len(doing[0][ACTS]):,} {units}"
        if asked.by == EFFECT:
            found = [self._effect(each, metric, asked) for each in runs]
            unit = metric.unit
            says = f"{among}, on the {metric.label}; to first order"
        elif asked.by == ADDS:
            found, target = _added(run, baseline, metric, position, asked.layer)
            unit, says = "logits", f"{among}, to the {target}"
        else:
            name = ACTS if asked.by == ACTIVATION else NORM
            if name not in doing[0]:
                raise SiteError(_hidden(run.model, asked.layer))
            found, unit = [each[name] for each in doing], "norm" if name == NORM else name
            says = f"{among}, at position {position}"
        more = found[1:] or [None]
        return UnitRanking(asked, position, found[0], more[0], doing[0], ([*doing, None])[1], unit, says)

    def _effect(self, run: Any, metric: Any, asked: Asked) -> Values:
        """The estimate of what zeroing each would do, given up for what is newer."""
        from transpector.state.neurons import effects  # brings torch, which the first paint does not wait for

        known, key = self._effects.setdefault(run, {}), (asked.of, asked.layer, metric)
        began, told = time.monotonic(), False

        def cancelled() -> bool:
            nonlocal told
            if not told and time.monotonic() - began > PATIENCE:
                told = True
                self._slow()
            return self._stale(asked)

        if key not in known:
            known[key] = effects(run, metric, KINDS[asked.of], asked.layer, cancelled=cancelled)
        return known[key]

    def unit(self, run: Any, ranking: UnitRanking, site: Site, where: str) -> UnitNumbers:
        """One unit of a ranking in full."""
        unit = site.neuron if site.neuron is not None else site.dim
        doing, did = (
            None if each is None else {name: float(values[unit]) for name, values in each.items()}
            for each in (ranking.doing, ranking.did)
        )
        changed = any(
            write.site.tensor == site.tensor
            and write.site.neuron in (None, site.neuron)
            and write.site.dim in (None, site.dim)
            and ranking.position in positions_of(write.site, run.n_pos)
            for write in run.writes
        )
        n_units = len(ranking.now)
        return UnitNumbers(
            site, n_units, where, doing, did, changed, self._told(run.model, site, ranking.asked)
        )

    def _told(self, model: Any, site: Site, asked: Asked) -> Told:
        from transpector.state.neurons import dim_tokens, neuron_tokens

        # A dimension is the same before every layer.
        unit = (site.layer, site.neuron) if site.neuron is not None else site.dim
        key = model.fingerprint(), unit
        if key not in self._tokens:
            if self._stale(asked):
                raise Cancelled
            find = neuron_tokens if site.neuron is not None else dim_tokens
            where = unit if isinstance(unit, tuple) else (unit,)
            self._tokens[key] = Told.of(lambda: find(model, *where, k=N_TOKENS))
            for old in list(self._tokens)[:-N_KNOWN]:
                del self._tokens[old]
        return self._tokens[key]


def unable_of(model: Any) -> dict[str, str]:
    """Which units this model does not tell, with the reasons."""
    can = model.health
    return {
        of: f"{of if of == NEURONS else 'The residual stream'} can't be read here: {can.abilities[kind].reason}"
        for of, kind in KINDS.items()
        if not can.can_read(kind)
    }


def unable_by(run: Any, metric: Any, asked: Asked) -> dict[str, str]:
    """What can't be ranked by, with the reasons, as far as that is known without trying."""
    reasons = {}
    if asked.of == STREAM:
        reasons[WRITTEN] = "What a dimension writes is itself: rank by its activation."
        reasons[ADDS] = (
            "The sum of what is added to the logit tells neurons apart, not dimensions of the stream."
        )
    elif metric.kind != "loss" and (reason := _unmeasured(run, metric)):
        reasons[ADDS] = reason
    if reason := gradient.unable(run, metric):
        reasons[EFFECT] = reason
    return reasons


def _unmeasured(run: Any, metric: Any) -> str:
    try:
        metric.on(run.model.text, run.question.token_ids)
    except TranspectorError as error:
        return str(error)
    return ""


def _doing(run: Any, asked: Asked, position: int) -> dict[str, Values]:
    """What the units do at a position, by name."""
    from transpector.state.neurons import neurons

    if asked.of == STREAM:
        return {ACTS: run.activation(Site(KINDS[STREAM], asked.layer, position=position))}
    found = neurons(run, asked.layer, position)
    numbers = {PRE if found.value is None else GATE: found.pre, VALUE: found.value}
    numbers |= {ACTS: found.post, NORM: found.written}
    return {name: values for name, values in numbers.items() if values is not None}


def _added(run: Any, baseline: Any, metric: Any, position: int, layer: int) -> tuple[list[Values], str]:
    """What each neuron adds to the metric's logit, and to which."""
    found = ContributionNumbers.of(run, baseline, metric, position, layer)
    if found.hidden:
        raise SiteError(found.hidden)
    both = [each.neurons for each in (found.now, found.before) if each is not None]
    return both, found.now.target


def _hidden(model: Any, layer: int) -> str:
    """Why it can't be told what the neurons of a layer write."""
    from transpector.state.neurons import neuron_outputs

    return Told.of(lambda: neuron_outputs(model, layer)).reason
