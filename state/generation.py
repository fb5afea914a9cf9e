"""Generation: a text continued token by token, under a question's interventions."""

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakSet

import torch
from jaxtyping import Float
from torch import Tensor

from transpector.state import past
from transpector.state.errors import InterventionError, TextError
from transpector.state.interventions import Intervention, Question
from transpector.state.run import writes
from transpector.state.task import Task
from transpector.state.wiring import Pass

if TYPE_CHECKING:
    from transpector.state.models import Model
    from transpector.state.session import Session

MAX_NEW_TOKENS = 4096


def generate(
    session: "Session",
    max_new_tokens: int = 32,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int | None = None,
    baseline: bool = False,
) -> "Generation":
    """Begin to continue the session's text under its interventions; with ``baseline``, without them.

    ``temperature`` 0 takes the likeliest token each time, another divides the logits before one is drawn, from the
    ``top_k`` likeliest if that is given. The same ``seed`` draws the same tokens; None draws one, which the
    generation tells. Raises TranspectorError.
    """
    question = session.question
    if baseline:
        question = Question(question.token_ids, (), question.bos)
    return Generation(session.model, question, session.tasks, max_new_tokens, temperature, top_k, seed)


class Generation(Task):
    """A continuation in the making: tokens as they come, iterated over or waited for with ``result``.

    What an intervention means is settled on the prompt: its positions are the prompt's, negative ones too, a mean is
    that over the prompt, and what is frozen or patched from another text concerns the prompt only. At sites without a
    position, and from a position on (``@3:``), what is ablated, steered, skipped or patched from the same run is so for
    every new token as well.
    """

    noun: ClassVar = "generation"

    def __init__(
        self,
        model: "Model",
        question: Question,
        siblings: "WeakSet[Task]",
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int | None = None,
    ):
        n_pos = len(question.token_ids)
        if not 1 <= max_new_tokens <= MAX_NEW_TOKENS:
            raise TextError(f"{max_new_tokens} new tokens: ask for 1 to {MAX_NEW_TOKENS:,}.")
        if not 0 <= temperature <= 100:  # a NaN is neither
            raise TextError(f"Temperature {temperature:g}: use 0 for the likeliest token, or up to 100.")
        if top_k is not None and top_k < 1:
            raise TextError(f"Top-k {top_k}: draw from 1 token or more, or leave it out.")
        model.check(question.interventions, n_pos, question.bos)
        self.question = question
        self.max_new_tokens, self.temperature, self.top_k = max_new_tokens, temperature, top_k
        self.seed = random.randrange(2**31) if seed is None else seed
        self.ended = ""
        """Why there are no more tokens: "length", "end of text" or "context"; empty while there may be."""
        self._writes = writes(question, model)
        self._later = [write.later(n_pos) for write in self._writes]
        self._stepwise = _goes_stepwise(model, self._writes)
        if not self._stepwise:
            _check_whole(self._writes)
        self._random = torch.Generator().manual_seed(self.seed)
        self._ids: list[int] = []
        self._probabilities: list[float] = []
        super().__init__(model, siblings)
        self._submit()

    def __repr__(self) -> str:
        return f"<Generation {self.text!r}, {self.done} of {self.total} tokens, {self.state}>"

    @property
    def done(self) -> int:
        """New tokens so far."""
        return len(self._ids)

    @property
    def total(self) -> int:
        """New tokens asked for."""
        return self.max_new_tokens

    @property
    def new_ids(self) -> tuple[int, ...]:
        """Ids of the new tokens so far."""
        return tuple(self._ids)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Ids of the prompt and of the new tokens so far; a session reads them as they are."""
        return (*self.question.token_ids, *self._ids)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The new tokens as strings."""
        return self.model.pieces(self.new_ids)

    @property
    def probabilities(self) -> tuple[float, ...]:
        """What the model gave each new token, whatever the temperature."""
        return tuple(self._probabilities)

    @property
    def text(self) -> str:
        """The new tokens as one text, special tokens left out."""
        return self.model.text.decode(self.new_ids)

    def __iter__(self) -> Iterator[str]:
        told, over = 0, False
        while not over:
            with self._changed:
                self._changed.wait_for(lambda told=told: self.done > told or self.is_over)
                over = self.is_over
            tokens = self.tokens
            yield from tokens[told:]
            told = len(tokens)
        self.result()

    # How it is done

    def _walked(self) -> Iterator[None]:
        sources, _ = self.model.sources(self.question, self._writes)
        yield
        yield from self._steps(sources) if self._stepwise else self._wholes(sources)

    def _steps(self, sources: dict[Intervention, Tensor]) -> Iterator[None]:
        """The prompt once, then one token at a time, with the keys and values of what came before."""
        cache = past.empty()
        later = [write for write in self._later if write is not None]
        pairs = zip(self._writes, self._later, strict=True)
        of_later = {write: sources[of] for of, write in pairs if write is not None and of in sources}
        new: Sequence[int] = self.question.token_ids
        interventions: Sequence[Intervention] = self._writes
        while not self.ended:
            hooked = Pass(self.model.stack, self.model.wiring, interventions, sources)
            with torch.no_grad():
                hidden, calls = hooked.open(self._tensor(new), cache)
            for layer, call in enumerate(calls):
                with torch.no_grad():
                    hidden = hooked.visit(layer, hidden, call)
                if len(new) > 1:  # a text may be long
                    yield
            new = [self._add(hidden)]
            interventions, sources = later, of_later
            yield

    def _wholes(self, sources: dict[Intervention, Tensor]) -> Iterator[None]:
        """All of it anew for every token: for models that can't go on from keys and values."""
        fixed = [write.fixed(len(self.question.token_ids)) for write in self._writes]
        pairs = zip(self._writes, fixed, strict=True)
        of_fixed = {write: sources[of] for of, write in pairs if of in sources}
        while not self.ended:
            hooked = Pass(self.model.stack, self.model.wiring, fixed, of_fixed)
            with torch.no_grad():
                ids = self._tensor(self.token_ids)
                if self.model.wiring.by_layer:
                    self._add(hooked.walk(ids))
                else:
                    self._take(hooked.run(ids)[0, -1])
            yield

    def _tensor(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor([ids], device=self.model.spec.device)

    def _add(self, hidden: Float[Tensor, "1 pos d_model"]) -> int:
        with torch.no_grad():
            return self._take(self.model.stack.close(hidden[:, -1:])[0, 0])

    def _take(self, logits: Float[Tensor, " d_vocab"]) -> int:
        """Choose the next token, and say so; returns its id."""
        logits = logits.float().cpu()
        new = self._drawn(logits) if self.temperature else int(logits.argmax())
        probability = float((logits[new] - logits.logsumexp(-1)).exp())
        with self._changed:
            if self.is_over:  # given up meanwhile
                return new
            self._ids.append(new)
            self._probabilities.append(probability)
            if new in self.model.text.end_ids:
                self.ended = "end of text"
            elif self.done == self.max_new_tokens:
                self.ended = "length"
            elif self.model.spec.n_ctx and len(self.token_ids) >= self.model.spec.n_ctx:
                self.ended = "context"
        self._tell()
        return new

    def _drawn(self, logits: Float[Tensor, " d_vocab"]) -> int:
        likeliest = logits.topk(min(self.top_k or len(logits), len(logits)))
        weights = (likeliest.values / self.temperature).softmax(-1)
        return int(likeliest.indices[torch.multinomial(weights, 1, generator=self._random)])


def _goes_stepwise(model: "Model", interventions: Sequence[Intervention]) -> bool:
    """Whether a model can go on from keys and values, under these interventions."""
    learned = model.wiring.pattern_through_z and any(i.site.kind == "pattern" for i in interventions)
    # To learn a pattern a layer is done twice, and would remember its keys and values twice.
    return model.wiring.by_layer and model.wiring.by_position and not learned


def _check_whole(interventions: Sequence[Intervention]) -> None:
    for intervention in interventions:
        source = intervention.source_site
        if source is not None and "key" in source.axes_of_kind:
            raise InterventionError(
                f"{intervention.verb} {intervention.site} can't be carried on while this model generates. "
                "Set it to zero, or change z in its place."
            )
