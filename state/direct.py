"""Direct: what a part of the model adds to the logits by itself, through the final norm and the unembedding.

The final norm's divisor is held at what it was in the run, which makes the way from the residual stream to the logits
linear (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits").
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from transpector.state.errors import ModelError, SiteError
from transpector.state.graph import Node
from transpector.state.sites import Site
from transpector.state.ways import OUTLETS, final_divisor, outlet_divisor, projection, ways
from transpector.state.wiring import LAST_RESID

if TYPE_CHECKING:
    from transpector.state.run import Run

IN_THE_STREAM = ("embed", "resid_pre", "attn_out", "resid_mid", "mlp_out")
MAX_BYTES = 25e6  # of logits at a time

Part = Site | Node | str
"""A part of the model: a site, as it is or as it is printed, or a node of the model's graph."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """The tokens, at each position, whose logits a part raises or lowers most, and by how much, in logits."""

    token_ids: Int[np.ndarray, "pos k"]
    values: Float[np.ndarray, "pos k"]


def promoted(
    run: "Run", part: Part, position: int = -1, k: int = 5
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """The tokens that a part promotes and suppresses most at a position, in logits about their mean.

    The part is anything that is added to the residual stream: the embedding, a head, a layer's attention or MLP, a
    neuron; or the stream itself. One that names a position is read there. Where the model bends its logits, they are
    those before. Raises SiteError for what is not in the stream, ModelError where the architecture hides the way.
    """
    named = part.position if isinstance(part, Node) else Site.parse(part).position
    at = run.at(named if isinstance(named, int) else position)
    up, down = run.model.worker.call(lambda: _ranked(run, written(run, part, [at]), [at], k))

    def pairs(ranking: Ranking) -> list[tuple[str, float]]:
        pieces = run.model.pieces(ranking.token_ids[0].tolist())
        return list(zip(pieces, ranking.values[0].tolist(), strict=True))

    return pairs(up), pairs(down)


def promoted_everywhere(run: "Run", part: Part, k: int = 5) -> tuple[Ranking, Ranking]:
    """The same at every position at once: what the part promotes, and what it suppresses."""
    every = range(run.n_pos)
    return run.model.worker.call(lambda: _ranked(run, written(run, part, every), every, k))


def _ranked(
    run: "Run", parts: Float[Tensor, "read d_model"], positions: Sequence[int], k: int
) -> tuple[Ranking, Ranking]:
    spec = run.model.spec
    rows = max(1, int(MAX_BYTES / (4 * spec.d_vocab)))
    found: tuple[list, list] = ([], [])
    for first in range(0, len(parts), rows):
        some = slice(first, first + rows)
        logits, mean = _logits(run, parts[some], positions[some])
        for ranked, largest in zip(found, (True, False), strict=True):
            best = logits.topk(min(k, spec.d_vocab), largest=largest)
            ranked.append((best.indices, best.values - mean))
    up, down = (
        Ranking(*(torch.cat(column).cpu().numpy() for column in zip(*ranked, strict=True)))
        for ranked in found
    )
    return up, down


def to_logits(
    run: "Run", parts: Float[Tensor, "read d_model"], positions: Sequence[int]
) -> Float[Tensor, "read d_vocab"]:
    """What parts of the last residual, each at its position, add to the logits, about their mean."""
    logits, mean = run.model.worker.call(lambda: _logits(run, parts, positions))
    return logits - mean


def _logits(
    run: "Run", parts: Float[Tensor, "read d_model"], positions: Sequence[int]
) -> tuple[Float[Tensor, "read d_vocab"], Float[Tensor, "read 1"]]:
    """What parts add to the logits, and its mean over the vocabulary, which is not worth a pass over all of it."""
    found, weight = ways(run.model), run.model.bridge.W_U
    normed = found.final.forth(parts, final_divisor(run, positions))
    return (normed.to(weight.dtype) @ weight).float(), (normed @ found.mean)[:, None]


def written(run: "Run", part: Part, positions: Sequence[int]) -> Float[Tensor, "read d_model"]:
    """What a part adds to the residual stream at some positions, or the stream itself; float32; on the worker.

    Raises SiteError for what is not in the stream, ModelError where the architecture hides what it adds.
    """
    if isinstance(part, Node) and part.kind == "resid_post":
        return run.tensor(LAST_RESID)[list(positions)].float()
    site = part.site if isinstance(part, Node) else Site.parse(part)
    if site is None or site.kind not in (*IN_THE_STREAM, *OUTLETS):
        raise SiteError(
            f"{part.id if isinstance(part, Node) else part} is not added to the residual stream, so it has no direct "
            "effect on the logits. Choose a head's z, a neuron's mlp_post, embed, attn_out, mlp_out or the stream."
        )
    values = run.activation(replace(site, position=None))[list(positions)]
    values = torch.from_numpy(values).to(run.model.spec.device)
    if site.dim is not None:
        along = torch.zeros(len(positions), run.model.spec.d_model, device=values.device)
        along[:, site.dim] = values
        values = along
    if site.kind in OUTLETS:
        return _projected(run, site, values.flatten(1) if values.ndim > 1 else values[:, None], positions)
    factor = ways(run.model).embed if site.kind == "embed" else 1.0
    if factor is None:
        raise ModelError("What this architecture adds of its embedding can't be told. Look at L0.resid_pre.")
    return factor * values


def _projected(
    run: "Run", site: Site, values: Float[Tensor, "read inner"], positions: Sequence[int]
) -> Float[Tensor, "read d_model"]:
    outlet = ways(run.model).outlets[site.kind][site.layer]
    if outlet is None:
        raise ModelError(
            f"What this architecture adds of {site} to the residual stream can't be told. "
            f"Look at L{site.layer}.{OUTLETS[site.kind][1]}."
        )
    weight, _ = projection(run.model, site.kind, site.layer)
    if site.head is not None:
        weight = weight.unflatten(0, (run.model.spec.n_heads, -1))[site.head]
    elif site.neuron is not None:
        weight = weight[site.neuron][None]
    return outlet.forth(values @ weight.float(), outlet_divisor(run, site.kind, site.layer, positions))


def head_result(run: "Run", layer: int, head: int) -> Float[Tensor, "pos d_model"]:
    """What a head writes: z @ W_O, before the layer's output bias and, where there is one, its post norm."""
    w_o = run.model.bridge.blocks[layer].attn.W_O[head]  # [d_head, d_model]
    return run.model.worker.call(lambda: (run.tensor(("z", layer))[:, head] @ w_o).float())


def result_norm(run: "Run", layer: int, head: int) -> Float[np.ndarray, " pos"]:
    """Norm of what a head writes, by position."""
    return head_result(run, layer, head).norm(dim=-1).cpu().numpy()
