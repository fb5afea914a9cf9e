"""Distance: how a head's attention depends on how far back a key lies."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from transpector.state.errors import ModelError
from transpector.state.known import once_for_weights
from transpector.state.reads import attention_read, position_streams
from transpector.state.sites import Site
from transpector.state.wiring import Pass

if TYPE_CHECKING:
    from transpector.state.models import Model
    from transpector.state.run import Run

N_PROBE = 8  # positions on which a model shows what distance does to its scores
MAX_POSITIONS = 512  # of which positions on their own are compared
LEARNED = "closed form: the scores of the position embeddings alone, averaged over queries"
LINEAR = "closed form: what is added to a score falls with the distance by a constant (ALiBi)"
MEASURED = "measured on this text: this model's positions have no closed form without content"


@dataclass(frozen=True, eq=False)
class Distance:
    """What one head makes of distance, measured on a run and, where there is one, in closed form.

    ``attention`` is the mean probability that goes to the key so many tokens before the query, over the queries that
    have one; ``scores`` what the weights alone add to a score for it, about the mean, in the unit that
    ``circuits.score_unit`` says; None where they don't say. ``how`` says which.
    """

    attention: Float[np.ndarray, " distance"] = field(repr=False)
    scores: Float[np.ndarray, " distance"] | None = field(repr=False)
    how: str


def distance(run: "Run", layer: int, head: int) -> Distance:
    """What a head makes of distance; raises SiteError for a head that is not there or whose pattern can't be read."""
    pattern = run.pattern(layer, head)
    attention = np.array([np.diagonal(pattern, -away).mean() for away in range(len(pattern))], np.float32)
    try:
        scores, how = run.model.worker.call(lambda: _closed(run.model, layer, head, run.n_pos))
    except ModelError:
        scores, how = None, MEASURED
    return Distance(attention, scores, how)


def _closed(
    model: "Model", layer: int, head: int, n_pos: int
) -> tuple[Float[np.ndarray, " distance"] | None, str]:
    Site("scores", layer, head).check(model.spec)
    streams = position_streams(model, min(n_pos, MAX_POSITIONS))
    if streams is not None:
        found = _of_embeddings(model, layer, head, streams)
        return (None, MEASURED) if found is None else (found - found.mean(), LEARNED)
    slopes = _slopes(model)
    if slopes is None:
        return None, MEASURED
    away = np.arange(n_pos, dtype=np.float32)
    return slopes[head] * (away - away.mean()), LINEAR


def _of_embeddings(
    model: "Model", layer: int, head: int, streams: Float[Tensor, "pos d_model"]
) -> Float[np.ndarray, " distance"] | None:
    read = attention_read(model, layer)
    if read.factor is None:
        return None
    normed = read.normed(streams)
    scores = read.scores(read.queries(normed, head) @ read.keys(normed, head).T)
    means = [scores.diagonal(-away).mean() for away in range(len(streams))]
    return torch.stack(means).float().cpu().numpy()


@once_for_weights
def _slopes(model: "Model") -> Float[np.ndarray, " head"] | None:
    """By how much each head's scores change with every step of distance, if they change by a constant.

    Found on one token again and again, which the first layer can tell apart by nothing else.
    """
    if not model.health.can_read("scores"):
        return None
    ids = torch.ones(1, N_PROBE, dtype=torch.long, device=model.spec.device)
    hooked = Pass(model.stack, model.wiring, keep={("scores", 0)})
    with torch.no_grad():
        (hooked.walk if model.wiring.by_layer else hooked.run)(ids)
    last = hooked.kept["scores", 0][0, :, -1].double().flip(-1)  # [head, distance]
    steps = last.diff()
    constant = steps.mean(-1, keepdim=True)
    size = float(last.abs().max().clamp(min=1))
    if (steps - constant).abs().max() > 1e-4 * size or constant.abs().max() < 1e-4 * size:
        return None
    return constant[:, 0].float().cpu().numpy()
