"""Composition: how far a head reads what earlier heads write, by its queries, keys and values; and what rank it has.

After Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits": the Frobenius norm of the product of the two
circuits over the product of their norms. Norms' gains are counted in; turns of rotary positions are left out.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from transpector.state.circuits import head_outputs
from transpector.state.errors import ModelError
from transpector.state.reads import AttentionRead, attention_read
from transpector.state.sites import Site
from transpector.state.ways import norm_gain

if TYPE_CHECKING:
    from transpector.state.models import Model


@dataclass(frozen=True, eq=False)
class Composition:
    """How far one head reads what each earlier head writes, 0 to 1; NaN for a layer that hides what it writes.

    Heads that have nothing to do with each other come to about ``chance``, 1 over the root of d_model.
    """

    q: Float[np.ndarray, "layer head"] = field(repr=False)
    k: Float[np.ndarray, "layer head"] = field(repr=False)
    v: Float[np.ndarray, "layer head"] = field(repr=False)
    chance: float


def composition(model: "Model", layer: int, head: int) -> Composition:
    """Query-, key- and value-composition of a head with every head of the layers before it, from the weights alone.

    Raises SiteError for a head that is not there, ModelError where the architecture hides how it reads.
    """
    Site("z", layer, head).check(model.spec)
    return model.worker.call(lambda: _composition(model, layer, head))


def singular_values(
    model: "Model", layer: int, head: int
) -> tuple[Float[np.ndarray, " d_head"], Float[np.ndarray, " d_head"]]:
    """The singular values of a head's OV and QK circuits between two streams, the largest first; the others are zero."""
    Site("z", layer, head).check(model.spec)

    def found(left: Float[Tensor, "d_head d_model"], right: Float[Tensor, "d_head d_model"]) -> np.ndarray:
        cores = [torch.linalg.qr(each.double().mT).R for each in (left, right)]
        return torch.linalg.svdvals(cores[0] @ cores[1].mT).float().cpu().numpy()

    def both() -> tuple[np.ndarray, np.ndarray]:
        inputs = _inputs(model, layer)
        return (
            found(inputs["v"][head], head_outputs(model, layer)[head]),
            found(inputs["q"][head], inputs["k"][head]),
        )

    return model.worker.call(both)


def weights(model: "Model", layer: int, head: int) -> dict[str, Float[np.ndarray, "row column"]]:
    """The matrices of a head as the model has them: W_Q, W_K and W_V [d_model, d_head], W_O [d_head, d_model]; float32."""
    Site("z", layer, head).check(model.spec)

    def matrices() -> dict[str, np.ndarray]:
        read, attn = attention_read(model, layer), model.bridge.blocks[layer].attn
        found = {name: read.of(name, head) for name in ("W_Q", "W_K", "W_V")} | {
            "W_O": attn.W_O[head].float()
        }
        return {name: matrix.cpu().numpy().copy() for name, matrix in found.items()}

    return model.worker.call(matrices)


def _inputs(model: "Model", layer: int) -> dict[str, Float[Tensor, "head d_head d_model"]]:
    """How every head of a layer reads the stream, by q, k and v, the norms' gains counted in."""
    read = attention_read(model, layer)
    return {kind: read.held.back(_weights(read, kind).mT) for kind in "qkv"}


def _weights(read: AttentionRead, kind: str) -> Float[Tensor, "head d_model d_head"]:
    found = read.weights(f"W_{kind.upper()}")
    norm = getattr(read.attn, f"{kind}_norm", None) if kind in "qk" else None
    if norm is None:
        return found
    if read.factor is None:
        raise ModelError("The attention scores of this architecture are more than queries times keys.")
    return norm_gain(norm, found[0]).forth(found)


def _composition(model: "Model", layer: int, head: int) -> Composition:
    spec = model.spec
    reader = {kind: each[head] for kind, each in _inputs(model, layer).items()}  # [d_head, d_model]
    output = head_outputs(model, layer)[head]
    # By what it reads with, and the other end of the circuit that this belongs to.
    ends = {"q": reader["k"], "k": reader["q"], "v": output}
    found = {kind: np.full((layer, spec.n_heads), np.nan, np.float32) for kind in ends}
    for earlier in range(layer):
        try:
            inputs, outputs = _inputs(model, earlier)["v"], head_outputs(model, earlier)
        except ModelError:
            continue
        # Every product is of low rank: norms are of Gram matrices, d_head square.
        before = inputs @ inputs.mT
        written = (before * (outputs @ outputs.mT)).sum((-1, -2))
        for kind, end in ends.items():
            across, after = outputs @ reader[kind].mT, end @ end.mT
            both = ((before @ across @ after) * across).sum((-1, -2))
            read = ((reader[kind] @ reader[kind].mT) * after).sum()
            found[kind][earlier] = (both / (written * read)).clamp(min=0).sqrt().cpu().numpy()
    return Composition(**found, chance=spec.d_model**-0.5)
