"""Model: a language model ready to be looked into, with its worker, its self-test's verdict and its recent runs."""

import hashlib
import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from transpector.state.cache import RunCache
from transpector.state.catalogue import resolve
from transpector.state.errors import Cancelled, InterventionError, ModelError, TextError
from transpector.state.health import self_test
from transpector.state.interventions import Intervention, Question
from transpector.state.loading import boot, load_weights
from transpector.state.resume import Start, best_start
from transpector.state.run import Run, completed, forward, writes
from transpector.state.spec import ModelSpec, describe_config
from transpector.state.stack import Stack
from transpector.state.tokens import Tokens
from transpector.state.wiring import LAST_RESID, Address
from transpector.state.worker import Worker

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

_of_bridge: "weakref.WeakValueDictionary[int, Model]" = (
    weakref.WeakValueDictionary()
)  # by id of the bridge, one each
_adopting = threading.Lock()


class Model:
    """A model in memory. Everything that touches its weights goes through ``worker``, one job at a time."""

    def __init__(
        self, name: str, bridge: "TransformerBridge", tokenizer: "PreTrainedTokenizerBase", spec: ModelSpec
    ):
        self.name = name
        self.bridge = bridge
        self.text = Tokens(tokenizer, _ends(bridge))
        self.runs = RunCache()
        self.worker = Worker(name)
        weakref.finalize(self, self.worker.stop)
        self._weights = list(bridge.original_model.parameters())
        self._versions: tuple[int, ...] = ()
        self._fingerprint = ""
        bridge.requires_grad_(False)
        _use_native_norms(bridge)
        self.stack = Stack(bridge)
        self.spec, self.wiring, self.health = self.worker.call(lambda: self_test(self.stack, spec))

    def __repr__(self) -> str:
        return f"<Model {self.name}: {self.spec.n_layers} layers × {self.spec.n_heads} heads, {self.health.level}>"

    def pieces(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Each token as the text it stands for."""
        return self.text.pieces(ids)

    def tokenize(self, text: str, bos: bool | None = None) -> list[int]:
        """Ids of a text, checked against the context length; ``bos`` None does as the model's tokenizer does.

        Raises TextError if the text is empty or too long.
        """
        return self.checked(self.text.encode(text, self.text.adds_bos if bos is None else bos))

    def checked(self, token_ids: Iterable[int]) -> list[int]:
        """The ids, if this model can read them; raises TextError if it can't."""
        ids = [int(i) for i in token_ids]
        if not ids:
            raise TextError("There is no token to read. Type a text.")
        if self.spec.n_ctx and len(ids) > self.spec.n_ctx:
            raise TextError(
                f"The text has {len(ids):,} tokens; this model reads at most {self.spec.n_ctx:,}. Shorten it."
            )
        if outside := [i for i in ids if not 0 <= i < self.spec.d_vocab]:
            raise TextError(
                f"Token id {outside[0]} is outside this model's vocabulary of {self.spec.d_vocab:,}."
            )
        return ids

    def check(self, interventions: Iterable[Intervention], n_pos: int, bos: bool | None = None) -> None:
        """Raise SiteError or InterventionError for what this model, on ``n_pos`` tokens, can't do.

        ``bos`` is the question's, for other texts that are read.
        """
        for intervention in interventions:
            for write in intervention.writes(self.spec):
                site = write.site
                site.check(self.spec, n_pos)
                if not self.health.can_write(site.kind):
                    raise InterventionError(
                        f"{site} can't be changed here: {self.health.abilities[site.kind].reason}"
                    )
            intervention.check_model(self)
            source = intervention.source_site
            if source is None:
                continue
            n_read = n_pos if intervention.reads_here else self._n_read(intervention, bos)
            source.check(self.spec, n_read)
            if not self.health.can_read(source.kind):
                raise InterventionError(
                    f"{source} can't be read here: {self.health.abilities[source.kind].reason}"
                )
            if n_read is not None:
                intervention.check_shapes(self.spec, n_pos, n_read)

    def _n_read(self, intervention: Intervention, bos: bool | None) -> int | None:
        """Number of tokens of the other text that an intervention reads, if it names one."""
        text = getattr(intervention, "text", None)
        return None if text is None else len(self.tokenize(text, bos))

    def run(
        self,
        question: Question,
        *,
        keep: Iterable[Address] = (),
        cancelled: Callable[[], bool] = lambda: False,
        progress: Callable[[int], None] = lambda layer: None,
    ) -> Run:
        """The answer to a question, from the cache or by a pass on the worker, which this waits for.

        ``keep`` is what the run must hold beside ``KEPT_KINDS``. Raises TranspectorError, or Cancelled.
        """
        return self.worker.call(lambda: self.answer(question, frozenset(keep), cancelled, progress))

    def answer(
        self,
        question: Question,
        keep: frozenset[Address] = frozenset(),
        cancelled: Callable[[], bool] = lambda: False,
        progress: Callable[[int], None] = lambda layer: None,
    ) -> Run:
        """The same on the worker's own thread: the other runs that interventions read from come first."""
        fingerprint = self.fingerprint()
        known = self.runs.get(fingerprint, question)
        if known is not None:
            return self._completed(known, keep)
        self.checked(question.token_ids)
        self.check(question.interventions, len(question.token_ids), question.bos)
        sources, notes = self.sources(question, question.interventions, cancelled)
        run = forward(
            self,
            question,
            start=self._start(fingerprint, question, keep),
            sources=sources,
            notes=notes,
            keep=keep,
            cancelled=cancelled,
            progress=progress,
        )
        self.runs.put(fingerprint, run)
        return run

    def recall(self, question: Question) -> Run | None:
        """The answer, if it has been found before and is still kept; on the worker's own thread."""
        return self.runs.get(self.fingerprint(), question)

    def hold(self, owner: object, *questions: Question) -> None:
        """Keep these answers, and what their interventions read, while the owner lives or until it holds others."""
        origins = [
            origin
            for question in questions
            for intervention in question.interventions
            for origin in intervention.origins(question, self.tokenize)
        ]
        self.runs.pin(owner, {*questions, *origins})

    def release(self, owner: object) -> None:
        """Let go of what an owner holds; from any thread."""
        if not self.worker.stopped:
            self.worker.submit(lambda: self.runs.pin(owner, ()))

    def unembed(self, run: Run) -> torch.Tensor:
        """The logits of a run, [pos, d_vocab]; waits for the worker."""

        def job() -> torch.Tensor:
            known = vars(run).get("_logits")  # another thread may have asked meanwhile
            if known is None:
                known = vars(run)["_logits"] = self.stack.close(run.activations[LAST_RESID][None])[0]
            return known

        return self.worker.call(job)

    def complete(self, run: Run, wanted: Iterable[Address], *, keep: bool = True) -> Run:
        """A run with more activations: only their layers are done again. Waits for the worker.

        With ``keep`` they stay with what is known of its question.
        """
        return self.worker.call(
            lambda: self._completed(self.recall(run.question) or run, frozenset(wanted), keep)
        )

    def _completed(self, run: Run, wanted: frozenset[Address], keep: bool = True) -> Run:
        missing = wanted - run.activations.keys()
        if not missing:
            return run
        layers = {layer for _, layer in missing}
        writes = [write for write in run.writes if write.site.layer in layers]
        sources, _ = self.sources(run.question, writes)
        here = {write.source_site.tensor for write in writes if write.reads_here}
        if self.wiring.by_layer:
            run = completed(self._completed(run, frozenset(here)), missing, sources)
        else:
            sources, notes = self.sources(run.question, run.interventions)
            run = forward(
                self, run.question, sources=sources, notes=notes, keep=run.activations.keys() | wanted
            )
        if keep:
            self.runs.put(self.fingerprint(), run)
        return run

    def sources(
        self,
        question: Question,
        interventions: Iterable[Intervention],
        cancelled: Callable[[], bool] = lambda: False,
    ) -> tuple[dict[Intervention, torch.Tensor], list[str]]:
        """What interventions read from other runs, which are done first, and what is to be said about it."""
        sources, notes = {}, []
        for intervention in interventions:
            origins = intervention.origins(question, self.tokenize)
            # One read from the very question that it is part of would never end.
            if any(intervention in origin.interventions for origin in origins):
                raise InterventionError(f"{intervention.verb} {intervention.site} reads from its own run.")
            for origin in origins:
                if intervention.source_site is not None:
                    intervention.source_site.check(self.spec, len(origin.token_ids))
            runs = [self.answer(origin, cancelled=cancelled) for origin in origins]
            read = intervention.read(runs)
            if read is not None:
                sources[intervention] = read
                notes.append(intervention.notes(len(question.token_ids), runs[0].n_pos if runs else None))
        return sources, [note for note in notes if note]

    def _start(self, fingerprint: str, question: Question, keep: frozenset[Address]) -> Start | None:
        if not (self.wiring.by_layer and self.health.can_read("resid_pre")):
            return None
        here = {i.source_site.tensor for i in question.interventions if i.reads_here}
        return best_start(self.runs.on_tokens_of(fingerprint, question), writes(question, self), keep | here)

    def fingerprint(self) -> str:
        """A short digest of name, shape and weights, equal for equal models; on the model's worker.

        It is made anew when weights were changed in place, which makes the runs before that another model's.
        """
        versions = tuple([weight._version for weight in self._weights])
        if versions != self._versions:
            identity = [self.name, self.spec.architecture, self.spec.n_params]
            # A sample would miss most changes in place; that there was one is known.
            identity += versions if self._versions else ()
            digest = hashlib.sha256(repr(identity).encode())
            for weight in self._weights:
                sample = weight.detach().flatten()[:: max(1, weight.numel() // 256)]
                digest.update(sample.float().cpu().numpy().tobytes())
            self._versions, self._fingerprint = versions, digest.hexdigest()[:16]
        return self._fingerprint


def load_model(
    name: "str | TransformerBridge" = "builtin",
    *,
    device: str = "cpu",
    dtype: str = "float32",
    progress: Callable[[str, float | None], None] = lambda stage, fraction: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Model:
    """Load a model: "builtin", a Hugging Face id, a directory, a .gguf file, or a TransformerBridge of yours.

    Raises ModelError with a remedy, or Cancelled.
    """
    if not isinstance(name, str):
        return _adopt(name)
    entry = resolve(name)
    hf_model, tokenizer, spec = load_weights(entry, device, dtype, progress, cancelled)
    progress("preparing hooks", None)
    bridge = boot(hf_model, tokenizer, entry.name)
    if cancelled():
        raise Cancelled
    progress("testing what can be changed", None)
    model = _of_bridge[id(bridge)] = Model(entry.name, bridge, tokenizer, spec)
    if model.health.level == "broken":
        _log.warning("%s: %s", name, model.health.reasons)
    return model


def _use_native_norms(bridge: "TransformerBridge") -> None:
    """Have norms computed by the model's own code, and only by it unless somebody watches inside them.

    The bridge's own LayerNorm differs from it in the last bits, and to feed its hooks it computes every norm twice.
    """
    for module in bridge.modules():
        if hasattr(module, "use_native_layernorm_autograd"):
            module.use_native_layernorm_autograd = True
            if not bridge.compatibility_mode:  # where norms are folded into weights
                object.__setattr__(module, "forward", partial(_norm, module, module.forward))


def _norm(
    module: Any, hooked: Callable[..., torch.Tensor], hidden: torch.Tensor, **rest: Any
) -> torch.Tensor:
    points = (module.hook_in, module.hook_scale, module.hook_normalized, module.hook_out)
    if any(point._forward_hooks or point._backward_hooks for point in points):
        return hooked(hidden, **rest)
    return module.original_component(hidden)


def _adopt(bridge: Any) -> Model:
    from transformer_lens.model_bridge import TransformerBridge

    if not isinstance(bridge, TransformerBridge):
        raise ModelError(
            f"Transpector can't open a {type(bridge).__name__}. Give a name, a path or a TransformerBridge."
        )
    if bridge.tokenizer is None:
        raise ModelError("This TransformerBridge has no tokenizer. Boot it with tokenizer=.")
    with _adopting:  # two models on one bridge would be two workers on it
        model = _of_bridge.get(id(bridge))
        if model is None:
            model = _of_bridge[id(bridge)] = _model_of(bridge)
        return model


def _model_of(bridge: "TransformerBridge") -> Model:
    weight = next(bridge.original_model.parameters())
    n_params = sum(parameter.numel() for parameter in bridge.original_model.parameters())
    spec = describe_config(
        bridge.cfg.model_name,
        _config_of(bridge),
        n_params,
        str(weight.device),
        str(weight.dtype).removeprefix("torch."),
    )
    return Model(bridge.cfg.model_name, bridge, bridge.tokenizer, spec)


def _ends(bridge: "TransformerBridge") -> list[int]:
    """Ids of the tokens that a model is said to end a text with; a chat model may have several."""
    config = getattr(bridge.original_model, "generation_config", None)
    ends = getattr(config, "eos_token_id", None)
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


def _config_of(bridge: "TransformerBridge") -> dict[str, Any]:
    """Hugging Face's configuration, or TransformerLens's own of a model that it built itself, in the same words."""
    config = getattr(bridge.original_model, "config", None)
    if config is not None:
        return config.to_dict()
    cfg = bridge.cfg
    return {
        "model_type": cfg.architecture,
        "n_layers": cfg.n_layers,
        "n_heads": cfg.n_heads,
        "num_kv_heads": cfg.n_key_value_heads,
        "d_model": cfg.d_model,
        "head_dim": cfg.d_head,
        "d_ff": 0 if cfg.attn_only else cfg.d_mlp,
        "vocab_size": cfg.d_vocab,
        "n_ctx": cfg.n_ctx,
    }
