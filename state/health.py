"""Health: what a self-test at load found that can be read and written in a model, and why not."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from transpector.state.interventions import MASKED_BELOW, Intervention
from transpector.state.past import earlier
from transpector.state.sites import AXES, KINDS, Site
from transpector.state.stack import Stack
from transpector.state.wiring import FINAL_SCALE, HOOKS, LAST_RESID, Address, Pass, Wiring, addresses

if TYPE_CHECKING:
    from transpector.state.spec import ModelSpec

N_PROBE = 8  # tokens of the text that the self-test runs on
# Relative to the largest value: rounding of the dtype, summed over a layer.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 6e-2}


@dataclass(frozen=True)
class Ability:
    """Whether one kind of site can be read and written, and the reason if not."""

    read: bool
    write: bool
    reason: str = ""


@dataclass(frozen=True)
class Health:
    """The self-test's verdict on one model, by kind of site."""

    abilities: Mapping[str, Ability]
    extras: frozenset[Address] = frozenset()  # what can be kept beside the sites

    def can_read(self, kind: str) -> bool:
        """Whether the site's value can be shown."""
        return self.abilities[kind].read

    def can_write(self, kind: str) -> bool:
        """Whether the site can be intervened on."""
        return self.abilities[kind].write

    @property
    def level(self) -> str:
        """``healthy`` if every kind works, ``broken`` if nothing can be written, else ``limited``."""
        works = [ability.read and ability.write for ability in self.abilities.values()]
        return "healthy" if all(works) else "limited" if any(works) else "broken"

    @property
    def reasons(self) -> tuple[str, ...]:
        """What does not work, a sentence each."""
        return tuple(
            f"{kind}: {ability.reason}" for kind, ability in self.abilities.items() if ability.reason
        )


@dataclass(frozen=True)
class _Write(Intervention):
    """Writes whatever a function makes of the whole activation."""

    site: Site
    change: Callable[[Tensor], Tensor] = torch.zeros_like
    verb: ClassVar[str] = "probe"

    def apply(self, whole: Tensor, source: Tensor | None) -> Tensor:
        return self.change(whole)


class _SelfTest:
    """The passes of one self-test, all at a middle layer."""

    def __init__(self, stack: Stack, spec: "ModelSpec"):
        self.stack, self.spec = stack, spec
        self.layer = spec.n_layers // 2
        self.wiring = Wiring(spec.n_layers)
        step = max(1, spec.d_vocab // (N_PROBE + 2))
        self.ids = torch.arange(step, step * (N_PROBE + 1), step)[None, :N_PROBE].to(spec.device)
        self.tolerance = TOLERANCE[spec.dtype]
        self.parts = ("resid_pre", "attn_out", "mlp_out")  # what a layer's residual stream is the sum of
        self.seen: dict[Address, Tensor] = {}
        self.logits = Tensor()

    @property
    def after(self) -> Address:
        """The residual stream that the tested layer hands on."""
        return ("resid_pre", self.layer + 1) if self.layer + 1 < self.spec.n_layers else LAST_RESID

    def at(self, kind: str) -> Address:
        return (kind, None) if kind == "embed" else (kind, self.layer)

    def run(self, keep: set[Address], *writes: _Write) -> tuple[dict[Address, Tensor], Tensor]:
        hooked = Pass(self.stack, self.wiring, writes, keep=keep)
        resid_pre = self.seen.get(("resid_pre", self.layer))
        # The layers below what is written are known.
        above = writes and all(write.site.layer == self.layer for write in writes)
        start = (self.layer, resid_pre) if self.wiring.by_layer and above and resid_pre is not None else None
        logits = hooked.run(self.ids, start)
        return hooked.kept, logits

    def walk(self) -> None:
        """Find out whether the blocks can be called one by one, and continue a text from where another pass ended."""
        plain = self.stack.learn(self.ids)
        self.wiring = replace(
            self.wiring,
            by_layer=self._succeeds(lambda: self.close(self._batched(0), plain.expand(2, -1, -1))),
        )
        by_position = self.wiring.by_layer and self._succeeds(
            lambda: self.close(self._batched(N_PROBE // 2), plain[:, N_PROBE // 2 :].expand(2, -1, -1))
        )
        self.wiring = replace(self.wiring, by_position=by_position)

    def _succeeds(self, test: Callable[[], bool]) -> bool:
        try:
            return test()
        except Exception:  # noqa: BLE001 - whatever an architecture does, it does not do this
            return False

    def _batched(self, n_past: int) -> Tensor:
        """Logits of the text twice over, block by block, after ``n_past`` positions from a pass before."""
        past = earlier(self.stack.past(self.ids), n_past) if n_past else None
        entry = self.stack.open(self.ids[:, n_past:].expand(2, -1), past)
        hidden = entry.hidden
        for call in entry.calls:
            hidden = call(hidden)
        return self.stack.close(hidden)

    def close(self, a: Tensor, b: Tensor) -> bool:
        if a.shape != b.shape:
            return False
        return bool((a - b).abs().max() <= self.tolerance * max(1.0, float(b.abs().max())))

    def read(self) -> dict[str, str]:
        """Read every kind in every layer; return the reason of each that can't be."""
        reasons = {}
        names = self.stack.bridge.hook_dict
        if not any(HOOKS["mlp_out"].format(layer=layer) in names for layer in range(self.spec.n_layers)):
            reasons = dict.fromkeys(("resid_mid", "mlp_pre", "mlp_post", "mlp_out"), "this model has no MLP.")
            self.parts, self.spec = self.parts[:2], replace(self.spec, d_mlp=0)
        elif not all(f"blocks.{layer}.hook_resid_mid" in names for layer in range(self.spec.n_layers)):
            self.wiring = replace(self.wiring, parallel=True)
            reasons["resid_mid"] = (
                "attention and MLP work side by side in this architecture; there is no residual between them."
            )
        kinds = [kind for kind in KINDS if kind not in reasons]
        try:
            kept = self._read(kinds)
        except Exception:  # noqa: BLE001 - some hook is missing: find out which, one kind at a time
            kept = {}
            for kind in kinds:
                try:
                    kept |= self._read([kind])
                except Exception as error:  # noqa: BLE001 - whatever an architecture does, the verdict is a reason
                    reasons[kind] = f"this architecture has no such hook ({type(error).__name__})."
        for kind in kinds:
            reason = reasons.get(kind) or self._misread(kind, {a: v for a, v in kept.items() if a[0] == kind})
            if reason:
                reasons[kind] = reason
            else:
                self.seen[self.at(kind)] = kept[self.at(kind)]
        reasons |= self._inconsistent(reasons)
        return reasons

    def _read(self, kinds: list[str]) -> dict[Address, Tensor]:
        kept, self.logits = self.run(set(addresses(self.spec.n_layers, kinds)))
        return kept

    def _misread(self, kind: str, kept: dict[Address, Tensor]) -> str:
        if len(kept) < (1 if kind == "embed" else self.spec.n_layers):
            return "only some layers of this architecture have it." if kept else "its hook never fires."
        if kind in ("mlp_pre", "mlp_post"):  # some configurations do not say, or say it wrong
            self.spec = replace(self.spec, d_mlp=next(iter(kept.values())).shape[-1])
        wanted = Site(kind, *self.at(kind)[1:]).shape(self.spec, N_PROBE)
        shapes = {tuple(value.shape) for value in kept.values()}
        if shapes != {(1, *wanted)}:
            return f"its shape here is {sorted(shapes)[0][1:]}, not {wanted} [{' × '.join(AXES[kind])}]."
        return ""

    def _inconsistent(self, missing: Mapping[str, str]) -> dict[str, str]:
        """What can be read but does not mean here what its name says."""
        reasons = {}
        if not {"scores", "pattern"} & missing.keys():
            if not self.close(self.value("scores").softmax(-1), self.value("pattern")):
                reasons["scores"] = "this architecture does not hand over its scores before the softmax."
        if not set(self.parts) & missing.keys():
            kept, _ = self.run({self.after})
            total = sum(self.value(part) for part in self.parts)
            if not self.close(total, kept[self.after]):
                sum_of = " + ".join(self.parts)
                reasons[self.parts[-1]] = f"{sum_of} is not the next layer's residual here."
        return reasons

    def extras(self) -> frozenset[Address]:
        found = set()
        for address in (LAST_RESID, FINAL_SCALE):
            try:
                kept, _ = self.run({address})
            except Exception:  # noqa: BLE001 - not there is an answer
                continue
            found |= kept.keys()
        return frozenset(found)

    def value(self, kind: str) -> Tensor:
        return self.seen[self.at(kind)]

    def scrambled(self, kind: str) -> _Write:
        """A write of the same values turned round along the text: as large, and surely different."""
        axis = 1 if "pos" in AXES[kind] else 2
        return _Write(Site(kind, self.at(kind)[1]), lambda whole: 0.5 * whole.flip(axis) + 0.25 * whole)

    def write(self, kind: str) -> str:
        """Write one kind; return what is wrong, or nothing."""
        write = getattr(self, f"_write_{kind}", self._write_any)
        try:
            return write(kind)
        except Exception as error:  # noqa: BLE001 - whatever an architecture does, the verdict is a reason
            return f"writing it fails in this architecture ({type(error).__name__})."

    def _changes(self, logits: Tensor) -> bool:
        return bool(torch.isfinite(logits).all()) and not torch.equal(logits, self.logits)

    def _write_any(self, kind: str) -> str:
        _, logits = self.run(set(), self.scrambled(kind))
        return "" if self._changes(logits) else "the model discards what is written."

    def _write_sum(self, kind: str) -> str:
        """A part of the residual stream: what is written must arrive in the layer's sum, no more and no less."""
        parts = {self.at(part) for part in self.parts}
        kept, logits = self.run(parts | {self.after}, self.scrambled(kind))
        if not self.close(sum(kept[part] for part in parts), kept[self.after]):
            return "what is written does not arrive in the residual stream."
        if not self._changes(logits):
            return "the model discards what is written."
        return ""

    _write_resid_pre = _write_attn_out = _write_mlp_out = _write_sum

    def _write_resid_mid(self, kind: str) -> str:
        kept, logits = self.run({self.at("resid_mid"), self.at("mlp_out"), self.after}, self.scrambled(kind))
        if not self.close(kept[self.at("resid_mid")] + kept[self.at("mlp_out")], kept[self.after]):
            return "what is written does not reach the skip path."
        return "" if self._changes(logits) else "the model discards what is written."

    def _write_q(self, kind: str) -> str:
        """One head's q or k: the patterns of just the heads that read it must change."""
        n_read = self.spec.n_heads // (self.spec.n_kv_heads if kind == "k" else self.spec.n_heads)
        flipped = _Write(
            Site(kind, self.layer),
            lambda whole: torch.cat([whole[:, :, :1].flip(1) * 2, whole[:, :, 1:]], dim=2),
        )
        kept, logits = self.run({self.at("pattern")}, flipped)
        moved = (kept[self.at("pattern")] != self.value("pattern")).flatten(2).any(-1)[0].tolist()
        if not self._changes(logits) or not any(moved[:n_read]):
            return "the model discards what is written."
        return "a write to one head changes others." if any(moved[n_read:]) else ""

    _write_k = _write_q

    def _attended(self, pattern: Tensor, v: Tensor) -> Tensor:
        return torch.einsum(
            "bhqk,bkhd->bqhd", pattern, v.repeat_interleave(self.spec.n_heads // v.shape[2], 2)
        )

    def _write_v(self, kind: str) -> str:
        kept, logits = self.run({self.at("pattern"), self.at("v"), self.at("z")}, self.scrambled(kind))
        if not self.close(kept[self.at("z")], self._attended(kept[self.at("pattern")], kept[self.at("v")])):
            return "z does not follow from what is written."
        return "" if self._changes(logits) else "the model discards what is written."

    def _write_pattern(self, kind: str) -> str:
        with warnings.catch_warnings():  # what it warns of is what is being found out
            warnings.filterwarnings(
                "ignore", message="A hook on .* returned a modified tensor", category=UserWarning
            )
            _, logits = self.run(set(), self.scrambled(kind))
        if not self._changes(logits):
            self.wiring = replace(self.wiring, pattern_through_z=True)
        return self._write_v(kind)

    def _write_scores(self, kind: str) -> str:
        shrunk = _Write(
            Site(kind, self.layer), lambda whole: torch.where(whole > MASKED_BELOW, 0.5 * whole, whole)
        )
        kept, logits = self.run({self.at("scores"), self.at("pattern")}, shrunk)
        if not self.close(kept[self.at("scores")].softmax(-1), kept[self.at("pattern")]):
            return "the pattern does not follow from what is written."
        return "" if self._changes(logits) else "the model discards what is written."


def self_test(stack: Stack, spec: "ModelSpec") -> "tuple[ModelSpec, Wiring, Health]":
    """Find out what can be read and written in a model, by doing it; some twenty passes of eight tokens.

    Returns the spec with d_mlp as measured, the wiring, and the verdict. Only on the model's worker.
    """
    test = _SelfTest(stack, spec)
    test.walk()
    unreadable = test.read()
    abilities = {}
    for kind in KINDS:
        if kind in unreadable:
            abilities[kind] = Ability(False, False, unreadable[kind])
            continue
        trouble = test.write(kind)
        abilities[kind] = Ability(True, not trouble, trouble)
    return test.spec, test.wiring, Health(abilities, test.extras())
