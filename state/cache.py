"""RunCache: recent runs of a model, bounded by the bytes that they hold together."""

import os
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transpector.state.interventions import Question
    from transpector.state.run import Run

Key = tuple[str, "Question"]
"""The fingerprint of the weights, and the question."""


class RunCache:
    """The runs of one model; the least recently used leave first, pinned ones stay. Changed on the model's worker only.

    Runs that were resumed share storage with the run that they were resumed from; it counts once. The limit is
    ``TRANSPECTOR_RUN_CACHE`` MB, 1,000 unless set.
    """

    def __init__(self, limit: int | None = None):
        self.limit = (
            int(float(os.environ.get("TRANSPECTOR_RUN_CACHE", "1000")) * 1e6) if limit is None else limit
        )
        self.nbytes = 0
        self._runs: OrderedDict[Key, Run] = OrderedDict()
        self._holders: Counter[int] = Counter()  # by address of a storage, how many runs hold it
        self._pins: WeakKeyDictionary[Any, frozenset[Question]] = WeakKeyDictionary()

    def get(self, fingerprint: str, question: "Question") -> "Run | None":
        """The run that answers this very question, if it is still here."""
        run = self._runs.get((fingerprint, question))
        if run is not None:
            self._runs.move_to_end((fingerprint, question))
        return run

    def on_tokens_of(self, fingerprint: str, question: "Question") -> "Iterator[Run]":
        """Runs on the same tokens, whatever their interventions, the latest used first."""
        for (weights, other), run in reversed(self._runs.items()):
            if weights == fingerprint and (other.token_ids, other.bos) == (question.token_ids, question.bos):
                yield run

    def put(self, fingerprint: str, run: "Run") -> None:
        """Keep a run, and drop old ones until all fit; the newest always stays."""
        self._forget((fingerprint, run.question))
        self._runs[fingerprint, run.question] = run
        for storage, size in run.storages().items():
            self.nbytes += size if not self._holders[storage] else 0
            self._holders[storage] += 1
        pinned = frozenset().union(*self._pins.values())
        for key in [key for key in self._runs if key[1] not in pinned]:
            if self.nbytes <= self.limit:
                break
            if key[1] != run.question:
                self._forget(key)

    def pin(self, owner: Any, questions: "Iterable[Question]") -> None:
        """Keep the runs that answer these questions as long as the owner lives, or pins others."""
        self._pins[owner] = frozenset(questions)

    def clear(self) -> None:
        """Forget every run."""
        for key in list(self._runs):
            self._forget(key)

    def _forget(self, key: Key) -> None:
        run = self._runs.pop(key, None)
        for storage, size in run.storages().items() if run is not None else ():
            self._holders[storage] -= 1
            if not self._holders[storage]:
                del self._holders[storage]
                self.nbytes -= size
