"""Head colours: a number for every head, by which it is coloured wherever heads are shown."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from transpector.components.base import Pane
from transpector.components.parts.contribution_numbers import ContributionNumbers
from transpector.components.parts.sweep_form import select
from transpector.state.errors import ModelError, SiteError
from transpector.state.scores import OF_ATTENTION, SCORES

CONTRIBUTIONS, SIMILAR, DRAWN = "contributions", "similar", "drawn"
CHOICES = {
    "Nothing": "",
    "Contributions": CONTRIBUTIONS,
    **{score.label: name for name, score in SCORES.items()},
    "Like the selected head": SIMILAR,
    "Like the drawn pattern": DRAWN,
}
"""By what they are called, what heads may be coloured by."""

_OF_SCORES = ("run", "scored_on")
_READS_OF = {
    CONTRIBUTIONS: ("run", "baseline", "position", "metric"),
    SIMILAR: (*_OF_SCORES, "head"),
    DRAWN: (*_OF_SCORES, "drawn"),
}
"""What each choice depends on; scores on ``_OF_SCORES``."""

HeadNumbers = tuple[Float[np.ndarray, "layer head"], float, str]
"""A number a head, the one of the strongest colour, and what they are."""


def choice(session: Any, width: int = 176) -> Any:
    """A select of what heads are coloured by, one with the session's, whoever sets it."""
    made = select(
        "Colour heads by",
        CHOICES,
        width,
        "On the contact sheet and in the graph, as by a click in the Heads tab",
    )
    names = {name: label for label, name in CHOICES.items()}
    made.value = names[session.heads_by]
    made.param.watch(lambda event: session.param.update(heads_by=CHOICES[event.new]), "value")
    session.param.watch(lambda event: made.param.update(value=names.get(event.new, "Nothing")), "heads_by")
    return made


class HeadColours(Pane):
    """Measures what heads are coloured by while that is wanted and in view; ``told`` is given numbers, or the reason why not."""

    reads: ClassVar = ("run", "baseline", "position", "metric", "heads_by", "scored_on", "drawn", "head")

    def __init__(self, session: Any, told: Callable[[HeadNumbers | None, str], None], **params: Any):
        super().__init__(session, **params)
        self._told = told
        self._last: tuple = ("",)
        self.refresh()

    def refresh(self) -> None:
        """Measure anew, if heads are to have colours and anything has changed that these depend on."""
        name = self.session.heads_by
        reads = _READS_OF.get(name, _OF_SCORES) if name else ()
        asked = (name, *(getattr(self.session, each) for each in reads))
        if asked == self._last:
            return
        if name:
            self._last = asked if self.in_view else self._last
            super().refresh()
        else:
            self._last = asked
            self._asked += 1  # what is still under way comes too late
            self._told(None, "")

    def measure(self, heads_by: str, scored_on: str, drawn: list, head: tuple[int, int], **read: Any) -> Any:
        if heads_by == CONTRIBUTIONS:
            return _contributions(**read)
        values, label = head_numbers(read["run"], heads_by, scored_on, drawn, head)
        return values, 1.0, label

    def show(self, numbers: HeadNumbers) -> None:
        self._told(numbers, "")

    def refuse(self, reason: str) -> None:
        self._told(None, reason)


def head_numbers(
    run: Any, name: str, scored_on: str, drawn: list, head: tuple[int, int]
) -> tuple[Float[np.ndarray, "layer head"], str]:
    """One of ``CHOICES`` but contributions, of every head, and what it is; on the model's worker.

    Raises SiteError where it can't be told.
    """
    from transpector.state import heads  # brings torch, which the first paint does not wait for

    run, where = (heads.on_random(run), " on random tokens, twice") if scored_on == "random" else (run, "")
    if name == SIMILAR:
        return heads.similarity(run, own_pattern(run, head)), "attends like L{}H{}".format(*head) + where
    if name == DRAWN:
        if not drawn:
            raise SiteError("No pattern is drawn. Draw one in the Heads tab.")
        return heads.similarity(run, heads.pattern_of(drawn, run.n_pos)), "attends as drawn" + where
    found = heads.attention_scores(run) if name in OF_ATTENTION else heads.head_scores(run)
    if name in found.notes:
        raise SiteError(found.notes[name])
    return found[name], SCORES[name].label.lower() + (where if name in OF_ATTENTION else "")


def own_pattern(run: Any, head: tuple[int, int]) -> Float[np.ndarray, "query key"]:
    """The attention of a head past the first query, which can only attend to itself."""
    pattern = run.pattern(*head)
    pattern[0] = 0
    return pattern


def _contributions(run: Any, **read: Any) -> HeadNumbers:
    numbers = ContributionNumbers.of(run=run, **read)
    heads = numbers.now.heads
    if np.isnan(heads).all():
        raise ModelError("The heads of this model can't be told apart in what its attention adds.")
    return heads, numbers.top, "adds (logits)"
