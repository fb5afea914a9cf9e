"""Reads: how heads and MLPs read the residual stream, found by asking the model's own code on single tokens."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transpector.state.errors import ModelError
from transpector.state.health import TOLERANCE
from transpector.state.known import once_for_weights
from transpector.state.ways import POSITIONS, HeldNorm, norm_gain
from transpector.state.wiring import Address, Pass

if TYPE_CHECKING:
    from transpector.state.models import Model

CHUNK_BYTES = 4e6  # of the vocabulary's streams at a time
N_PROBE = 12  # tokens, each a text of its own, on which a model shows how it reads

Norm = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class AttentionRead:
    """How the heads of a layer read the residual stream.

    ``norm`` is the model's own, ``held`` the same with its divisor held. Between tokens that are no distance apart a
    score is ``factor`` times query · key, through a cap if there is one; ``factor`` is None where it is something else.
    ``unit`` says what the numbers are: where the model does not show its scores, they are the bare products.
    """

    norm: Norm
    held: HeldNorm
    attn: torch.nn.Module
    n_heads: int
    factor: float | None = None
    cap: float | None = None
    unit: str = "attention score"

    def weights(self, name: str) -> Float[Tensor, "head d_model d_head"]:
        """W_Q, W_K or W_V; heads that share keys and values have a copy each."""
        weight = getattr(self.attn, name)
        return weight.repeat_interleave(self.n_heads // len(weight), 0).float()

    def of(self, name: str, head: int) -> Tensor:
        """W_Q, W_K, W_V, b_Q, b_K or b_V of one head; a bias that is not there is zero."""
        weight = getattr(self.attn, name, None)
        if weight is None:
            return torch.zeros(1, device=self.attn.W_Q.device)
        return weight[head * len(weight) // self.n_heads].float()

    def normed(self, streams: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        """What the heads are given of streams; computed in the model's dtype."""
        return self.norm(streams.to(self.attn.W_Q.dtype)[None])[0].float()

    def queries(self, normed: Float[Tensor, "token d_model"], head: int) -> Float[Tensor, "token d_head"]:
        """Queries of a head at streams that its norm has been applied to, before positions turn them."""
        return self._projected(normed, "Q", head, getattr(self.attn, "q_norm", None))

    def keys(self, normed: Float[Tensor, "token d_model"], head: int) -> Float[Tensor, "token d_head"]:
        """Keys, likewise."""
        return self._projected(normed, "K", head, getattr(self.attn, "k_norm", None))

    def scores(self, products: Tensor) -> Tensor:
        """Attention scores of products of queries and keys."""
        scores = products * self.factor
        return scores if self.cap is None else self.cap * (scores / self.cap).tanh()

    def moved(self, streams: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        """What the norm makes of streams, less what it makes of an empty one, which is its bias."""
        normed, empty = self.normed(streams), self.normed(torch.zeros_like(streams[:1]))
        return normed - empty if empty.any() else normed

    def divided(self, streams: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        """Streams over what the norm divides them by, its gain left out: the same for every layer of a model."""
        scaled = self.held.forth(streams)
        share = (scaled * self.moved(streams)).sum(-1, keepdim=True)
        return streams * share / scaled.square().sum(-1, keepdim=True).clamp(min=1e-30)

    def products(
        self, asked: Float[Tensor, " d_head"], normed: Float[Tensor, "token d_model"], head: int, of: str
    ) -> Float[Tensor, " token"]:
        """Products of a query with the keys of normed streams (``of`` "K"), or of a key with their queries ("Q")."""
        if getattr(self.attn, f"{of.lower()}_norm", None) is not None:
            return (self.keys if of == "K" else self.queries)(normed, head) @ asked
        # As one direction of the stream: far less to do than to make every key.
        return normed.float() @ (self.of(f"W_{of}", head) @ asked) + (self.of(f"b_{of}", head) * asked).sum()

    def _projected(self, normed: Tensor, name: str, head: int, norm: Norm | None) -> Tensor:
        found = normed.float() @ self.of(f"W_{name}", head) + self.of(f"b_{name}", head)
        return found if norm is None else norm(found)


@dataclass(frozen=True, eq=False)
class MLPRead:
    """How the neurons of a layer read the residual stream: by ``W_in``, and by ``W_gate`` where the MLP is gated.

    ``pre`` says which of them makes ``mlp_pre``, "in" or "gate".
    """

    norm: Norm
    held: HeldNorm
    mlp: torch.nn.Module
    pre: str = "in"

    @property
    def gated(self) -> bool:
        """Whether each neuron has a gate beside its value."""
        return getattr(self.mlp, "W_gate", None) is not None

    def normed(self, streams: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        """What the neurons are given of streams; computed in the model's dtype."""
        return self.norm(streams.to(self.mlp.W_in.dtype)[None])[0].float()

    def of(self, name: str, neuron: int) -> tuple[Float[Tensor, " d_model"], Tensor | float]:
        """Weight and bias of a neuron's "in" or "gate"."""
        bias = getattr(self.mlp, f"b_{name}", None)
        weight = getattr(self.mlp, f"W_{name}")[:, neuron].float()
        return weight, 0.0 if bias is None else bias[neuron].float()


def attention_read(model: "Model", layer: int) -> AttentionRead:
    """The read of a layer's heads; raises ModelError where the architecture hides it."""
    found = _probe(model).attention(layer)
    if found is None:
        raise ModelError(
            f"How the heads of layer {layer} read the residual stream can't be told from this architecture's weights."
        )
    return found


def mlp_read(model: "Model", layer: int) -> MLPRead:
    """The read of a layer's neurons; raises ModelError where the architecture hides it."""
    found = _probe(model).mlp(layer)
    if found is None:
        raise ModelError(
            f"What the neurons of layer {layer} read can't be told from this architecture's weights."
        )
    return found


def token_streams(model: "Model", ids: "Int[Tensor, ' token'] | list[int]") -> Float[Tensor, "token d_model"]:
    """What each token brings to the residual stream by itself, wherever it stands; float32, on the worker."""
    ids = torch.as_tensor(ids, device=model.spec.device)
    factor = _embedding_factor(model)
    return _begun(model, ids) if factor is None else factor * model.bridge.W_E[ids].float()


def vocabulary(model: "Model") -> Iterator[tuple[slice, Float[Tensor, "token d_model"]]]:
    """The streams of all tokens, some at a time."""
    spec = model.spec
    rows = max(1, int(CHUNK_BYTES / (4 * spec.d_model)))
    for first in range(0, spec.d_vocab, rows):
        some = slice(first, min(first + rows, spec.d_vocab))
        yield some, token_streams(model, torch.arange(some.start, some.stop))


def position_streams(model: "Model", n_pos: int) -> Float[Tensor, "pos d_model"] | None:
    """What each position adds to the residual stream; None in a model that adds nothing for a position."""
    if POSITIONS not in model.stack.names:
        return None
    ids = torch.zeros(1, n_pos, dtype=torch.long, device=model.spec.device)
    with torch.no_grad():
        return model.stack.open(ids).hidden[0].float() - token_streams(model, ids[0])


@once_for_weights
def _embedding_factor(model: "Model") -> float | None:
    """How many times a row of the embedding is what its token brings; None where it is more, as after a norm."""
    ids = torch.linspace(0, model.spec.d_vocab - 1, N_PROBE, device=model.spec.device).long()
    rows, brought = model.bridge.W_E[ids].double(), _begun(model, ids).double()
    factor = float((rows * brought).sum() / rows.square().sum().clamp(min=1e-30))
    apart = float((factor * rows - brought).abs().max())
    return factor if apart <= TOLERANCE[model.spec.dtype] * float(brought.abs().max()) else None


def _begun(model: "Model", ids: Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
    """The same as ``token_streams``, from the model's own code."""
    embedded: list[Tensor] = []
    # Positions are added to what is embedded; where there are none, more may be done to it.
    learned = POSITIONS in model.stack.names
    hooks = [("hook_embed", lambda whole, hook: embedded.append(whole))] if learned else []
    with torch.no_grad(), model.stack.hooked(hooks):
        hidden = model.stack.open(ids[:, None]).hidden
    return (embedded[0] if learned else hidden)[:, 0].float()


@once_for_weights
def _probe(model: "Model") -> "_Probe":
    return _Probe(model)


def _seen(model: "Model") -> dict[Address, Tensor]:
    """What each layer made of some tokens, each a text of its own: [token, ...]."""
    kinds = ("resid_pre", "attn_out", "q", "k", "v", "scores", "mlp_pre")
    keep = {(kind, layer) for kind in kinds for layer in range(model.spec.n_layers)}
    keep = {address for address in keep if model.health.can_read(address[0])}
    ids = torch.linspace(0, model.spec.d_vocab - 1, N_PROBE, device=model.spec.device).long()
    hooked = Pass(model.stack, model.wiring, keep=keep)
    with torch.no_grad():
        (hooked.walk if model.wiring.by_layer else hooked.run)(ids[:, None])
    return {
        address: whole[:, :, 0, 0] if address[0] == "scores" else whole[:, 0]
        for address, whole in hooked.kept.items()
    }


class _Probe:
    """One model, asked by texts of one token each: no distance lies between a query and its key."""

    def __init__(self, model: "Model"):
        # Not the model itself, which is not to live as long as what is known of it.
        self.bridge, self.spec, self.parallel = model.bridge, model.spec, model.wiring.parallel
        self.tolerance = TOLERANCE[model.spec.dtype]
        self.seen = _seen(model)
        self._reads: dict[tuple[str, int], AttentionRead | MLPRead | None] = {}

    def attention(self, layer: int) -> AttentionRead | None:
        """How the layer's heads read, if that can be told."""
        if ("attention", layer) not in self._reads:
            self._reads["attention", layer] = self._attention(layer)
        return self._reads["attention", layer]

    def mlp(self, layer: int) -> MLPRead | None:
        """How the layer's neurons read, if that can be told."""
        if ("mlp", layer) not in self._reads:
            self._reads["mlp", layer] = self._mlp(layer)
        return self._reads["mlp", layer]

    def _attention(self, layer: int) -> AttentionRead | None:
        block, spec = self.bridge.blocks[layer], self.spec
        stream, norm = self.seen.get(("resid_pre", layer)), getattr(block, "ln1", None)
        weights = [getattr(block.attn, name, None) for name in ("W_Q", "W_K", "W_V")]
        shape = (spec.d_model, spec.d_head)
        if stream is None or norm is None or any(w is None or tuple(w.shape[1:]) != shape for w in weights):
            return None
        read = AttentionRead(norm, norm_gain(norm, stream), block.attn, spec.n_heads)
        normed = norm(stream[None])[0].float()
        if not self._is_read(layer, read, normed, "v"):
            return None
        return replace(read, **self._score(layer, read, normed))

    def _is_read(self, layer: int, read: AttentionRead, normed: Tensor, kind: str) -> bool:
        """Whether the model's own queries, keys or values are what its weights make of the normed stream."""
        seen = self.seen.get((kind, layer))
        if seen is None:
            return False
        made = [
            normed @ read.of(f"W_{kind.upper()}", head) + read.of(f"b_{kind.upper()}", head)
            for head in range(read.n_heads)
        ]
        return self._close(
            torch.stack(made, -2), seen.float().repeat_interleave(read.n_heads // seen.shape[-2], -2)
        )

    def _score(self, layer: int, read: AttentionRead, normed: Tensor) -> dict[str, Any]:
        """What makes a score of a query and a key, if they are all that does."""
        scores = self.seen.get(("scores", layer))
        if scores is None:
            bare = not any(hasattr(read.attn, name) for name in ("q_norm", "k_norm"))
            same = bare and all(self._is_read(layer, read, normed, kind) for kind in "qk")
            return {"factor": 1.0, "unit": "query · key"} if same else {}
        try:
            products = torch.stack(
                [
                    (read.queries(normed, head) * read.keys(normed, head)).sum(-1)
                    for head in range(read.n_heads)
                ],
                -1,
            ).double()
        except RuntimeError:  # a norm of all heads at once
            return {}
        cap = getattr(self.bridge.original_model.config, "attn_logit_softcapping", None)
        for each in (None, cap) if cap else (None,):
            bare = scores.double() if each is None else each * (scores.double() / each).atanh()
            factor = float((products * bare).sum() / products.square().sum().clamp(min=1e-30))
            found = replace(read, factor=factor, cap=each)
            if self._close(found.scores(products), scores.double()):
                return {"factor": factor, "cap": each}
        return {}

    def _mlp(self, layer: int) -> MLPRead | None:
        block = self.bridge.blocks[layer]
        before, pre = self.seen.get(("resid_pre", layer)), self.seen.get(("mlp_pre", layer))
        if before is None or pre is None:
            return None
        norm = getattr(block, "ln2", None) or getattr(block, "ln1", None)
        if norm is None:
            return None
        stream = before if self.parallel else before + self.seen["attn_out", layer]
        normed = norm(stream[None])[0]
        for name in ("in", "gate"):
            weight, bias = (getattr(block.mlp, f"{what}_{name}", None) for what in "Wb")
            if weight is not None and tuple(weight.shape) == (normed.shape[-1], pre.shape[-1]):
                found = normed @ weight
                if self._close((found if bias is None else found + bias).float(), pre.float()):
                    return MLPRead(norm, norm_gain(norm, stream), block.mlp, name)
        return None

    def _close(self, a: Tensor, b: Tensor) -> bool:
        return a.shape == b.shape and bool(
            (a - b).abs().max() <= self.tolerance * max(1.0, float(b.abs().max()))
        )
