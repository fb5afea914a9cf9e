"""Measure: derived numbers of a run, computed for what is shown; numpy out. On the model's worker where they read weights."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from transpector.state.errors import SiteError
from transpector.state.graph import NORMS
from transpector.state.sites import KINDS
from transpector.state.wiring import LAST_RESID, Address

if TYPE_CHECKING:
    from transpector.state.graph import Node
    from transpector.state.run import Run

MAX_SIDE = 64  # px of a thumbnail; more would be sent than a contact sheet can show


def thumbnails(
    run: "Run", side: int = MAX_SIDE
) -> tuple[UInt8[np.ndarray, "layer head side side"], Float[np.ndarray, "layer head"], int]:
    """Every head's pattern as bytes (255 is probability 1), each head's maximum past the first query, and positions a cell.

    Patterns longer than ``side`` are pooled by their maximum, layer by layer, so no whole stack is ever in memory.
    """
    stride = -(-run.n_pos // side)
    maxima = np.zeros((run.model.spec.n_layers, run.model.spec.n_heads), np.float32)
    pictures = []
    for layer in range(len(maxima)):
        pattern = run.tensor(("pattern", layer)).float()
        # The first query can only attend to itself: its 1 says nothing about the head.
        maxima[layer] = pattern[:, min(1, run.n_pos - 1) :].amax((-1, -2)).cpu().numpy()
        pictures.append(_pooled(pattern, stride))
    return np.stack(pictures), maxima, stride


def thumbnails_of(run: "Run", layer: int, side: int = MAX_SIDE) -> UInt8[np.ndarray, "head side side"]:
    """The same of the heads of one layer, as bytes."""
    return _pooled(run.tensor(("pattern", layer)).float(), -(-run.n_pos // side))


def _pooled(pattern: Float[Tensor, "head query key"], stride: int) -> UInt8[np.ndarray, "head side side"]:
    if stride > 1:
        cells = -(-pattern.shape[-1] // stride)
        padding = cells * stride - pattern.shape[-1]
        pattern = torch.nn.functional.pad(pattern, (0, padding, 0, padding))
        pattern = pattern.unflatten(-1, (cells, stride)).unflatten(-3, (cells, stride)).amax((-1, -3))
    return as_bytes(pattern)


def as_bytes(probability: Tensor) -> np.ndarray:
    """Probabilities as bytes, 255 for 1; only what rounds to nothing becomes 0."""
    return (probability.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def strip_patterns(run: "Run", layer: int, head: int) -> UInt8[np.ndarray, "3 query key"]:
    """Attention of a head, the mean of its layer's heads, and the mean of all heads, as bytes."""
    mean = sum(run.tensor(("pattern", at)).float().mean(0) for at in range(run.model.spec.n_layers))
    of_layer = run.tensor(("pattern", layer)).float()
    return as_bytes(torch.stack([of_layer[head], of_layer.mean(0), mean / run.model.spec.n_layers]))


def part_norms(run: "Run", nodes: Sequence["Node"]) -> dict[str, Float[np.ndarray, " pos"]]:
    """By id of a part of the model's graph, the norm at each position of what it writes; those that can be read.

    Of a norm layer it is the divisor that it scales by. What was not kept has its layers done again, each once.
    """
    addresses = {node: _told_by(node) for node in nodes}
    addresses = {node: at for node, at in addresses.items() if at is not None and _is_there(run, at)}
    run = run.model.complete(run, set(addresses.values()))
    found = {}
    for node, at in addresses.items():
        if at in run.activations or at[0] in KINDS:  # a hook point may never fire
            whole = run.tensor(at)
            value = whole if node.head is None else whole[:, node.head]
            found[node.id] = value.float().norm(dim=-1).cpu().numpy()  # a scale is one number, its own norm
    return found


def _told_by(node: "Node") -> Address | None:
    """Where the number of a part is read."""
    if node.site is not None:
        return node.site.tensor
    if node.kind == "resid_post":
        return LAST_RESID
    if node.layer is None:
        return None
    return f"blocks.{node.layer}.{node.kind}.hook_scale" if node.kind in NORMS else node.hook, node.layer


def _is_there(run: "Run", at: Address) -> bool:
    if at[0] in KINDS:
        return run.model.health.can_read(at[0])
    return at == LAST_RESID or at[0] in run.model.stack.names


def part_values(run: "Run", node: "Node") -> Float[np.ndarray, "pos width"]:
    """What a part of the model's graph writes, at each position or at the one that it stands for.

    Raises SiteError where that is not kept: of what is added to the embedding.
    """
    if node.site is not None:
        value = run.activation(node.site)
        return value[None] if value.ndim == 1 else value
    if node.kind == "unembed":
        return run.logits.float().cpu().numpy()
    if node.kind == "resid_post":
        return run.tensor(LAST_RESID).float().cpu().numpy()
    if node.kind == "ln_final":
        last = run.tensor(LAST_RESID)[None]
        return run.model.worker.call(lambda: run.model.stack.norm(last)[0]).float().cpu().numpy()
    if node.layer is None:
        raise SiteError(f"{node.id} is not kept. Look at embed and at L0.resid_pre, between which it lies.")
    return run.tensor((node.hook, node.layer)).float().cpu().numpy()


def predicted(run: "Run") -> list[tuple[str, float]]:
    """The likeliest next token at each position, with its probability."""
    logits = run.logits.float()
    best, token = logits.max(-1)
    probability = (best - logits.logsumexp(-1)).exp()
    return list(zip(run.model.pieces(token.tolist()), probability.tolist(), strict=True))


def next_tokens(
    run: "Run", baseline: "Run", position: int = -1, k: int = 5
) -> list[tuple[int, str, float, float]]:
    """The k likeliest tokens after a position as (id, token, probability, baseline's probability).

    The baseline's own first token is always among them.
    """
    now, before = run.log_probs(position).exp(), baseline.log_probs(position).exp()
    tokens = now.topk(min(k, len(now))).indices
    if (first := before.argmax()) not in tokens:
        tokens[-1] = first
    rows = zip(
        tokens.tolist(),
        run.model.pieces(tokens.tolist()),
        now[tokens].tolist(),
        before[tokens].tolist(),
        strict=True,
    )
    return list(rows)
