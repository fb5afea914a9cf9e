"""Stream: the residual stream itself, its size and direction layer by layer, and the metric's gradient there."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from transpector.state.attribution import EMBED, Felt, backward, ground_of
from transpector.state.errors import Cancelled, InterventionError, SiteError
from transpector.state.graph import NORMS
from transpector.state.metric import Metric
from transpector.state.wiring import FINAL_SCALE, LAST_RESID, Address

if TYPE_CHECKING:
    import pandas as pd

    from transpector.state.run import Run


@dataclass(frozen=True, eq=False)
class Stream:
    """Norm of the residual stream before each layer and, in the last row, after all; and what norms divide it by.

    ``scales`` are by TransformerLens's name of the norm, NaN in layers that lack it; ``final_scale`` is the final
    norm's, None where the model hides it.
    """

    norms: Float[np.ndarray, "layer+1 pos"]
    scales: dict[str, Float[np.ndarray, "layer pos"]]
    final_scale: Float[np.ndarray, " pos"] | None

    axes: ClassVar[tuple[str, ...]] = ("layer", "pos")

    @property
    def frame(self) -> "pd.DataFrame":
        """A row a layer and position, NaN for the norms that are elsewhere: the last row's is ``final_scale``."""
        nothing = np.full_like(self.norms[:1], np.nan)
        columns = {"norm": self.norms}
        columns |= {name: np.concatenate([scale, nothing]) for name, scale in self.scales.items()}
        if self.final_scale is not None:
            columns["final_scale"] = np.full_like(self.norms, np.nan)
            columns["final_scale"][-1] = self.final_scale
        return _frame(columns)


@dataclass(frozen=True, eq=False)
class Gradients:
    """The metric's gradient at the residual stream before each layer and, in the last row, after all.

    ``norms`` are the gradient's, ``dots`` the gradient · the stream, both as it is after the run's interventions.
    ``saliency`` and ``input_dots`` are the same for what the tokens put into the stream (the site ``embed``), None
    where the model hides that. In the metric's unit per unit of the stream, the dots in the metric's unit.
    """

    norms: Float[np.ndarray, "layer+1 pos"]
    dots: Float[np.ndarray, "layer+1 pos"]
    saliency: Float[np.ndarray, " pos"] | None
    input_dots: Float[np.ndarray, " pos"] | None

    axes: ClassVar[tuple[str, ...]] = ("layer", "pos")

    @property
    def frame(self) -> "pd.DataFrame":
        """A row a layer and position."""
        return _frame({"norm": self.norms, "dot": self.dots})


def stream(run: "Run") -> Stream:
    """The stream's norms, and the divisor of every norm layer that tells it.

    What was not kept has its layers done again, each once. Raises SiteError where the stream can't be read.
    """
    _check(run)
    names = run.model.stack.names
    layers = range(run.model.spec.n_layers)
    told = {name: [(f"blocks.{layer}.{name}.hook_scale", layer) for layer in layers] for name in NORMS}
    wanted = {address for of_norm in told.values() for address in of_norm if address[0] in names}
    run = run.model.complete(run, wanted)
    lengths, scales = norms(run), {}
    for name, of_norm in told.items():
        found = {at[1]: run.activations[at] for at in of_norm if at in run.activations}
        # A hook point may never fire, or not tell positions apart.
        found = {layer: scale[:, 0] for layer, scale in found.items() if scale.shape == (run.n_pos, 1)}
        if found:
            scales[name] = np.full_like(lengths[1:], np.nan)
            for layer, scale in found.items():
                scales[name][layer] = _numbers(scale)
    final = run.activations.get(FINAL_SCALE)
    return Stream(lengths, scales, None if final is None else _numbers(final[:, 0]))


def norms(run: "Run") -> Float[np.ndarray, "layer+1 pos"]:
    """Norm of the residual stream before each layer and, in the last row, after all."""
    return np.stack([_numbers(whole.float().norm(dim=-1)) for whole in _streams(run)])


def cosines(run: "Run", position: int) -> Float[np.ndarray, "layer+1 layer+1"]:
    """Cosine similarity of the streams before all layers, and after the last, at a position; 0 where one is zero."""
    at = run.at(position)
    streams = torch.nn.functional.normalize(
        torch.stack([whole[at].float() for whole in _streams(run)]), dim=-1
    )
    return _numbers((streams @ streams.T).clamp(-1, 1))


def cosines_to_next(run: "Run") -> Float[np.ndarray, "layer pos"]:
    """Cosine similarity of the stream before each layer with that after it; 0 where one is zero."""
    streams = _streams(run)
    return np.stack([_cosine(before, after) for before, after in pairwise(streams)])


def cosines_to_last(run: "Run") -> Float[np.ndarray, "layer+1 pos"]:
    """Cosine similarity of the stream before each layer, and after the last, with the last; 0 where one is zero."""
    streams = _streams(run)
    return np.stack([_cosine(whole, streams[-1]) for whole in streams])


def gradients(run: "Run", metric: Metric, *, cancelled: Callable[[], bool] = lambda: False) -> Gradients:
    """The metric's gradient at the stream before every layer, by one pass back from the kept streams.

    Saliency by the gradient's norm: Simonyan, Vedaldi and Zisserman 2013, "Deep Inside Convolutional Networks";
    gradient × input: Shrikumar et al. 2016, "Not Just a Black Box". Waits for the worker, where others have their
    turn after each layer; ``cancelled`` is asked as often. Raises TextError or SiteError for a metric that the text
    has not, InterventionError where the layers can't be done one by one, or Cancelled.
    """
    model = run.model
    metric.on(model.text, run.question.token_ids)  # raises what is wrong with it here
    if not model.wiring.by_layer:
        raise InterventionError(
            "This architecture has no gradients here: its layers can't be done one by one."
        )
    _check(run)
    n_layers = model.spec.n_layers
    wanted = [LAST_RESID, *(("resid_pre", layer) for layer in range(n_layers))]
    wanted += [EMBED] if model.health.can_write("embed") else []
    lengths, dots = (np.zeros((n_layers + 1, run.n_pos), np.float32) for _ in range(2))
    of_embed = (None, None)
    walk = model.worker.call(lambda: backward(ground_of(run, metric), wanted))
    while True:
        if cancelled():
            raise Cancelled
        felt = model.worker.call(lambda: _sizes(next(walk, None)))
        if felt is None:
            return Gradients(lengths, dots, *of_embed)
        for at, sizes in felt.items():
            if at == EMBED:
                of_embed = sizes
            else:
                row = n_layers if at == LAST_RESID else at[1]
                lengths[row], dots[row] = sizes


def _check(run: "Run") -> None:
    health = run.model.health
    if not health.can_read("resid_pre"):
        raise SiteError(f"The residual stream can't be read here: {health.abilities['resid_pre'].reason}")


def _streams(run: "Run") -> list[Float[Tensor, "pos d_model"]]:
    _check(run)
    before = [run.tensor(("resid_pre", layer)) for layer in range(run.model.spec.n_layers)]
    return [*before, run.tensor(LAST_RESID)]


def _cosine(a: Float[Tensor, "pos d_model"], b: Float[Tensor, "pos d_model"]) -> Float[np.ndarray, " pos"]:
    return _numbers(torch.nn.functional.cosine_similarity(a.float(), b.float(), dim=-1).clamp(-1, 1))


def _sizes(felt: Felt | None) -> dict[Address, tuple[np.ndarray, np.ndarray]] | None:
    """Of each activation the gradient's norm and its product with the activation, by position."""
    if felt is None:
        return None
    found = {}
    for at, (value, gradient) in felt.items():
        # None where nothing leads from it to the metric.
        gradient = torch.zeros_like(value) if gradient is None else gradient
        value, gradient = value.float(), gradient.float()
        found[at] = _numbers(gradient.norm(dim=-1)), _numbers((gradient * value).sum(-1))
    return found


def _numbers(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy().copy()


def _frame(columns: dict[str, Float[np.ndarray, "layer pos"]]) -> "pd.DataFrame":
    import pandas as pd

    layers, positions = np.indices(next(iter(columns.values())).shape)
    places = {"layer": layers.ravel(), "pos": positions.ravel()}
    return pd.DataFrame(places | {name: values.ravel() for name, values in columns.items()})
