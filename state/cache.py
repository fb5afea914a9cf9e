"""RunCache: recent runs by their question, bounded by the bytes they hold."""

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transpector.state.interventions import Question
    from transpector.state.run import Run


class RunCache:
    """The runs of one model; the least recently used leave first. Used on the model's worker only."""

    def __init__(self, limit: int = 1 << 30):
        self.limit = limit  # bytes
        self._runs: OrderedDict[Question, tuple[Run, int]] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes that the cached runs hold."""
        return sum(size for _, size in list(self._runs.values()))

    def get(self, question: "Question") -> "Run | None":
        """The run that answers this very question, if it is still here."""
        if question not in self._runs:
            return None
        self._runs.move_to_end(question)
        return self._runs[question][0]

    def put(self, run: "Run") -> None:
        """Keep a run, and drop old ones until all fit; the newest always stays."""
        self._runs[run.question] = run, run.nbytes()
        self._runs.move_to_end(run.question)
        while len(self._runs) > 1 and self.nbytes > self.limit:
            self._runs.popitem(last=False)

    def clear(self) -> None:
        """Forget every run."""
        self._runs.clear()
