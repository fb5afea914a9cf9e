"""Metric: the one number by which every view says what an intervention did."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from transpector.state.errors import SiteError, TextError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from transpector.state.run import Run
    from transpector.state.tokens import Tokens

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
        readout = self.on(run.model.text, run.question.token_ids)
        if self.kind == "loss":
            return float(run.loss.mean())  # known already, as a rule
        return float(readout.terms(run.logits[list(readout.positions)], readout.positions).mean())

    def on(self, text: "Tokens", token_ids: Sequence[int]) -> "Readout":
        """The metric made ready for one text; raises TextError or SiteError as ``of`` does."""
        n_pos = len(token_ids)
        if self.kind == "loss":
            if n_pos < 2:
                raise TextError(
                    "The mean loss needs two tokens: the first is predicted by nothing. Add a word."
                )
            return Readout(tuple(range(n_pos - 1)), tuple(token_ids[1:]))
        if not -n_pos <= self.position < n_pos:
            raise SiteError(f"Position {self.position}: this text has positions 0 to {n_pos - 1}.")
        answer = self._token(text, "answer")
        against = self._token(text, "distractor") if self.kind == "logit_diff" else None
        return Readout((self.position % n_pos,), (answer,), against, sign=1)

    def _token(self, text: "Tokens", role: str) -> int:
        token = getattr(self, role)
        if not token:
            raise TextError(f"The metric has no {role} token. Type one, such as ' Paris' with its space.")
        return text.token_id(token)


@dataclass(frozen=True)
class Readout:
    """A metric on one text: the mean, over some positions, of a term of each position's logits.

    The term is ``sign`` times the log-probability of the position's target, or that target's logit less that of the
    token ``against``.
    """

    positions: tuple[int, ...]
    targets: tuple[int, ...]
    against: int | None = None
    sign: int = -1

    def terms(
        self, logits: "Float[Tensor, 'read d_vocab']", positions: Sequence[int]
    ) -> "Float[Tensor, ' read']":
        """The term of each of these positions, whose logits these are; float32."""
        import torch

        where = dict(zip(self.positions, self.targets, strict=True))
        target = torch.tensor([where[position] for position in positions], device=logits.device)
        if self.against is not None:
            value = logits.gather(-1, target[:, None])[:, 0].float()
            return value - logits[:, self.against].float()
        return -self.sign * torch.nn.functional.cross_entropy(logits.float(), target, reduction="none")
