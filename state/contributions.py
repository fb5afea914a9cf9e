"""Contributions: how much each part of the model adds to the metric's logit, part by part up to the whole of it."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from transpector.state.errors import ModelError
from transpector.state.health import TOLERANCE
from transpector.state.metric import Metric
from transpector.state.sites import Site
from transpector.state.ways import POSITIONS, final_divisor, outlet_divisor, projection, ways
from transpector.state.wiring import LAST_RESID, Pass

if TYPE_CHECKING:
    import pandas as pd

    from transpector.state.run import Run

LOSS = Metric()
EMBED, RESID_PRE = ("embed", None), ("resid_pre", 0)
BENT = "This model bends its logits by a curve: these are of the logit before that."


@dataclass(frozen=True, eq=False)
class Contributions:
    """What every part adds to one logit, less another or less the mean, at one position of one run.

    ``parts`` are ids in the order of the pass, ``values`` what they add: sites, and beside them ``pos_embed``,
    ``L0.attn_bias`` (what a layer's attention adds beside its heads), ``L0.written`` (what interventions wrote into the
    residual stream before or within a layer) and ``bias`` (the final norm's and the unembedding's). ``logit`` is the
    same read off the model's own logits; where it bends them (``bent``), before that. ``heads`` and ``mlps`` hold
    the same numbers as ``values``: NaN for a layer whose heads can't be told apart, no row without an MLP.
    ``neurons`` are of ``layer``, where asked for, and with ``neuron_rest`` add up to its MLP.
    """

    target: str
    position: int
    parts: tuple[str, ...]
    values: Float[np.ndarray, " part"] = field(repr=False)
    heads: Float[np.ndarray, "layer head"] = field(repr=False)
    mlps: Float[np.ndarray, " layer"] = field(repr=False)
    logit: float
    bent: bool = False
    layer: int | None = None
    neurons: Float[np.ndarray, " d_mlp"] | None = field(default=None, repr=False)
    neuron_rest: float | None = None
    note: str = ""
    unit: str = "logits"

    def __getitem__(self, part: str) -> float:
        return float(self.values[self._places[part]])

    @property
    def embed(self) -> float:
        """What the residual stream begins with, where positions are not told from tokens, else the tokens' share."""
        return self["embed"] if "embed" in self._places else self["L0.resid_pre"]

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return float(self.values.sum(dtype=np.float64))

    @property
    def gap(self) -> float:
        """What the parts add up to beyond the logit: rounding, if all is well."""
        return self.total - self.logit

    @property
    def frame(self) -> "pd.DataFrame":
        """A row a part, then one a neuron: shares of their layer's ``mlp_out``, not to be added to it."""
        import pandas as pd

        rows = [(part, *_address(part), value) for part, value in zip(self.parts, self.values, strict=True)]
        for neuron, value in enumerate([] if self.neurons is None else self.neurons):
            site = Site("mlp_post", self.layer, neuron=neuron)
            rows.append((str(site), *_address(str(site)), value))
        frame = pd.DataFrame(rows, columns=["part", "kind", "layer", "head", "neuron", "value"])
        return frame.astype({"layer": "Int64", "head": "Int64", "neuron": "Int64", "value": "float32"})

    @cached_property
    def _places(self) -> dict[str, int]:
        return {part: place for place, part in enumerate(self.parts)}


def _address(part: str) -> tuple[str, int | None, int | None, int | None]:
    """Kind, layer, head and neuron of a part."""
    layer, _, kind = part.rpartition(".")
    if kind in ("attn_bias", "written", "beside"):
        return kind, int(layer[1:]), None, None
    if kind in ("pos_embed", "bias"):
        return kind, None, None, None
    site = Site.parse(part)
    return site.kind, site.layer, site.head, site.neuron


def contributions(
    run: "Run", metric: Metric = LOSS, *, position: int | None = None, layer: int | None = None
) -> Contributions:
    """Direct logit attribution of a metric: what each part adds to it through the final norm, its divisor as it was.

    A logit difference is read as it is; any other metric as the logit, less the mean over the vocabulary, of the
    answer, or, where the metric has none, of the token that follows: the last that there is, or at the last position
    the likeliest. ``position`` is read in place of the metric's, ``layer`` is the one whose neurons are told apart.
    Raises TextError or SiteError for tokens, positions and layers that are not there, ModelError where the
    architecture hides how its parts reach the logits.
    """
    return run.model.worker.call(lambda: _contributions(run, metric, position, layer))


@dataclass(frozen=True)
class _Readout:
    """The logit of a token at a position, less that of another or less the mean."""

    position: int
    token: int
    against: int | None
    target: str
    note: str = ""

    def of(self, logits: Float[Tensor, " d_vocab"]) -> float:
        against = logits.mean(dtype=torch.float64) if self.against is None else logits[self.against]
        return float(logits[self.token].double() - against.double())


def _readout(run: "Run", metric: Metric, position: int | None) -> _Readout:
    note, against = "", None
    if metric.kind in ("log_prob", "logit_diff"):
        at = run.at(metric.position if position is None else position) % run.n_pos
        asked = replace(metric, position=at).on(run.model.text, run.question.token_ids)
        token, against = asked.targets[0], asked.against
    else:
        last = max(0, run.n_pos - 2)  # the last that is followed by a token, if any is
        at = last if position is None else run.at(position) % run.n_pos
        if at + 1 < run.n_pos:
            token = run.question.token_ids[at + 1]
        else:
            token = int(run.logits[at].argmax())
            note = "No token follows the last position: this is of the likeliest one."
    pieces = run.model.pieces([token] if against is None else [token, against])
    less = "the mean over the vocabulary" if against is None else repr(pieces[1])
    return _Readout(at, token, against, f"logit of {pieces[0]!r} − {less} after position {at}", note)


class _Attribution:
    """One attribution under way: a direction at one position, and every part's product with it. On the worker."""

    def __init__(self, run: "Run", asked: _Readout):
        self.run, self.at = run, asked.position
        self.spec, self.ways = run.model.spec, ways(run.model)
        weight, constant = run.model.bridge.W_U, self.ways.constant.double()
        of_token = weight[:, asked.token].double()
        of_other = self.ways.mean.double() if asked.against is None else weight[:, asked.against].double()
        self.unembedding = of_token - of_other  # [d_model]
        self.bias = constant[asked.token] - (
            constant.mean() if asked.against is None else constant[asked.against]
        )
        self.direction = self.ways.final.back(self.unembedding, final_divisor(run, [self.at])[0])
        self.written = {write.site.tensor for write in run.writes}
        self.values: dict[str, Tensor] = {}  # by part

    def of_model(self, asked: _Readout) -> float:
        """The logit as the model has it, or would without its bend."""
        if not self.ways.bent:
            return asked.of(self.run.logits[self.at])
        last = self.run.tensor(LAST_RESID)[None, [self.at]]
        normed, empty = (self.run.model.stack.norm(x)[0, 0].double() for x in (last, torch.zeros_like(last)))
        return float((normed - empty) @ self.unembedding + self.bias)

    def collect(self) -> None:
        """Go through the model, part by part."""
        for part, vector in self._beginning().items():
            self._add(part, vector)
        for layer in range(self.spec.n_layers):
            self._collect_layer(layer)
        self.values["bias"] = self.bias

    def _collect_layer(self, layer: int) -> None:
        attn_out = self._stream("attn_out", layer)
        heads = self.shares("z", layer)
        if heads is None:
            self._add(f"L{layer}.attn_out", attn_out)
        else:
            each = heads.unflatten(0, (self.spec.n_heads, -1)).sum(-1)
            self.values |= {str(Site("z", layer, head)): value for head, value in enumerate(each.unbind())}
            self.values[f"L{layer}.attn_bias"] = attn_out @ self.direction - each.sum()
        end = self._stream("resid_pre", layer) + attn_out
        if ("resid_mid", layer) in self.written:
            mid = self._stream("resid_mid", layer)
            self._add(f"L{layer}.written", mid - end)
            end = mid
        if self.spec.d_mlp:
            mlp_out = self._stream("mlp_out", layer)
            self._add(f"L{layer}.mlp_out", mlp_out)
            end = end + mlp_out
        self._go_on(layer, end)

    def _go_on(self, layer: int, end: Float[Tensor, " d_model"]) -> None:
        """What lies between the sum of a layer's parts and the stream that the next one reads."""
        following = ("resid_pre", layer + 1) if layer + 1 < self.spec.n_layers else LAST_RESID
        after = self._stream(*following)
        if following in self.written:
            self._add(f"L{layer + 1}.written", after - end)
        elif (after - end).abs().max() > TOLERANCE[self.spec.dtype] * after.abs().max().clamp(min=1):
            self._add(f"L{layer}.beside", after - end)

    def _beginning(self) -> dict[str, Tensor]:
        """What the residual stream begins with."""
        given, before = self._stream(*RESID_PRE), None
        if RESID_PRE in self.written:
            before = _before_writes(self.run)[self.at].double()
        start = given if before is None else before
        if self.ways.embed is None:
            parts = {"L0.resid_pre": start}
        else:
            embed = self.ways.embed * self._stream(*EMBED)
            parts = {"embed": embed}
            if POSITIONS in self.run.model.stack.names:
                parts["pos_embed"] = start - embed
        return parts if before is None else parts | {"L0.written": given - before}

    def shares(self, kind: str, layer: int) -> Float[Tensor, " inner"] | None:
        """What each number that a projection reads adds; None where that can't be told."""
        outlet = self.ways.outlets[kind][layer]
        if outlet is None:
            return None
        towards = outlet.back(self.direction, outlet_divisor(self.run, kind, layer, [self.at])[0])
        weight, _ = projection(self.run.model, kind, layer)
        return self._stream(kind, layer).flatten() * (weight.float() @ towards.float()).double()

    def _stream(self, kind: str, layer: int | None) -> Tensor:
        return self.run.tensor((kind, layer))[self.at].double()

    def _add(self, part: str, vector: Float[Tensor, " d_model"]) -> None:
        self.values[part] = self.values.get(part, 0) + vector @ self.direction


def _before_writes(run: "Run") -> Float[Tensor, "pos d_model"]:
    """The residual stream before the first layer, as it was before anything was written into it there."""
    writes = [write for write in run.writes if write.site.tensor == EMBED]
    sources, _ = run.model.sources(run.question, writes)
    ids = torch.tensor([run.question.token_ids], device=run.model.spec.device)
    hidden, _ = Pass(run.model.stack, run.model.wiring, writes, sources).open(ids)
    return hidden[0]


def _neurons(attribution: _Attribution, layer: int) -> tuple[np.ndarray, float]:
    """What each neuron of a layer adds, and what its MLP adds beside them."""
    run = attribution.run
    Site("mlp_post", layer).check(run.model.spec)
    ability = run.model.health.abilities["mlp_post"]
    shares = attribution.shares("mlp_post", layer) if ability.read else None
    if shares is None:
        reason = ability.reason or "what its MLP adds is more than the sum of its neurons."
        raise ModelError(f"The neurons of layer {layer} can't be told apart here: {reason}")
    rest = attribution.values[f"L{layer}.mlp_out"] - shares.sum()
    return shares.float().cpu().numpy(), float(rest)


def _contributions(run: "Run", metric: Metric, position: int | None, layer: int | None) -> Contributions:
    spec, health = run.model.spec, run.model.health
    asked = _readout(run, metric, position)
    for kind in ("resid_pre", "attn_out", *(["mlp_out"] if spec.d_mlp else [])):
        if not health.can_read(kind):
            raise ModelError(
                f"What each part adds can't be told here. {kind}: {health.abilities[kind].reason}"
            )
    attribution = _Attribution(run, asked)
    attribution.collect()
    neurons, rest = (None, None) if layer is None else _neurons(attribution, layer)
    parts = tuple(attribution.values)
    values = torch.stack(list(attribution.values.values())).float().cpu().numpy()
    value = dict(zip(parts, values, strict=True))
    layers = range(spec.n_layers)
    heads = [[value.get(str(Site("z", at, head)), np.nan) for head in range(spec.n_heads)] for at in layers]
    return Contributions(
        target=asked.target,
        position=asked.position,
        parts=parts,
        values=values,
        heads=np.array(heads, np.float32),
        mlps=np.array([value[f"L{at}.mlp_out"] for at in layers if spec.d_mlp], np.float32),
        logit=attribution.of_model(asked),
        bent=attribution.ways.bent,
        layer=layer,
        neurons=neurons,
        neuron_rest=rest,
        note=" ".join(filter(None, (asked.note, BENT if attribution.ways.bent else ""))),
    )
