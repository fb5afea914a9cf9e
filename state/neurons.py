"""Neurons: what single neurons, and single dimensions of the residual stream, read, write, do now, and matter for."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from transpector.state.attribution import backward, ground_of
from transpector.state.circuits import Ranking, logits_of, ranked
from transpector.state.errors import Cancelled, InterventionError, ModelError
from transpector.state.metric import Metric
from transpector.state.reads import MLPRead, mlp_read, vocabulary
from transpector.state.sites import Site
from transpector.state.ways import HeldNorm, outlet_divisor, projection, ways

if TYPE_CHECKING:
    import pandas as pd

    from transpector.state.models import Model
    from transpector.state.run import Run


@dataclass(frozen=True, eq=False)
class UnitTokens:
    """A neuron's weights, or a dimension of the residual stream, as tokens, the highest and the lowest of each.

    ``writes`` are logits about their mean that it adds while it is 1, the divisor of the final norm left at 1. ``reads``
    are what it is given of each token's embedding alone, by the name of the weights: "in", or "gate" and "in".
    """

    writes: tuple[Ranking, Ranking]
    reads: dict[str, tuple[Ranking, Ranking]]


@dataclass(frozen=True, eq=False)
class Neurons:
    """The neurons of one layer at one position: ``post`` is what each passes on, ``pre`` what its curve is given.

    ``value`` is what a gated MLP multiplies by the curve of the gate, which is its ``pre``; None where there is no gate.
    ``written`` is the norm of what each adds to the residual stream, its layer's post norm included.
    """

    layer: int
    position: int
    post: Float[np.ndarray, " d_mlp"] = field(repr=False)
    pre: Float[np.ndarray, " d_mlp"] | None = field(repr=False)
    value: Float[np.ndarray, " d_mlp"] | None = field(repr=False)
    written: Float[np.ndarray, " d_mlp"] | None = field(repr=False)

    @property
    def frame(self) -> "pd.DataFrame":
        """A row a neuron, the most active first; a column for each number that this architecture tells."""
        import pandas as pd

        columns = {"neuron": np.arange(len(self.post))} | {
            name: getattr(self, name)
            for name in ("post", "pre", "value", "written")
            if getattr(self, name) is not None
        }
        order = np.argsort(-np.abs(self.post), kind="stable")
        return pd.DataFrame(columns).iloc[order].reset_index(drop=True)


def neurons(run: "Run", layer: int, position: int = -1) -> Neurons:
    """What the neurons of a layer do at a position of a run.

    Raises SiteError for a layer or a position that is not there, or where neurons can't be read.
    """
    at = run.at(position) % run.n_pos
    post = run.activation(Site("mlp_post", layer, position=at))
    can_read = run.model.health.can_read
    pre = run.activation(Site("mlp_pre", layer, position=at)) if can_read("mlp_pre") else None
    value, written = run.model.worker.call(lambda: (_value(run, layer, at), _written(run, layer, at, post)))
    return Neurons(layer, at, post, pre, value, written)


def neuron_tokens(model: "Model", layer: int, neuron: int, k: int = 10) -> UnitTokens:
    """What a neuron's weights are as tokens: what it reads (its key), and what it writes (its value).

    Geva et al. 2021, "Transformer Feed-Forward Layers Are Key-Value Memories". Raises SiteError for a neuron that is not
    there, ModelError where the architecture hides what its neurons write.
    """
    Site("mlp_post", layer, neuron=neuron).check(model.spec)

    def found() -> UnitTokens:
        written = neuron_outputs(model, layer)[neuron][None]
        read = mlp_read(model, layer)
        names = ("gate", "in") if read.gated else ("in",)
        return UnitTokens(
            ranked(model, logits_of(model, written)[0], k),
            {name: ranked(model, _read(model, read, name, neuron), k) for name in names},
        )

    return model.worker.call(found)


def dim_tokens(model: "Model", dim: int, k: int = 10) -> UnitTokens:
    """The same of a dimension of the residual stream: the tokens whose embeddings have most of it, and what it promotes."""
    Site("resid_pre", 0, dim=dim).check(model.spec)

    def found() -> UnitTokens:
        written = torch.zeros(1, model.spec.d_model, device=model.spec.device)
        written[0, dim] = 1
        held = torch.cat([streams[:, dim] for _, streams in vocabulary(model)])
        return UnitTokens(ranked(model, logits_of(model, written)[0], k), {"in": ranked(model, held, k)})

    return model.worker.call(found)


def effects(
    run: "Run", metric: Metric, kind: str, layer: int, *, cancelled: Callable[[], bool] = lambda: False
) -> Float[np.ndarray, " unit"]:
    """What zeroing each neuron (``mlp_post``) or dimension (``resid_pre``, …) at all positions would change of the metric.

    An estimate to first order: the gradient times what is taken away (attribution patching, Nanda 2023), in the metric's
    unit. Waits for the worker, where others have their turn after each layer. Raises TextError or SiteError for a metric
    that the text has not, InterventionError where the layers can't be done one by one, or Cancelled.
    """
    model, site = run.model, Site(kind, layer)
    site.check(model.spec)
    metric.on(model.text, run.question.token_ids)  # raises what is wrong with it here
    if not model.wiring.by_layer:
        raise InterventionError(
            "This architecture has no gradients here: its layers can't be done one by one."
        )
    walk = model.worker.call(lambda: backward(ground_of(run, metric), [site.tensor]))
    while True:
        if cancelled():
            raise Cancelled
        felt = model.worker.call(lambda: next(walk))
        if site.tensor in felt:
            value, gradient = felt[site.tensor]
            if gradient is None:
                raise InterventionError(f"The gradient at {site} is out of reach in this model.")
            return -(value.float() * gradient.float()).sum(0).cpu().numpy()


# On the worker


def neuron_outputs(model: "Model", layer: int) -> Float[Tensor, "d_mlp d_model"]:
    """Each neuron's W_out, as it counts in the residual stream, the divisor of a norm after it left at 1.

    Raises ModelError where the architecture hides it.
    """
    outlet = _outlet(model, layer)
    weight, _ = projection(model, "mlp_post", layer)
    return outlet.forth(weight.float())


def _outlet(model: "Model", layer: int) -> HeldNorm:
    ability = model.health.abilities["mlp_post"]
    outlet = ways(model).outlets["mlp_post"][layer] if ability.read else None
    if outlet is None:
        reason = ability.reason or "what its MLP adds is more than the sum of its neurons."
        raise ModelError(f"What the neurons of layer {layer} write can't be told here: {reason}")
    return outlet


def _read(model: "Model", read: MLPRead, name: str, neuron: int) -> Float[Tensor, " d_vocab"]:
    weight, bias = read.of(name, neuron)
    return torch.cat([read.normed(streams) @ weight + bias for _, streams in vocabulary(model)])


def _value(run: "Run", layer: int, at: int) -> Float[np.ndarray, " d_mlp"] | None:
    try:
        read = mlp_read(run.model, layer)
    except ModelError:
        return None
    if not read.gated:
        return None
    before = "resid_pre" if run.model.wiring.parallel else "resid_mid"
    stream = run.tensor((before, layer))[None, [at]]
    other = "in" if read.pre == "gate" else "gate"
    bias = getattr(read.mlp, f"b_{other}", None)
    found = read.norm(stream)[0, 0] @ getattr(read.mlp, f"W_{other}")
    return (found if bias is None else found + bias).float().cpu().numpy()


def _written(
    run: "Run", layer: int, at: int, post: Float[np.ndarray, " d_mlp"]
) -> Float[np.ndarray, " d_mlp"] | None:
    try:
        outputs = neuron_outputs(run.model, layer)
    except ModelError:
        return None
    divisor = float(outlet_divisor(run, "mlp_post", layer, [at]))
    return np.abs(post) * outputs.norm(dim=-1).cpu().numpy() / divisor
