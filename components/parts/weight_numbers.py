"""Weight numbers: what there is to show of a head's weights, part by part; what hides one part leaves the others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from transpector.components.base import visible
from transpector.state.errors import Cancelled, TranspectorError

N_TOKENS = 8  # of each list
MAX_SIDE = 256  # of the picture of a matrix; more are pooled by what is furthest from zero


@dataclass(frozen=True, eq=False)
class Told:
    """What was found, or the reason why it can't be told."""

    found: Any = None
    reason: str = ""

    @classmethod
    def of(cls, find: Callable[[], Any]) -> "Told":
        """Whatever is found, or what the user is told instead."""
        try:
            return cls(find())
        except TranspectorError as error:
            return cls(None, str(error))


class WeightNumbers:
    """The numbers of one head at a time, kept until another head, token or model is asked for; on the model's worker.

    ``stale`` says whether nobody waits for a head's numbers any more, and they are given up.
    """

    def __init__(self, stale: Callable[[tuple[int, int]], bool]):
        self._stale = stale
        self._known: dict[str, tuple[tuple, Told]] = {}

    def clear(self) -> None:
        """Forget everything."""
        self._known.clear()

    def of_tokens(self, model: Any, head: tuple[int, int], token: int) -> dict[str, Any]:
        """What the head does with a token: lists of tokens, each with a number."""
        from transpector.state import circuits  # brings torch, which the first paint does not wait for

        def matched(as_key: bool) -> list:
            return circuits.qk_tokens(model, *head, token, N_TOKENS, as_key=as_key)[0]

        return {
            "token": visible(model.pieces([token]))[0],
            "moved": self._once(
                "moved", model, head, lambda: circuits.ov_tokens(model, *head, token, N_TOKENS), token
            ),
            "attends": self._once("attends", model, head, lambda: matched(False), token),
            "attended": self._once("attended", model, head, lambda: matched(True), token),
            "unit": self._once("unit", model, head, lambda: circuits.score_unit(model, head[0])),
        }

    def knows(self, what: str, model: Any, head: tuple[int, int]) -> bool:
        """Whether "copied", "composition" or "eigenvalues" of a head are known, and cost nothing."""
        return self._known.get(what, ((),))[0] == (model.fingerprint(), head)

    def of_copying(self, model: Any, head: tuple[int, int]) -> Told:
        """The tokens that the head copies most, and its copying score, which takes its time once for a model."""
        from transpector.state import circuits

        def copied() -> tuple[list, float]:
            score = float(circuits.copying(model)[head])
            return circuits.copied_tokens(model, *head, N_TOKENS)[0], score

        return self._once("copied", model, head, copied)

    def of_distance(self, run: Any, baseline: Any, head: tuple[int, int]) -> Told:
        """What the head makes of distance now, and in the baseline if that is another run."""
        from transpector.state.distance import distance

        def both() -> tuple[Any, Any]:
            return distance(run, *head), None if baseline is run else distance(baseline, *head)

        return Told.of(both)

    def of_composition(self, model: Any, head: tuple[int, int]) -> Told:
        """How far the head reads what each earlier head writes."""
        from transpector.state.composition import composition

        return self._once("composition", model, head, lambda: composition(model, *head))

    def of_matrices(self, model: Any, head: tuple[int, int]) -> dict[str, Told]:
        """The matrices of the head, their singular values and the eigenvalues of its OV circuit."""
        from transpector.state import circuits, composition

        def eigenvalues() -> tuple[Any, float]:
            return circuits.ov_eigenvalues(model, *head), float(circuits.copying(model)[head])

        return {
            "singular": self._once(
                "singular", model, head, lambda: composition.singular_values(model, *head)
            ),
            "weights": self._once("weights", model, head, lambda: composition.weights(model, *head)),
            "eigenvalues": self._once("eigenvalues", model, head, eigenvalues),
        }

    def _once(
        self, what: str, model: Any, head: tuple[int, int], find: Callable[[], Any], *more: Any
    ) -> Told:
        key = model.fingerprint(), head, *more
        if what not in self._known or self._known[what][0] != key:
            if self._stale(head):
                raise Cancelled
            self._known[what] = key, Told.of(find)
        return self._known[what][1]


def copying_says(score: float) -> str:
    """A head's copying score in words."""
    if abs(score) < 0.1:
        return "are as much positive as negative"
    sign, size = "positive" if score > 0 else "negative", abs(score)
    if size < 0.5:
        return f"are more {sign} than not"
    return f"are almost all {sign}" if size > 0.95 else f"are mostly {sign}"


def effective_rank(values: Float[np.ndarray, " d_head"]) -> float:
    """Of how many equal singular values the entropy would be the same (Roy & Vetterli 2007); 0 if all are zero."""
    total = float(values.sum())
    if not total > 0:
        return 0.0
    shares = values[values > 0].astype(np.float64) / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def pooled(
    matrix: Float[np.ndarray, "row column"],
) -> tuple[Float[np.ndarray, "row column"], tuple[int, int]]:
    """A matrix of at most MAX_SIDE rows and columns, and of how many each stands, for the furthest from zero."""
    each = tuple(-(-size // MAX_SIDE) for size in matrix.shape)
    for axis, many in enumerate(each):
        if many > 1:
            rest = -matrix.shape[axis] % many
            padded = np.pad(np.moveaxis(matrix, axis, -1), ((0, 0), (0, rest)))
            parts = padded.reshape(len(padded), -1, many)
            furthest = np.abs(parts).argmax(-1)[..., None]
            matrix = np.moveaxis(np.take_along_axis(parts, furthest, -1)[..., 0], -1, axis)
    return matrix, each
