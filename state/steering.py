"""Steering: adding a direction to what a site holds, and where directions come from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from transpector.state.errors import InterventionError
from transpector.state.interventions import Intervention, Question, Tokenize
from transpector.state.sites import AXES, Site

if TYPE_CHECKING:
    from torch import Tensor

    from transpector.state.models import Model
    from transpector.state.run import Run

STEERED = tuple(kind for kind, axes in AXES.items() if axes[0] == "pos")
"""Kinds of site that hold a vector at each position, to which one can be added."""


@dataclass(frozen=True)
class Direction:
    """Where a vector comes from that is added at a site, in the units of what the site holds."""

    def origins(self, bos: bool, tokenize: Tokenize) -> tuple[Question, ...]:
        """The questions whose runs it is read from."""
        return ()

    def vector(self, site: Site, runs: "Sequence[Run]") -> "Tensor":
        """The vector, axes as the site's at one position; on the model's worker."""
        raise NotImplementedError

    def check(self, site: Site, model: "Model") -> None:
        """Raise TranspectorError if there is no such vector for this site of this model."""

    @property
    def what(self) -> str:
        """The direction in a few words."""
        raise NotImplementedError


@dataclass(frozen=True)
class Difference(Direction):
    """What a site holds on a text, less what it holds on another: at their last tokens, or the mean of each.

    Activation addition: Turner et al. 2023, "Steering Language Models With Activation Engineering"; with ``mean``
    the first tokens of the texts, where activations are far from all others, are left out of both.
    """

    text: str
    minus: str
    at: Literal["last", "mean"] = "last"

    def __post_init__(self):
        if self.at not in ("last", "mean"):
            raise InterventionError(f"Difference at={self.at!r}: use 'last' or 'mean'.")

    def origins(self, bos, tokenize):
        texts = (self.text, self.minus)
        return tuple(Question(tuple(tokenize(text, bos)), (), bos) for text in texts)

    def vector(self, site, runs):
        wholes = (run.tensor(site.tensor)[_index(site)] for run in runs)
        a, b = (w[-1] if self.at == "last" else w[min(1, len(w) - 1) :].mean(0) for w in wholes)
        return a - b

    def check(self, site, model):
        for text in (self.text, self.minus):
            model.tokenize(text)

    @property
    def what(self) -> str:
        mean = "" if self.at == "last" else " (mean)"
        return f"“{self.text}” − “{self.minus}”{mean}"


@dataclass(frozen=True)
class TokenVector(Direction):
    """What a token puts into the residual stream (``embed``), or what reads its logit there (``unembed``).

    An unembedding is the token's column of W_U as it is, before the final norm's weight.
    """

    token: str
    of: Literal["unembed", "embed"] = "unembed"

    def __post_init__(self):
        if self.of not in ("unembed", "embed"):
            raise InterventionError(f"TokenVector of={self.of!r}: use 'unembed' or 'embed'.")

    def origins(self, bos, tokenize):
        return (Question(tuple(tokenize(self.token, False)), (), False),)

    def vector(self, site, runs):
        (run,) = runs
        if self.of == "embed":
            return run.tensor(("embed", None))[0]
        unembedding = run.model.bridge.W_U
        if len(unembedding) != run.model.spec.d_model:
            raise InterventionError(
                "This model's unembedding does not read the residual stream. Take the embedding."
            )
        return unembedding[:, run.question.token_ids[0]]

    def check(self, site, model):
        model.text.token_id(self.token)
        if site.axes_of_kind != ("pos", "d_model") or site.dim is not None:
            raise InterventionError(
                f"{site} holds no vector of the residual stream, and a token's {self.of}ding is one. "
                "Steer resid_pre, resid_mid, attn_out, mlp_out or embed with it."
            )

    @property
    def what(self) -> str:
        return f"{self.of}ding of “{self.token}”"


@dataclass(frozen=True)
class Vector(Direction):
    """A vector that was saved, by its numbers; ``label`` says what it is."""

    values: tuple[float, ...]
    label: str = "vector"

    def __post_init__(self):
        import numpy as np

        flat = np.asarray(self.values, np.float32).ravel()
        if not np.isfinite(flat).all():
            raise InterventionError("A direction has numbers that are not finite. Save it again.")
        object.__setattr__(self, "values", tuple(flat.tolist()))

    def vector(self, site, runs):
        import torch

        return torch.tensor(self.values)

    def check(self, site, model):
        if len(self.values) != (size := _size(site, model)):
            raise InterventionError(
                f"{site} holds {size:,} numbers at a position, the direction has {len(self.values):,}. "
                "Choose a site of its size."
            )

    @property
    def what(self) -> str:
        return self.label


@dataclass(frozen=True)
class Steer(Intervention):
    """Add ``strength`` × a direction to what a site holds, at each of its positions.

    The direction is one of those above, or the numbers themselves (a sequence, an array or a tensor).
    """

    site: Site
    direction: Direction
    strength: float = 1.0
    verb: ClassVar[str] = "steer"

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "strength", float(self.strength))
        if self.strength != self.strength or abs(self.strength) == float("inf"):
            raise InterventionError(f"Steer {self.site}: a strength of {self.strength} is no number to add.")
        if not isinstance(self.direction, Direction):
            object.__setattr__(self, "direction", Vector(_numbers(self.direction)))
        if self.site.kind not in STEERED:
            raise InterventionError(
                f"{self.site} holds no vector at a position. Steer one of: {', '.join(STEERED)}."
            )

    def origins(self, question, tokenize):
        return self.direction.origins(question.bos, tokenize)

    def read(self, runs):
        return self.direction.vector(self.site, runs)

    def check_model(self, model):
        self.direction.check(self.site, model)

    def apply(self, whole, source):
        here = whole[(..., *self.site.index)]
        axes = len(_index(self.site)) - sum(isinstance(at, int) for at in _index(self.site)) - 1
        vector = source.reshape(here.shape[here.ndim - axes :]) if axes else source.reshape(())
        return self._written(whole, here + self.strength * vector)

    @property
    def what(self) -> str:
        return f"{self.strength:+.3g} × {self.direction.what}".replace("-", "−")


def reach(run: "Run", steer: Steer) -> float:
    """The strength at which what is added is as long as what the site holds, at the median of its positions.

    Waits for the model's worker; 0 where the direction has no length.
    """
    import torch

    def job() -> float:
        whole = run.tensor(steer.site.tensor)[_index(steer.site)].float()  # [pos, ...]
        runs = [run.model.answer(origin) for origin in steer.origins(run.question, run.model.tokenize)]
        length = float(steer.read(runs).float().norm())
        held = whole.flatten(1).norm(dim=-1) if whole.ndim > 1 else whole.abs()
        # The first token's activations are far from all others.
        return float(torch.median(held[min(1, len(held) - 1) :])) / length if length else 0.0

    return run.model.worker.call(job)


def _numbers(values: "Iterable[float]") -> tuple[float, ...]:
    import numpy as np

    return tuple(np.asarray(values, np.float32).ravel().tolist())


def _index(site: Site) -> tuple[int | slice, ...]:
    """What to index the whole activation with for all positions of the site's head or neuron."""
    return replace(site, position=None).index


def _size(site: Site, model: "Model") -> int:
    """Numbers that a site holds at one position."""
    shape = replace(site, position=0).shape(model.spec, 1)
    size = 1
    for axis in shape:
        size *= axis
    return size
