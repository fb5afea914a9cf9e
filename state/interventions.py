"""Interventions: changes to the forward pass, as values that print, compare and travel."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from math import isfinite
from typing import TYPE_CHECKING, ClassVar, Literal

from transpector.state.errors import InterventionError
from transpector.state.sites import Site

if TYPE_CHECKING:
    from torch import Tensor

    from transpector.state.models import Model
    from transpector.state.run import Run
    from transpector.state.spec import ModelSpec

Tokenize = Callable[[str, bool], Sequence[int]]
"""Ids of a text, with BOS in front or not."""

# What a causal mask leaves in attention scores lies far below; no real score does, in any dtype.
MASKED_BELOW = -3e4


@dataclass(frozen=True)
class Question:
    """What a run answers: token ids [pos] and the interventions in force.

    ``bos`` says whether texts that interventions name begin with the model's BOS token.
    """

    token_ids: tuple[int, ...]
    interventions: "tuple[Intervention, ...]" = ()
    bos: bool = False

    def __post_init__(self):
        object.__setattr__(self, "token_ids", tuple(int(i) for i in self.token_ids))
        object.__setattr__(self, "interventions", active(self.interventions))


@dataclass(frozen=True)
class Intervention:
    """A change to the forward pass at a site; ``enabled`` switches it off without removing it."""

    _: KW_ONLY
    name: str = field(default="", compare=False)
    enabled: bool = True

    site: ClassVar[Site]
    verb: ClassVar[str]
    neutral: ClassVar[float] = 0.0
    """The strength at which it changes nothing."""

    def __post_init__(self):
        for part in fields(self):
            if part.name in ("site", "target", "source"):
                object.__setattr__(self, part.name, Site.parse(getattr(self, part.name)))

    def writes(self, spec: "ModelSpec") -> "tuple[Intervention, ...]":
        """The same, one site at a time, in order."""
        return (self,)

    @property
    def strength(self) -> float | None:
        """How much of it is done, where that is a number that can be more or less."""
        return None

    def at_strength(self, strength: float) -> "Intervention":
        """The same, done as much as that; of what has a strength."""
        return replace(self, strength=strength)

    @property
    def where(self) -> str:
        """The place in the model, as it is printed."""
        return str(self.site)

    @property
    def source_site(self) -> Site | None:
        """The site whose value this reads, if it reads one."""
        return None

    @property
    def reads_here(self) -> bool:
        """Whether what it reads is in the same run."""
        return False

    def origins(self, question: Question, tokenize: Tokenize) -> tuple[Question, ...]:
        """The other questions whose runs this reads from, when it is part of ``question``."""
        return ()

    def read(self, runs: "Sequence[Run]") -> "Tensor | None":
        """What is read from the runs of ``origins``, as ``apply`` is given it; None if nothing."""
        return runs[0].tensor(self.source_site.tensor) if runs else None

    def check_shapes(self, spec: "ModelSpec", n_pos: int, source_n_pos: int) -> None:
        """Raise InterventionError if what is read can't be written here; texts as long as that."""

    def check_model(self, model: "Model") -> None:
        """Raise TranspectorError if this model has not what is read, other than a site."""

    def fixed(self, n_pos: int) -> "Intervention":
        """The same on a text that goes on after these positions, where it means what it means on them."""
        return replace(self, site=_fixed(self.site, n_pos))

    def later(self, n_pos: int) -> "Intervention | None":
        """What of it concerns each position after the first ``n_pos``, where one is done at a time; None if nothing.

        Raises InterventionError if that can't be said.
        """
        return replace(self, site=replace(self.site, position=None)) if _is_open(self.site, n_pos) else None

    def apply(self, whole: "Tensor", source: "Tensor | None") -> "Tensor":
        """Return ``whole`` [..., *axes of the kind] changed at the site; ``source`` is the whole activation read."""
        raise NotImplementedError

    def notes(self, n_pos: int, source_n_pos: int | None) -> str:
        """What the user should know about this intervention on a text of ``n_pos`` tokens; usually nothing."""
        return ""

    @property
    def what(self) -> str:
        """What is done at the site, in a few words."""
        raise NotImplementedError

    def _written(self, whole: "Tensor", value: "Tensor | float") -> "Tensor":
        out = whole.clone()  # hooked tensors share storage with others, so never write in place
        out[(..., *self.site.index)] = value
        return out


@dataclass(frozen=True)
class Ablate(Intervention):
    """Replace a site's value by zero, or by its mean over the positions of the baseline run.

    For ``pattern`` the mean is over query positions, so a query may weigh later keys; for ``scores`` it is over
    the queries that can see the key, and what a query can't see stays hidden.
    """

    site: Site
    how: Literal["zero", "mean"] = "zero"
    verb: ClassVar[str] = "ablate"

    def __post_init__(self):
        super().__post_init__()
        if self.how not in ("zero", "mean"):
            raise InterventionError(f"Ablate how={self.how!r}: use 'zero' or 'mean'.")

    @property
    def source_site(self) -> Site | None:
        return replace(self.site, position=None) if self.how == "mean" else None

    def origins(self, question, tokenize):
        return (replace(question, interventions=()),) if self.how == "mean" else ()

    def later(self, n_pos):
        if self.how == "mean" and "key" in self.site.axes_of_kind and _is_open(self.site, n_pos):
            raise InterventionError(
                f"The mean of {self.site} is over keys of the text; there is none for those that are generated. "
                f"Set it to zero, or name its positions (as in {replace(self.site, position=(0, n_pos))})."
            )
        return super().later(n_pos)

    def apply(self, whole, source):
        if self.how == "zero":
            return self._written(whole, 0.0)
        axis = self.site.position_axis
        if self.site.kind == "scores":
            seen = source > MASKED_BELOW
            mean = source.masked_fill(~seen, 0).sum(axis, keepdim=True) / seen.sum(axis, keepdim=True).clamp(
                min=1
            )
        else:
            mean = source.mean(axis, keepdim=True)
        return self._written(whole, mean.expand(whole.shape[-mean.ndim :])[self.site.index])

    @property
    def what(self) -> str:
        return self.how


@dataclass(frozen=True)
class Scale(Intervention):
    """Multiply what a site holds by a factor."""

    site: Site
    factor: float
    verb: ClassVar[str] = "scale"
    neutral: ClassVar[float] = 1.0

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "factor", _finite(self.factor, f"Scale {self.site}: a factor"))

    @property
    def strength(self) -> float:
        return self.factor

    def at_strength(self, strength):
        return replace(self, factor=strength)

    def apply(self, whole, source):
        return self._written(whole, self.factor * whole[(..., *self.site.index)])

    @property
    def what(self) -> str:
        return f"× {_three_digits(self.factor)}"


@dataclass(frozen=True)
class Set(Intervention):
    """Write one number into every entry of a site."""

    site: Site
    value: float
    verb: ClassVar[str] = "set"

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "value", _finite(self.value, f"Set {self.site}: a value"))

    def apply(self, whole, source):
        return self._written(whole, self.value)

    @property
    def what(self) -> str:
        return f"to {_three_digits(self.value)}"


@dataclass(frozen=True)
class Freeze(Intervention):
    """Hold the value that a site has in the run at hand, while the text or other interventions change.

    ``held`` is that run's question; a Session fills it in when the intervention is set. Left None, the value is
    the baseline's. On a text of another length the overlapping positions are held.
    """

    site: Site
    held: Question | None = None
    verb: ClassVar[str] = "freeze"

    @property
    def source_site(self) -> Site:
        return self.site

    def origins(self, question, tokenize):
        return (self.held or replace(question, interventions=()),)

    def fixed(self, n_pos):
        if self.site.position is not None:
            return super().fixed(n_pos)
        return self  # it holds whatever positions there are

    def later(self, n_pos):
        return None  # what is held has as many positions as it has

    def apply(self, whole, source):
        axis = self.site.position_axis
        n_pos = whole.shape[axis - len(self.site.axes_of_kind)]
        if self.site.position is not None or source.shape[axis] == n_pos:
            wanted, held = _kept_shape(whole, self.site), _kept_shape(source, self.site)
            if wanted != held:
                raise InterventionError(
                    f"Freeze {self.site}: it holds shape {held}, here it is {wanted}. "
                    "Freeze it again on this text, or freeze all positions."
                )
            return self._written(whole, source[self.site.index])
        overlap = min(n_pos, source.shape[axis])
        both = [
            slice(0, overlap) if name in ("pos", "query", "key") else slice(None)
            for name in self.site.axes_of_kind
        ]
        index = tuple(
            whole_axis if at == slice(None) else at
            for whole_axis, at in zip(both, self.site.index, strict=True)
        )
        out = whole.clone()
        out[(..., *index)] = source[index]
        return out

    def notes(self, n_pos, source_n_pos):
        if source_n_pos in (None, n_pos) or self.site.position is not None:
            return ""
        return f"{self.site} is held at positions 0 to {min(n_pos, source_n_pos) - 1}: the frozen text has {source_n_pos} tokens, this one {n_pos}."

    @property
    def what(self) -> str:
        return "hold"


@dataclass(frozen=True)
class Patch(Intervention):
    """Write into ``target`` what ``source`` holds in the run on ``text``, without interventions.

    Without a text the source is read in this same run, where it must be upstream. Shapes must agree.
    """

    target: Site
    source: Site
    text: str | None = None
    verb: ClassVar[str] = "patch"

    def __post_init__(self):
        super().__post_init__()
        if self.text is not None:
            return
        if self.source == self.target:
            raise InterventionError(
                f"Patch {self.target} from itself in the same run changes nothing. Give a text, or another source."
            )
        if self.source.tensor != self.target.tensor and self.source.rank >= self.target.rank:
            raise InterventionError(
                f"Patch {self.target} from {self.source}: the source is not upstream of the target in the same run. "
                "Choose an earlier source, or patch from another text."
            )

    @property
    def site(self) -> Site:
        """The target."""
        return self.target

    @property
    def source_site(self) -> Site:
        return self.source

    @property
    def reads_here(self) -> bool:
        return self.text is None

    def origins(self, question, tokenize):
        return () if self.text is None else (_plain_question(self.text, question.bos, tokenize),)

    def fixed(self, n_pos):
        if self.text is None and self.target.position is None:
            return self
        return replace(self, target=_closed(self.target, n_pos), source=_closed(self.source, n_pos))

    def later(self, n_pos):
        # Another text has a value for each of its positions; this same run has one for every new position too.
        whole = self.text is None and self.target.position is None and self.source.position is None
        return self if whole else None

    def check_shapes(self, spec, n_pos, source_n_pos):
        self._agree(self.target.shape(spec, n_pos), self.source.shape(spec, source_n_pos))

    def apply(self, whole, source):
        value = source[(..., *self.source.index)]
        self._agree(_kept_shape(whole, self.target), _kept_shape(source, self.source))
        return self._written(whole, value)

    def _agree(self, wanted: tuple[int, ...], given: tuple[int, ...]) -> None:
        if wanted == given:
            return
        remedy = "Choose a source of the target's shape."
        if wanted[1:] == given[1:]:  # but for the number of positions
            remedy = "Use texts of the same number of tokens, or name positions (as in L2.resid_pre@-1)."
        raise InterventionError(
            f"Patch {self.target} from {self.source}: the target has shape {wanted}, the source {given}. {remedy}"
        )

    @property
    def what(self) -> str:
        return f"from {self.source}" + ("" if self.text is None else f" on “{self.text}”")


def _three_digits(number: float) -> str:
    return f"{float(f'{number:.3g}'):g}".replace("-", "−")


def _finite(number: float, what: str) -> float:
    """The number as a float; raises InterventionError, which begins with ``what`` it is, if it is none."""
    try:
        given = float(number)
    except (TypeError, ValueError):
        given = float("nan")
    if not isfinite(given):
        raise InterventionError(f"{what} of {str(number)[:80]} is no finite number. Give one, such as 0.5.")
    return given


def _kept_shape(whole: "Tensor", site: Site) -> tuple[int, ...]:
    """Shape of the site's part of ``whole``, batch left out."""
    n_axes = sum(isinstance(at, slice) for at in site.index)
    shape = whole[(..., *site.index)].shape
    return tuple(shape[len(shape) - n_axes :])


@dataclass(frozen=True)
class Skip(Intervention):
    """Leave out the layers from ``first`` to ``last``, both included: the residual stream passes them unchanged.

    What they write is zero; what they read and where they attend is still computed, and can be looked at.
    """

    first: int
    last: int
    verb: ClassVar[str] = "skip"

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.first <= self.last:
            raise InterventionError(
                f"Skip layers {self.first} to {self.last}: name the first and the last, from 0 up."
            )

    def writes(self, spec):
        kinds = ("attn_out", "mlp_out") if spec.d_mlp else ("attn_out",)
        return tuple(
            Ablate(Site(kind, layer)) for layer in range(self.first, self.last + 1) for kind in kinds
        )

    @property
    def where(self) -> str:
        return f"L{self.first}" if self.first == self.last else f"L{self.first}–L{self.last}"

    def fixed(self, n_pos):
        return self

    @property
    def what(self) -> str:
        n = self.last - self.first + 1
        return f"{n} layer{'s' * (n > 1)}"


def active(interventions: Iterable[Intervention]) -> tuple[Intervention, ...]:
    """The interventions that are switched on, in order."""
    return tuple(i for i in interventions if i.enabled)


def _plain_question(text: str, bos: bool, tokenize: Tokenize) -> Question:
    return Question(tuple(tokenize(text, bos)), (), bos)


def _fixed(site: Site, n_pos: int) -> Site:
    """The site with its positions counted from the start of a text of so many tokens; an open range stays open."""
    if isinstance(site.position, int):
        return replace(site, position=site.position % n_pos)
    if site.position is None:
        return site
    start, stop, _ = slice(*site.position).indices(n_pos)
    return replace(site, position=(start, None if site.position[1] is None else stop))


def _closed(site: Site, n_pos: int) -> Site:
    """The same, but only ever those positions."""
    if isinstance(site.position, int):
        return _fixed(site, n_pos)
    start, stop, _ = slice(*(site.position or (None, None))).indices(n_pos)
    return replace(site, position=(start, stop))


def _is_open(site: Site, n_pos: int) -> bool:
    """Whether a site has whatever positions come after the first so many."""
    if site.position is None:
        return True
    return isinstance(site.position, tuple) and site.position[1] is None
