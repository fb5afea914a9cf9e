"""History: the interventions as they were, for undo and redo."""

from collections.abc import Callable, Iterable, Sequence

from transpector.state.interventions import Intervention


class History:
    """A line of lists of interventions with a place in it; a new list cuts off what was undone."""

    def __init__(self, first: Iterable[Intervention] = ()):
        self._lists: list[tuple[Intervention, ...]] = [tuple(first)]
        self._at = 0

    @property
    def now(self) -> tuple[Intervention, ...]:
        """The list at the present place."""
        return self._lists[self._at]

    @property
    def can_undo(self) -> bool:
        """Whether there is an earlier list."""
        return self._at > 0

    @property
    def can_redo(self) -> bool:
        """Whether there is a list that was undone."""
        return self._at + 1 < len(self._lists)

    def push(self, interventions: Iterable[Intervention]) -> None:
        """Go on to a new list, unless it is the present one.

        While one and the same strength is being set, it is one step, however many lists that takes.
        """
        new = tuple(interventions)
        # Names do not count when interventions are compared, but a change of name can be undone too.
        if new == self.now and [i.name for i in new] == [i.name for i in self.now]:
            return
        slid = _slid(self.now, new)
        if slid is not None and self._at and _slid(self._lists[self._at - 1], self.now) == slid:
            self._at -= 1
        self._lists[self._at + 1 :] = [new]
        self._at += 1

    def step(self, by: int) -> tuple[Intervention, ...]:
        """Go back or forth, as far as there is anything, and return the list there."""
        self._at = max(0, min(self._at + by, len(self._lists) - 1))
        return self.now

    def rewrite(self, change: Callable[[Intervention], Intervention]) -> None:
        """Change every intervention of every list."""
        self._lists = [tuple(map(change, interventions)) for interventions in self._lists]


def _slid(old: Sequence[Intervention], new: Sequence[Intervention]) -> int | None:
    """The place of the one intervention of which nothing but its strength differs; None if that is not all."""
    if len(old) != len(new):
        return None
    differ = [at for at, (one, other) in enumerate(zip(old, new, strict=True)) if one != other]
    if len(differ) != 1:
        return None
    one, other = old[differ[0]], new[differ[0]]
    both = one.strength is not None and other.strength is not None
    return differ[0] if both and one.at_strength(other.strength) == other else None
