"""Wiring: which hook point carries each kind of site, and how a write to it is made to count."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from transpector.state.errors import Cancelled, SiteError
from transpector.state.interventions import MASKED_BELOW, Intervention
from transpector.state.sites import KINDS

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

HOOKS = {
    "embed": "hook_embed",
    "resid_pre": "blocks.{layer}.hook_resid_pre",
    "q": "blocks.{layer}.attn.hook_q",
    "k": "blocks.{layer}.attn.hook_k",
    "v": "blocks.{layer}.attn.hook_v",
    "scores": "blocks.{layer}.attn.hook_attn_scores",
    "pattern": "blocks.{layer}.attn.hook_pattern",
    "z": "blocks.{layer}.attn.hook_z",
    "attn_out": "blocks.{layer}.hook_attn_out",
    "mlp_pre": "blocks.{layer}.mlp.hook_pre",
    "mlp_post": "blocks.{layer}.mlp.hook_post",
    "mlp_out": "blocks.{layer}.hook_mlp_out",
}
# Activations beside the sites that views need: the last residual, and the final norm's divisor.
LAST_RESID, FINAL_SCALE = ("resid_post", None), ("final_scale", None)

Address = tuple[str, int | None]
Hook = Callable[..., Tensor | None]


@dataclass(frozen=True)
class Wiring:
    """How the sites of one model are reached, as its self-test found it.

    Where the model hands over a pattern that it has used already, ``pattern_through_z`` says to write z instead:
    one pass as far as the layer learns its pattern, the next writes the changed pattern @ v to z.
    """

    n_layers: int
    parallel: bool = False
    pattern_through_z: bool = False


class _Learned(Exception):
    """Ends a pass that went only as far as the pattern of one layer."""


class Pass:
    """One hooked forward pass: what is kept of it and what is written into it."""

    def __init__(
        self,
        wiring: Wiring,
        interventions: Iterable[Intervention] = (),
        sources: dict[Intervention, Tensor] | None = None,
        keep: Iterable[Address] = (),
        cancelled: Callable[[], bool] = lambda: False,
        progress: Callable[[int], None] = lambda layer: None,
    ):
        self.wiring = wiring
        self.kept: dict[Address, Tensor] = {}  # with the batch axis
        self._writes: dict[Address, list[Intervention]] = defaultdict(list)
        self._sources = sources or {}
        self._cancelled, self._progress = cancelled, progress
        self._keep = set(keep)
        self._patterns: dict[int, Tensor] = {}  # by layer, written; learned by passes before this one
        self._learning: int | None = None
        for intervention in interventions:
            self._writes[intervention.site.tensor].append(intervention)
            if intervention not in self._sources and intervention.source_site is not None:
                self._keep.add(intervention.source_site.tensor)

    def run(self, bridge: "TransformerBridge", token_ids: Tensor) -> Tensor:
        """Logits [batch, pos, d_vocab] of the hooked pass."""
        for layer in self._layers_through_z():
            self._learning = layer
            try:
                with bridge.hooks(fwd_hooks=self._hooks()):
                    bridge(token_ids, return_type=None)
            except _Learned:
                self._learning = None
        with bridge.hooks(fwd_hooks=self._hooks()):
            return bridge(token_ids, return_type="logits")

    def _layers_through_z(self) -> list[int]:
        if not self.wiring.pattern_through_z:
            return []
        return sorted(layer for (kind, layer), writes in self._writes.items() if kind == "pattern" and writes)

    def _hooks(self) -> list[tuple[str, Hook]]:
        pairs: list[tuple[str, Hook]] = []
        if self._wanted("embed", None):
            pairs.append((HOOKS["embed"], self._direct(("embed", None))))
        for layer in range(self.wiring.n_layers):
            pairs += ((HOOKS[kind].format(layer=layer), hook) for kind, hook in self._hooks_of(layer))
        if LAST_RESID in self._keep:
            pairs.append((f"blocks.{self.wiring.n_layers - 1}.hook_resid_post", self._direct(LAST_RESID)))
        if FINAL_SCALE in self._keep:
            pairs.append(("ln_final.hook_scale", self._direct(FINAL_SCALE)))
        return pairs

    def _hooks_of(self, layer: int) -> Iterator[tuple[str, Hook]]:
        needs_mid = self._wanted("resid_mid", layer)
        through_z = layer in self._layers_through_z()
        if needs_mid:
            self._keep.add(("resid_pre", layer))
        if through_z:
            self._keep.add(("v", layer))
        yield "resid_pre", self._enter(layer)
        for kind in ("q", "k", "v", "scores", "pattern", "z", "attn_out", "mlp_pre", "mlp_post", "mlp_out"):
            if kind == "attn_out" and needs_mid:
                yield kind, self._mid(layer)
            elif kind == "scores" and self._writes.get((kind, layer)):
                yield kind, self._scores(layer)
            elif kind == "pattern" and through_z:
                if layer == self._learning:
                    yield kind, self._learn(layer)
            elif kind == "z" and layer in self._patterns:
                yield kind, self._deliver(layer)
            elif self._wanted(kind, layer):
                yield kind, self._direct((kind, layer))

    def _wanted(self, kind: str, layer: int | None) -> bool:
        return (kind, layer) in self._keep or bool(self._writes.get((kind, layer)))

    def _change(self, at: Address, whole: Tensor) -> Tensor:
        """The activation after the writes at its address, kept if anybody wants it."""
        for intervention in self._writes.get(at, ()):
            source = self._sources.get(intervention)
            if source is None and intervention.source_site is not None:
                from_ = intervention.source_site.tensor
                source = whole if from_ == at else self.kept.get(from_)
                if source is None:
                    raise SiteError(
                        f"{intervention.source_site} can't be read in this model before {intervention.site}."
                    )
            if source is not None:
                source = source.to(whole.device, whole.dtype)
            whole = intervention.apply(whole, source)
        if at in self._keep:
            self.kept[at] = whole
        return whole

    def _direct(self, at: Address) -> Hook:
        def hook(whole: Tensor, hook: object) -> Tensor | None:
            changed = self._change(at, whole)
            return None if changed is whole else changed

        return hook

    def _enter(self, layer: int) -> Hook:
        direct = self._direct(("resid_pre", layer))

        def hook(whole: Tensor, hook: object) -> Tensor | None:
            if self._cancelled():
                raise Cancelled  # hooks are removed after an exception, so this is a clean end
            self._progress(layer)
            return direct(whole, hook)

        return hook

    def _mid(self, layer: int) -> Hook:
        # A write at hook_resid_mid would reach the MLP but not the skip path, so it goes through attn_out.
        def hook(whole: Tensor, hook: object) -> Tensor | None:
            attn_out = self._change(("attn_out", layer), whole)
            resid_pre = self.kept["resid_pre", layer]
            mid = resid_pre + attn_out
            changed = self._change(("resid_mid", layer), mid)
            if changed is not mid:
                return changed - resid_pre
            return None if attn_out is whole else attn_out

        return hook

    def _scores(self, layer: int) -> Hook:
        def hook(whole: Tensor, hook: object) -> Tensor:
            at = ("scores", layer)
            # What a query can't see stays hidden from it.
            changed = torch.where(whole <= MASKED_BELOW, whole, self._change(at, whole))
            if at in self._keep:
                self.kept[at] = changed
            return changed

        return hook

    def _learn(self, layer: int) -> Hook:
        def hook(whole: Tensor, hook: object) -> None:
            self._patterns[layer] = self._change(("pattern", layer), whole)
            raise _Learned

        return hook

    def _deliver(self, layer: int) -> Hook:
        heads = {intervention.site.head for intervention in self._writes["pattern", layer]}

        def hook(whole: Tensor, hook: object) -> Tensor:
            v = self.kept["v", layer]
            v = v.repeat_interleave(whole.shape[2] // v.shape[2], 2)  # [batch, pos, head, d_head]
            z = torch.einsum("bhqk,bkhd->bqhd", self._patterns[layer], v)
            if None not in heads:  # leave the other heads to the bit as they were
                changed = whole.clone()
                changed[:, :, list(heads)] = z[:, :, list(heads)]
                z = changed
            return self._change(("z", layer), z)

        return hook


def addresses(n_layers: int, kinds: Iterable[str]) -> Iterator[Address]:
    """Every address of the given kinds."""
    for kind in kinds:
        if kind not in KINDS:
            raise SiteError(f"{kind!r} is no kind of site. Use one of: {', '.join(KINDS)}.")
        if kind == "embed":
            yield kind, None
        else:
            yield from ((kind, layer) for layer in range(n_layers))
