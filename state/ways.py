"""Ways: how what the parts of a model write reaches its logits, found by asking the model's own code."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from transpector.state.errors import ModelError
from transpector.state.health import TOLERANCE
from transpector.state.known import once_for_weights
from transpector.state.wiring import LAST_RESID, Address, Pass

if TYPE_CHECKING:
    from transpector.state.models import Model
    from transpector.state.run import Run

# What a projection takes into the residual stream; the norm that may follow it; what it then adds.
OUTLETS = {"z": ("ln1_post", "attn_out"), "mlp_post": ("ln2_post", "mlp_out")}

POSITIONS = "pos_embed.hook_out"  # a hook point of models that add learned positions to the embedding

ALMOST = 1e-6  # small beside the root of any epsilon
N_PROBE = 4  # tokens of the text on which a model shows what lies between its parts and its stream


@dataclass(frozen=True, eq=False)
class HeldNorm:
    """A norm whose divisor is held, or a mere factor: linear, so every share of a sum is treated alike."""

    gain: Float[Tensor, " d_model"]
    centred: bool = False

    def forth(self, parts: Float[Tensor, "*read d_model"], divisor: Tensor | float = 1.0) -> Tensor:
        """What it makes of parts of the sum that it was given."""
        parts = parts - parts.mean(-1, keepdim=True) if self.centred else parts
        return parts * (self.gain / divisor)

    def back(self, direction: Float[Tensor, "*read d_model"], divisor: Tensor | float = 1.0) -> Tensor:
        """The direction whose product with a part is that of ``direction`` with what becomes of the part."""
        direction = direction * (self.gain / divisor)
        return direction - direction.mean(-1, keepdim=True) if self.centred else direction


@dataclass(frozen=True, eq=False)
class Ways:
    """How the parts of one model reach its logits, with the weights that it has.

    The residual stream begins with ``embed`` times the embedding; ``outlets`` are, by kind and layer, what lies between
    a projection and the stream: either is None where it can't be told. Logits are the last residual through ``final``
    @ W_U + ``constant``, or a curve of that where the model is ``bent``. ``mean`` is W_U's over the vocabulary.
    """

    embed: float | None
    outlets: dict[str, tuple[HeldNorm | None, ...]]
    final: HeldNorm
    mean: Float[Tensor, " d_model"]
    constant: Float[Tensor, " d_vocab"]
    bent: bool


@once_for_weights
def ways(model: "Model") -> Ways:
    """The ways of a model, found once for its weights as they are; on its worker.

    Raises ModelError if its logits are not a norm of the residual stream times an unembedding.
    """
    return _Probe(model).ways()


def projection(
    model: "Model", kind: str, layer: int
) -> tuple[Float[Tensor, "inner d_model"], Float[Tensor, " d_model"] | None]:
    """Weight and bias that take ``z``, heads end to end, or ``mlp_post`` out of a layer.

    Raises AttributeError if there is no such weight, NotImplementedError if it is stored as no plain matrix.
    """
    block = model.bridge.blocks[layer]
    if kind == "z":
        return block.attn.W_O.flatten(0, 1), getattr(block.attn.o, "bias", None)
    return block.mlp.W_out, getattr(block.mlp.out, "bias", None)


def outlet_divisor(run: "Run", kind: str, layer: int, positions: Sequence[int]) -> Float[Tensor, "read 1"]:
    """What the norm after a projection divided by at each position; 1 where there is none."""
    norm = _post_norm(run.model, kind, layer)
    if norm is None:
        return torch.ones(len(positions), 1, device=run.model.spec.device)
    whole = _whole(run.tensor((kind, layer))[list(positions)], *projection(run.model, kind, layer))
    return _divisor(norm, ways(run.model).outlets[kind][layer], whole)


def final_divisor(run: "Run", positions: Sequence[int]) -> Float[Tensor, "read 1"]:
    """What the final norm divided by at each position, and so divides every part of its input by."""
    norm = run.model.bridge.ln_final
    return _divisor(norm, norm_gain(norm, run.tensor(LAST_RESID)), run.tensor(LAST_RESID)[list(positions)])


def norm_gain(norm: torch.nn.Module, like: Float[Tensor, "read d_model"]) -> HeldNorm:
    """The weight that a norm multiplies by, and whether it subtracts the mean first; found by asking it.

    Norms differ in how they keep their weight (Gemma's adds one to it), but not in what they do to ±1.
    """
    signs = torch.ones(1, 1, like.shape[-1], device=like.device, dtype=like.dtype)
    signs[..., 1::2] = -1
    large = signs * 64  # large beside any epsilon
    gain = (norm(large) - norm(-large)) / 2 * signs
    return HeldNorm(gain[0, 0].float(), torch.allclose(norm(large + 64), norm(large), atol=1e-2))


def _post_norm(model: "Model", kind: str, layer: int) -> torch.nn.Module | None:
    return getattr(model.bridge.blocks[layer], OUTLETS[kind][0], None)


def _whole(inner: Float[Tensor, "read ..."], weight: Tensor, bias: Tensor | None) -> Tensor:
    whole = inner.flatten(1) @ weight
    return whole if bias is None else whole + bias


def _divisor(
    norm: torch.nn.Module, held: HeldNorm, whole: Float[Tensor, "read d_model"]
) -> Float[Tensor, "read 1"]:
    """What a norm divides by, with its epsilon, which counts where little is written: from what it makes of it."""
    # Of nothing it makes nothing, by which no divisor can be told: so of almost nothing.
    almost = torch.full_like(whole, ALMOST)
    almost[:, 1::2] *= -1
    whole = torch.where(whole.abs().amax(-1, keepdim=True) < ALMOST, almost, whole)
    normed = norm(torch.cat([whole, torch.zeros_like(whole[:1])])[None])[0].float()
    scaled = held.forth(whole.float(), 1.0)
    share = (scaled * (normed[:-1] - normed[-1:])).sum(-1, keepdim=True)
    return scaled.square().sum(-1, keepdim=True) / share


class _Probe:
    """One model, asked."""

    def __init__(self, model: "Model"):
        self.model = model
        self.tolerance = TOLERANCE[model.spec.dtype]
        self.seen: dict[Address, Tensor] = {}

    def ways(self) -> Ways:
        final, constant, bent = self._ending()
        self._look()
        outlets = {
            kind: tuple(self._outlet(kind, layer) for layer in range(self.model.spec.n_layers))
            for kind in OUTLETS
        }
        mean = self.model.bridge.W_U.mean(-1, dtype=torch.float32)
        return Ways(self._embed(), outlets, final, mean, constant, bent)

    def _ending(self) -> tuple[HeldNorm, Tensor, bool]:
        bridge, stack, spec = self.model.bridge, self.model.stack, self.model.spec
        norm = getattr(bridge, "ln_final", None)
        if getattr(norm, "original_component", norm) is None:
            raise ModelError(
                "This architecture has no final norm, so the direct effect on its logits can't be told."
            )
        weight = getattr(bridge, "W_U", None)
        if weight is None or tuple(weight.shape) != (spec.d_model, spec.d_vocab):
            raise ModelError("The unembedding of this architecture does not read the residual stream.")
        # An empty stream, and one that makes the logits as large and as different as they get.
        stream = weight[:, weight.norm(dim=0).argmax()]
        streams = torch.stack([torch.zeros_like(stream), stream])
        held = norm_gain(norm, streams)
        normed = norm(streams[None])[0]
        moved = held.forth(streams[1:].float(), _divisor(norm, held, streams[1:]))[0]
        if not self._close(moved, (normed[1] - normed[0]).float()):
            raise ModelError("The final norm of this architecture does more than to divide by a number.")
        empty, logits = stack.close(streams[None])[0].float()
        effect = ((normed[1] - normed[0]) @ weight).float()
        factor = self._factor(effect, logits - empty)
        if self._close(factor * effect, logits - empty):
            return HeldNorm(held.gain * factor, held.centred), empty, False
        constant = (normed[0] @ weight).float() + getattr(bridge, "b_U", torch.zeros_like(empty)).float()
        bent = logits[(effect + constant).argsort()]
        if (bent.diff() < -self.tolerance * max(1.0, float(bent.abs().max()))).any():
            raise ModelError("The logits of this architecture do not follow from its unembedding.")
        return held, constant, True

    def _look(self) -> None:
        model = self.model
        kinds = ("resid_pre", *OUTLETS, *(out for _, out in OUTLETS.values()))
        keep = {(kind, layer) for kind in kinds for layer in range(model.spec.n_layers)} | {("embed", None)}
        keep = {address for address in keep if model.health.can_read(address[0])}
        ids = torch.linspace(0, model.spec.d_vocab - 1, N_PROBE + 2, device=model.spec.device).long()
        hooked = Pass(model.stack, model.wiring, keep=keep)
        (hooked.walk if model.wiring.by_layer else hooked.run)(ids[None, 1:-1])
        self.seen = {address: whole[0] for address, whole in hooked.kept.items()}

    def _embed(self) -> float | None:
        embed, stream = self.seen.get(("embed", None)), self.seen.get(("resid_pre", 0))
        if embed is None or stream is None:
            return None
        if POSITIONS in self.model.stack.names:
            return 1.0  # positions are added to it
        factor = self._factor(embed, stream)
        return factor if self._close(factor * embed, stream) else None

    def _outlet(self, kind: str, layer: int) -> HeldNorm | None:
        inner, out = self.seen.get((kind, layer)), self.seen.get((OUTLETS[kind][1], layer))
        if inner is None or out is None:
            return None
        try:
            weight, bias = projection(self.model, kind, layer)
        except (AttributeError, NotImplementedError):
            return None
        if tuple(weight.shape) != (inner.flatten(1).shape[-1], self.model.spec.d_model):
            return None
        inner, norm = _whole(inner, weight, None), _post_norm(self.model, kind, layer)
        if norm is None:
            factor = self._factor(inner[1:] - inner[:1], out[1:] - out[:1])
            held, divisor = HeldNorm(torch.full_like(inner[0], factor, dtype=torch.float32)), 1.0
        else:
            held = norm_gain(norm, inner)
            divisor = _divisor(norm, held, inner if bias is None else inner + bias)
        # What is left is a bias, the same at every position, or there is more between the two than this.
        rest = out.float() - held.forth(inner.float(), divisor)
        size = out.float().abs().amax(-1).clamp(min=1)
        apart = (rest[1:] - rest[:1]).abs().amax(-1)
        return held if bool((apart <= self.tolerance * torch.maximum(size[1:], size[:1])).all()) else None

    def _factor(self, given: Tensor, made: Tensor) -> float:
        """How many times the one the other is, if it is; 1 to the bit where it is 1 up to rounding."""
        given, made = given.double(), made.double()
        factor = float((given * made).sum() / given.square().sum().clamp(min=1e-30))
        return 1.0 if abs(factor - 1) <= self.tolerance else factor

    def _close(self, a: Tensor, b: Tensor) -> bool:
        return bool((a - b).abs().max() <= self.tolerance * max(1.0, float(b.abs().max())))
