"""Circuits: what a head's weights make of tokens, wherever they stand: what it writes of them (OV), what it looks for (QK).

Both after Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits". A token is its embedding alone through
the layer's own norm; the norms' gains are counted in, the divisor of the final norm, which no token has by itself, is 1.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from transpector.state.errors import ModelError
from transpector.state.known import once_for_weights
from transpector.state.reads import attention_read, token_streams, vocabulary
from transpector.state.sites import Site
from transpector.state.ways import HeldNorm, projection, ways

if TYPE_CHECKING:
    from transpector.state.models import Model

Ranking = list[tuple[str, float]]
"""Tokens, with a number each, the furthest first."""


def ov_tokens(
    model: "Model", layer: int, head: int, token: str | int, k: int = 10
) -> tuple[Ranking, Ranking]:
    """The tokens that a head promotes and suppresses most where it attends to a token: logits about their mean.

    ``token`` is a text of one token, or an id. Raises TextError for another text, SiteError for a head that is not there,
    ModelError where the architecture hides the way.
    """

    def row() -> Tensor:
        written = head_writes(model, layer, head, token_streams(model, [token_id(model, token)]))
        return logits_of(model, written)[0]

    return ranked(model, model.worker.call(row), k)


def copied_tokens(model: "Model", layer: int, head: int, k: int = 10) -> tuple[Ranking, Ranking]:
    """The tokens whose own logit a head raises most where it attends to them, and those whose it lowers most.

    These are the diagonal of the whole OV circuit, about the mean of each row.
    """
    return ranked(model, model.worker.call(lambda: _own_logits(model, layer, head)), k)


def qk_tokens(
    model: "Model", layer: int, head: int, token: str | int, k: int = 10, *, as_key: bool = False
) -> tuple[Ranking, Ranking]:
    """The tokens that a token attends to most and least by content: attention scores where no distance lies between.

    With ``as_key``, those that attend to it most and least. Where positions are added to the stream they are left out.
    Raises as ``ov_tokens``.
    """
    return ranked(
        model,
        model.worker.call(lambda: _scores(model, layer, head, token_id(model, token), as_key)),
        k,
    )


def score_unit(model: "Model", layer: int) -> str:
    """What the numbers of ``qk_tokens`` are, for a model that does not show its scores; raises as ``ov_tokens``."""
    Site("scores", layer).check(model.spec)
    return model.worker.call(lambda: attention_read(model, layer)).unit


def copying(model: "Model") -> Float[np.ndarray, "layer head"]:
    """How much of what a head writes of a token is for that same token: 1 all, −1 all against it.

    The sum of the eigenvalues of its OV circuit from the whole vocabulary to itself over the sum of their magnitudes.
    Raises ModelError where the architecture hides the way.
    """
    values = model.worker.call(lambda: _eigenvalues(model))
    return (values.sum(-1).real / np.abs(values).sum(-1).clip(1e-30)).astype(np.float32)


def ov_eigenvalues(model: "Model", layer: int, head: int) -> Complex[np.ndarray, " d_head"]:
    """The eigenvalues of a head's OV circuit from the vocabulary to itself, the largest first; the others are zero."""
    Site("z", layer, head).check(model.spec)
    values = model.worker.call(lambda: _eigenvalues(model))[layer, head]
    return values[np.argsort(-np.abs(values))]


def token_id(model: "Model", token: str | int) -> int:
    """The id of a token given by its text or its id; raises TextError if it is none."""
    return model.checked([token])[0] if isinstance(token, int) else model.text.token_id(token)


# On the worker


def head_outlet(model: "Model", layer: int) -> HeldNorm:
    """What lies between a layer's heads and the stream, its divisor left at 1; raises ModelError if that can't be told."""
    outlet = ways(model).outlets["z"][layer]
    if outlet is None:
        raise ModelError(
            f"What the heads of layer {layer} add to the residual stream can't be told in this model."
        )
    return outlet


def head_outputs(model: "Model", layer: int) -> Float[Tensor, "head d_head d_model"]:
    """Each head's W_O, as it counts in the residual stream."""
    weight, _ = projection(model, "z", layer)
    return head_outlet(model, layer).forth(weight.float().unflatten(0, (model.spec.n_heads, -1)))


def head_writes(
    model: "Model", layer: int, head: int, streams: Float[Tensor, "token d_model"]
) -> Float[Tensor, "token d_model"]:
    """What a head writes where it attends to a stream alone; what it writes whatever it reads, its biases, left out."""
    Site("z", layer, head).check(model.spec)
    read = attention_read(model, layer)
    return read.moved(streams) @ read.of("W_V", head) @ head_outputs(model, layer)[head]


def logits_of(model: "Model", written: Float[Tensor, "read d_model"]) -> Float[Tensor, "read d_vocab"]:
    """Logits about their mean, the final norm's divisor left at 1."""
    found, weight = ways(model), model.bridge.W_U
    normed = found.final.forth(written)
    return (normed.to(weight.dtype) @ weight).float() - (normed @ found.mean)[:, None]


def _own_logits(model: "Model", layer: int, head: int) -> Float[Tensor, " d_vocab"]:
    Site("z", layer, head).check(model.spec)
    read, found = attention_read(model, layer), ways(model)
    outputs = found.final.forth(head_outputs(model, layer)[head])  # [d_head, d_model]
    own = torch.empty(model.spec.d_vocab, device=model.spec.device)
    for some, streams in vocabulary(model):
        values = read.moved(streams) @ read.of("W_V", head)
        unembeddings = model.bridge.W_U[:, some].float() - found.mean[:, None]
        own[some] = (values * (outputs @ unembeddings).T).sum(-1)
    return own


def _scores(model: "Model", layer: int, head: int, token: int, as_key: bool) -> Float[Tensor, " d_vocab"]:
    Site("scores", layer, head).check(model.spec)
    read = attention_read(model, layer)
    if read.factor is None:
        raise ModelError("The attention scores of this architecture are more than queries times keys.")
    of_token = read.normed(token_streams(model, [token]))
    asked = (read.keys if as_key else read.queries)(of_token, head)[0]
    products = torch.empty(model.spec.d_vocab, device=model.spec.device)
    for some, streams in vocabulary(model):
        normed = read.normed(streams)
        products[some] = read.products(asked, normed, head, "Q" if as_key else "K")
    return read.scores(products)


@once_for_weights
def _eigenvalues(model: "Model") -> Complex[np.ndarray, "layer head d_head"]:
    spec, found = model.spec, ways(model)
    # From the unembedding to the embedding, past the vocabulary: of its width there are only these products.
    across, first = torch.zeros(spec.d_model, spec.d_model, device=spec.device), attention_read(model, 0)
    for some, streams in vocabulary(model):
        across += (model.bridge.W_U[:, some].float() - found.mean[:, None]) @ first.divided(streams)
    values = []
    for layer in range(spec.n_layers):
        read = attention_read(model, layer)
        outputs = found.final.forth(head_outputs(model, layer))  # [head, d_head, d_model]
        inputs = read.held.back(read.weights("W_V").mT)  # [head, d_head, d_model]
        values.append(torch.linalg.eigvals((outputs @ across @ inputs.mT).double().cpu()).numpy())
    return np.stack(values)


def ranked(model: "Model", values: Float[Tensor, " d_vocab"], k: int) -> tuple[Ranking, Ranking]:
    """The highest, and the lowest."""

    def some(largest: bool) -> Ranking:
        best = values.topk(min(k, len(values)), largest=largest)
        return list(zip(model.pieces(best.indices.tolist()), best.values.tolist(), strict=True))

    return some(True), some(False)
