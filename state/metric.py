"""Metric: the one number by which every view says what an intervention did."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from transpector.state.errors import TextError

if TYPE_CHECKING:
    from transpector.state.run import Run

UNITS = {"loss": "nats", "log_prob": "nats", "logit_diff": "logits"}


@dataclass(frozen=True)
class Metric:
    """Mean loss of the text, or the log-probability or logit difference of chosen tokens after a position.

    ``answer`` and ``distractor`` are texts of one token each; ``position`` may count from the end.
    """

    kind: Literal["loss", "log_prob", "logit_diff"] = "loss"
    answer: str = ""
    distractor: str = ""
    position: int = -1

    def __post_init__(self):
        if self.kind not in UNITS:
            raise TextError(f"Metric {self.kind!r}: use one of {', '.join(UNITS)}.")

    @property
    def unit(self) -> str:
        """Unit of the number."""
        return UNITS[self.kind]

    @property
    def label(self) -> str:
        """The metric in a few words."""
        where = "the last token" if self.position == -1 else f"position {self.position}"
        return {
            "loss": "mean loss",
            "log_prob": f"log-probability of {self.answer!r} after {where}",
            "logit_diff": f"logit of {self.answer!r} − {self.distractor!r} after {where}",
        }[self.kind]

    def of(self, run: "Run") -> float:
        """The metric of a run; raises TextError or SiteError if the run has no such tokens or position."""
        if self.kind == "loss":
            if run.n_pos < 2:
                raise TextError(
                    "The mean loss needs two tokens: the first is predicted by nothing. Add a word."
                )
            return float(run.loss.mean())
        answer = self._token(run, "answer")
        if self.kind == "log_prob":
            return float(run.log_probs(self.position)[answer])
        logits = run.logits[run.at(self.position)].float()
        return float(logits[answer] - logits[self._token(run, "distractor")])

    def _token(self, run: "Run", role: str) -> int:
        text = getattr(self, role)
        if not text:
            raise TextError(f"The metric has no {role} token. Type one, such as ' Paris' with its space.")
        return run.model.text.token_id(text)
