"""Run: what one hooked forward pass saw."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from transpector.state.errors import SiteError
from transpector.state.interventions import Intervention, Question
from transpector.state.resume import Start
from transpector.state.sites import Site
from transpector.state.wiring import LAST_RESID, Address, Pass, addresses, is_below

if TYPE_CHECKING:
    from transpector.state.models import Model

# What most views need; 21 MB for 64 tokens of a model of 30 layers × 576.
KEPT_KINDS = ("resid_pre", "attn_out", "mlp_out", "z", "pattern")

PATTERN_BYTES = 256e6
"""Of all patterns of a run; where they take more, as for 500 tokens and 270 heads, each is made anew when it is asked for."""

ROWS_OF_LOSS = 16


@dataclass(frozen=True, eq=False)
class Run:
    """One forward pass: its question, logits and stored activations. A value: nothing in it changes.

    ``activations`` are by (kind, layer), axes as in ``sites.AXES``, in the model's dtype on its device. ``ms`` is the
    time of the pass, which began at ``first_layer``: what is below is shared with the run that it was resumed from.
    ``notes`` say what the user should know about it.
    """

    model: "Model"
    question: Question
    activations: Mapping[Address, Tensor] = field(repr=False)
    ms: float
    notes: tuple[str, ...] = ()
    first_layer: int = 0

    @property
    def interventions(self) -> tuple[Intervention, ...]:
        """The interventions in force, in order."""
        return self.question.interventions

    @property
    def writes(self) -> tuple[Intervention, ...]:
        """The same, one site at a time."""
        return writes(self.question, self.model)

    @property
    def token_ids(self) -> Int[np.ndarray, " pos"]:
        """The ids of the text's tokens."""
        return np.array(self.question.token_ids)

    @property
    def n_pos(self) -> int:
        """Number of tokens."""
        return len(self.question.token_ids)

    # Neither is a cached_property: Python 3.11's holds a lock while it waits here for the worker, which asks for it too.
    @property
    def logits(self) -> Float[Tensor, "pos d_vocab"]:
        """Logits at every position, made from the last residual stream when they are first asked for, and kept."""
        known = vars(self).get("_logits")
        return self.model.unembed(self) if known is None else known

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """The text's tokens as strings; bytes that are no text on their own as ‹E2 80›."""
        return self.model.pieces(self.question.token_ids)

    @property
    def loss(self) -> Float[np.ndarray, " pos-1"]:
        """Cross-entropy in nats of each token given those before it; float32."""
        known = vars(self).get("_loss")
        if known is None:
            known = vars(self)["_loss"] = self._summed_loss()
        return known

    def _summed_loss(self) -> Float[np.ndarray, " pos-1"]:
        logits = self.logits
        targets = torch.tensor(self.question.token_ids[1:], dtype=torch.long, device=logits.device)
        # A few rows at a time: memory for all of them at once costs more than the sums do.
        some = zip(logits[:-1].split(ROWS_OF_LOSS), targets.split(ROWS_OF_LOSS), strict=True)
        losses = [
            torch.nn.functional.cross_entropy(rows.float(), ids, reduction="none") for rows, ids in some
        ]
        return torch.cat(losses).cpu().numpy() if losses else np.zeros(0, np.float32)

    def log_probs(self, position: int) -> Float[Tensor, " d_vocab"]:
        """Log-probabilities in nats of the token after ``position``."""
        return self.logits[self.at(position)].float().log_softmax(-1)

    def next_tokens(self, position: int = -1, k: int = 5) -> list[tuple[str, float]]:
        """The k likeliest tokens after ``position``, with their probabilities."""
        top = self.log_probs(position).topk(min(k, self.logits.shape[-1]))
        return list(zip(self.model.pieces(top.indices.tolist()), top.values.exp().tolist(), strict=True))

    def pattern(self, layer: int, head: int) -> Float[np.ndarray, "query key"]:
        """Attention probabilities of one head; float32, a copy."""
        return self.activation(Site("pattern", layer, head))

    def activation(self, site: Site | str) -> np.ndarray:
        """The value at a site, axes as in ``sites.AXES`` less those the site fixes; float32, a copy.

        Raises SiteError if this model has no such site, or can't read it.
        """
        site = Site.parse(site)
        site.check(self.model.spec, self.n_pos)
        if not self.model.health.can_read(site.kind):
            raise SiteError(f"{site} can't be read here: {self.model.health.abilities[site.kind].reason}")
        whole = self.tensor(site.tensor)
        return whole[site.index].to("cpu", torch.float32).numpy().copy()

    def tensor(self, address: Address) -> Tensor:
        """A whole activation, from the store or, if it was not kept, from its layer done again.

        What is no site goes by the name of its hook point, in place of a kind. Raises SiteError if that never fires.
        """
        if address in self.activations:
            return self.activations[address]
        kind, layer = address
        written = any(intervention.site.tensor == address for intervention in self.writes)
        if kind == "resid_mid" and not written and not self.model.wiring.parallel:
            return self.tensor(("resid_pre", layer)) + self.tensor(("attn_out", layer))
        keep = kind != "pattern" or keeps_patterns(self.model, self.n_pos)
        completed = self.model.complete(self, [address], keep=keep).activations
        if address not in completed:
            raise SiteError(f"{kind} is never reached in this model, and so has no value.")
        return completed[address]

    def storages(self) -> dict[int, int]:
        """Bytes of each distinct storage that this run holds on to, by address; its logits by its own."""
        storages = (t.untyped_storage() for t in self.activations.values())
        last = self.activations[LAST_RESID]
        logits = {id(self): self.n_pos * self.model.spec.d_vocab * last.element_size()}
        return logits | {storage.data_ptr(): storage.nbytes() for storage in storages}

    def nbytes(self) -> int:
        """Bytes of distinct storage that this run holds on to."""
        return sum(self.storages().values())

    def at(self, position: int) -> int:
        """The position, if this text has it; raises SiteError if not."""
        if not -self.n_pos <= position < self.n_pos:
            raise SiteError(f"Position {position}: this text has positions 0 to {self.n_pos - 1}.")
        return position


def forward(
    model: "Model",
    question: Question,
    *,
    start: Start | None = None,
    sources: Mapping[Intervention, Tensor] | None = None,
    notes: Iterable[str] = (),
    keep: Iterable[Address] = (),
    cancelled: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda layer: None,
) -> Run:
    """Run the model once under the question's interventions; only ever on the model's worker.

    ``start`` says which layers another run spares it, ``sources`` holds what interventions read from other runs,
    ``keep`` what to store beside ``KEPT_KINDS``. ``cancelled`` is asked before every layer (raises Cancelled),
    ``progress`` told its number.
    """
    began = time.perf_counter()
    kinds = [
        kind for kind in KEPT_KINDS if kind != "pattern" or keeps_patterns(model, len(question.token_ids))
    ]
    wanted = {a for a in addresses(model.spec.n_layers, kinds) if model.health.can_read(a[0])}
    wanted |= model.health.extras | {LAST_RESID} | set(keep)
    interventions, entry, known = list(writes(question, model)), None, {}
    if start is not None:
        known = {a: whole for a, whole in start.run.activations.items() if is_below(a, start.layer)}
        interventions = start.remaining(interventions)
        entry = start.layer, start.run.activations["resid_pre", start.layer][None]
    hooked = Pass(model.stack, model.wiring, interventions, sources, wanted, cancelled, progress)
    # What is read in this same run may lie in the layers that are left out.
    hooked.kept.update((address, whole[None]) for address, whole in known.items())
    ids = torch.tensor([question.token_ids], device=model.spec.device)
    logits = None
    with torch.no_grad():
        if model.wiring.by_layer:
            hooked.walk(ids, entry)
        else:
            logits = hooked.run(ids)[0]
    activations = known | {a: whole[0] for a, whole in hooked.kept.items() if a not in known}
    ms = (time.perf_counter() - began) * 1e3
    first = 0 if start is None else start.layer
    return _with_logits(Run(model, question, activations, ms, tuple(notes), first), logits)


def keeps_patterns(model: "Model", n_pos: int) -> bool:
    """Whether the patterns of a text so long may stay in memory together."""
    itemsize = getattr(torch, model.spec.dtype).itemsize
    return model.spec.n_layers * model.spec.n_heads * n_pos**2 * itemsize <= PATTERN_BYTES


def writes(question: Question, model: "Model") -> tuple[Intervention, ...]:
    """What a question's interventions do to a model, one site at a time."""
    return tuple(write for i in question.interventions for write in i.writes(model.spec))


def completed(run: Run, wanted: Iterable[Address], sources: Mapping[Intervention, Tensor]) -> Run:
    """The same run with more of it kept, from those layers done again; only ever on the model's worker."""
    model = run.model
    wanted = set(wanted)
    layers = {layer for _, layer in wanted}
    # The others were felt by the residual stream that each layer begins with, and their sources are not at hand.
    writes = [write for write in run.writes if write.site.layer in layers]
    hooked = Pass(model.stack, model.wiring, writes, sources, wanted)
    hooked.kept.update((address, whole[None]) for address, whole in run.activations.items())
    ids = torch.tensor([run.question.token_ids], device=model.spec.device)
    with torch.no_grad():
        _, calls = hooked.open(ids)
        for layer in sorted({layer for _, layer in wanted if layer is not None}):
            # It was kept after the writes to it.
            hooked.writes.pop(("resid_pre", layer), None)
            hooked.visit(layer, run.activations["resid_pre", layer][None], calls[layer])
    # A hook point that the model has may never fire.
    more = {address: hooked.kept[address][0] for address in wanted if address in hooked.kept}
    return _with_logits(replace(run, activations={**run.activations, **more}), vars(run).get("_logits"))


def _with_logits(run: Run, logits: Tensor | None) -> Run:
    if logits is not None:
        vars(run)["_logits"] = logits  # as if they had been asked for
    return run
