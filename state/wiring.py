"""Wiring: which hook point carries each kind of site, and how a write to it is made to count."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transpector.state.errors import Cancelled, SiteError
from transpector.state.interventions import MASKED_BELOW, Intervention
from transpector.state.sites import KINDS
from transpector.state.stack import Call, Stack

HOOKS = {
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
"""The hook points within a block, in the order in which a pass comes by them."""
BEFORE_PATTERN = ("q", "k", "v", "scores", "pattern")

# Activations beside the sites that views need: the last residual, and the final norm's divisor.
LAST_RESID, FINAL_SCALE = ("resid_post", None), ("final_scale", None)

Address = tuple[str, int | None]
Hook = Callable[..., Tensor | None]

ALL_ROWS = slice(None)


@dataclass(frozen=True)
class Wiring:
    """How the sites of one model are reached, as its self-test found it.

    Where the model hands over a pattern that it has used already, ``pattern_through_z`` says to write z instead:
    a layer done once learns its pattern, done again it is given the changed pattern @ v as z.
    ``by_layer`` says that the blocks can be called one by one, and so a pass begun at any layer; ``by_position``
    that they can take the keys and values of earlier positions from another pass.
    """

    n_layers: int
    parallel: bool = False
    pattern_through_z: bool = False
    by_layer: bool = True
    by_position: bool = True


class _Learned(Exception):
    """Ends a block that was done only as far as its pattern."""


class Pass:
    """One hooked forward pass: what is kept of it and what is written into it.

    It is walked block by block: ``open``, then ``visit`` for each layer; ``walk`` and ``run`` do all of it.
    """

    def __init__(
        self,
        stack: Stack,
        wiring: Wiring,
        interventions: Iterable[Intervention] = (),
        sources: Mapping[Intervention, Tensor] | None = None,
        keep: Iterable[Address] = (),
        cancelled: Callable[[], bool] = lambda: False,
        progress: Callable[[int], None] = lambda layer: None,
    ):
        self.stack, self.wiring = stack, wiring
        self.kept: dict[Address, Tensor] = {}  # with the batch axis
        # What is written at an address, in order, and into which rows of the batch.
        self.writes: dict[Address, list[tuple[Intervention, slice]]] = defaultdict(list)
        self.sources = dict(sources or {})
        self._cancelled, self._progress = cancelled, progress
        self._keep = set(keep)
        self._hidden = Tensor()  # the residual stream before the layer that is being visited
        self._patterns: dict[int, Tensor] = {}  # by layer, written; learned when it was done the first time
        for intervention in interventions:
            self.write(intervention)

    def write(self, intervention: Intervention, rows: slice = ALL_ROWS) -> None:
        """Have an intervention applied, after those at its address so far, to some rows of the batch."""
        self.writes[intervention.site.tensor].append((intervention, rows))
        if intervention not in self.sources and intervention.source_site is not None:
            self._keep.add(intervention.source_site.tensor)

    def run(
        self, token_ids: Int[Tensor, "batch pos"], start: tuple[int, Tensor] | None = None
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits; from the first layer, or from a layer and the residual stream [batch, pos, d_model] before it."""
        if not self.wiring.by_layer:
            with self.stack.hooked([*self._embed_hook(), *self._scale_hook()]):
                return self.stack.through(token_ids, self.visit)
        return self.stack.close(self.walk(token_ids, start))

    def walk(
        self, token_ids: Int[Tensor, "batch pos"], start: tuple[int, Tensor] | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """The same as far as the residual stream after the last block."""
        hidden, calls = self.open(token_ids)
        first, hidden = start or (0, hidden)
        for layer in range(first, len(calls)):
            hidden = self.visit(layer, hidden, calls[layer])
        if FINAL_SCALE in self._keep:
            with self.stack.hooked(self._scale_hook()):
                self.stack.norm(hidden)
        return hidden

    def open(self, token_ids: Int[Tensor, "batch pos"], past: Any = None) -> tuple[Tensor, tuple[Call, ...]]:
        """The residual stream before the first block, and the blocks ready to be called; after what a cache holds."""
        with self.stack.hooked(self._embed_hook()):
            entry = self.stack.open(token_ids, past)
        return entry.hidden, entry.calls

    def visit(self, layer: int, hidden: Tensor, call: Call) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream after a block, given that before it; raises Cancelled."""
        if self._cancelled():
            raise Cancelled
        self._progress(layer)
        self._hidden = hidden = self._change(("resid_pre", layer), hidden)
        if self._through_z(layer):
            self._learn_pattern(layer, hidden, call)
        with self.stack.hooked([*self._hooks_of(layer), *self._others_of(layer)]):
            hidden = call(hidden)
        if layer + 1 == self.wiring.n_layers and LAST_RESID in self._keep:
            self.kept[LAST_RESID] = hidden
        return hidden

    def _embed_hook(self) -> list[tuple[str, Hook]]:
        at = ("embed", None)
        return [("hook_embed", self._direct(at))] if self._wanted(at) else []

    def _scale_hook(self) -> list[tuple[str, Hook]]:
        return [("ln_final.hook_scale", self._direct(FINAL_SCALE))] if FINAL_SCALE in self._keep else []

    def _through_z(self, layer: int) -> bool:
        return self.wiring.pattern_through_z and bool(self.writes.get(("pattern", layer)))

    def _learn_pattern(self, layer: int, hidden: Tensor, call: Call) -> None:
        def learn(whole: Tensor, hook: object) -> None:
            self._patterns[layer] = self._change(("pattern", layer), whole)
            raise _Learned

        self._keep.add(("v", layer))
        before = [(name, hook) for name, hook in self._hooks_of(layer, BEFORE_PATTERN[:-1])]
        try:
            with self.stack.hooked([*before, (HOOKS["pattern"].format(layer=layer), learn)]):
                call(hidden)
        except _Learned:
            pass

    def _hooks_of(self, layer: int, kinds: Iterable[str] = HOOKS) -> Iterator[tuple[str, Hook]]:
        for kind in kinds:
            hook = self._hook(kind, layer)
            if hook is not None:
                yield HOOKS[kind].format(layer=layer), hook

    def _others_of(self, layer: int) -> Iterator[tuple[str, Hook]]:
        """Those that carry no site: they are only ever read, by their own names."""
        for name, at in self._keep:
            if at == layer and name.startswith("blocks."):
                yield name, self._read((name, at))

    def _read(self, at: Address) -> Hook:
        def hook(whole: Tensor, hook: object) -> None:
            batch, n_pos = self._hidden.shape[:2]
            # Some models do a part of a block with all texts' tokens in one row (OPT its MLP).
            is_flat = whole.ndim == 2 and len(whole) == batch * n_pos
            self.kept[at] = whole.unflatten(0, (batch, n_pos)) if is_flat else whole

        return hook

    def _hook(self, kind: str, layer: int) -> Hook | None:
        at = (kind, layer)
        if kind == "attn_out" and self._wanted(("resid_mid", layer)):
            return self._mid(layer)
        if kind == "scores" and self.writes.get(at):
            return self._scores(layer)
        if self._through_z(layer):
            if kind == "pattern":
                return None  # written when it was learned
            if kind == "z":
                return self._deliver(layer)
        return self._direct(at) if self._wanted(at) else None

    def _wanted(self, at: Address) -> bool:
        return at in self._keep or bool(self.writes.get(at))

    def _change(self, at: Address, whole: Tensor) -> Tensor:
        """The activation after the writes at its address, kept if anybody wants it."""
        given = whole
        for intervention, rows in self.writes.get(at, ()):
            source = self.sources.get(intervention)
            if source is None and intervention.source_site is not None:
                from_ = intervention.source_site.tensor
                source = whole if from_ == at else self.kept.get(from_)
                if source is None:
                    raise SiteError(
                        f"{intervention.source_site} can't be read in this model before {intervention.site}."
                    )
                source = source[rows]
            if source is not None:
                source = source.to(whole.device, whole.dtype)
            if rows == ALL_ROWS:
                whole = intervention.apply(whole, source)
            else:
                whole = whole.clone() if whole is given else whole
                whole[rows] = intervention.apply(whole[rows], source)
        if at in self._keep:
            self.kept[at] = whole
        return whole

    def _direct(self, at: Address) -> Hook:
        def hook(whole: Tensor, hook: object) -> Tensor | None:
            changed = self._change(at, whole)
            # What is kept may be a reshaped copy; to have its gradient, the model must go on with that one.
            return None if changed is whole and not torch.is_grad_enabled() else changed

        return hook

    def _mid(self, layer: int) -> Hook:
        # A write at hook_resid_mid would reach the MLP but not the skip path, so it goes through attn_out.
        def hook(whole: Tensor, hook: object) -> Tensor | None:
            attn_out = self._change(("attn_out", layer), whole)
            resid_pre = self._hidden
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

    def _deliver(self, layer: int) -> Hook:
        heads = {intervention.site.head for intervention, _ in self.writes["pattern", layer]}

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


def is_below(address: Address, layer: int) -> bool:
    """Whether an activation is done before a layer begins."""
    return address == ("embed", None) or (address[1] is not None and address[1] < layer)
