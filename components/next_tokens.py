"""Next tokens: what the model expects after the selected position, now against the baseline."""

from typing import Any, ClassVar

from transpector.components.base import Pane, visible
from transpector.components.parts.token_bars import TokenBars

N_TOKENS = 6


class NextTokens(Pane):
    """The likeliest next tokens with their probabilities; grey is the baseline."""

    reads: ClassVar = ("run", "baseline", "position")

    def __init__(self, session: Any, **params: Any):
        super().__init__(session, **params)
        self.bars = TokenBars(top=1, dark=self.param.dark, empty="Type a text to see what comes next.")

    def measure(self, run: Any, baseline: Any, position: int) -> list[dict]:
        from transpector.state.measure import (
            next_tokens,
        )  # brings torch, which the first paint does not wait for

        rows = []
        for token, piece, now, before in next_tokens(run, baseline, min(position, run.n_pos - 1), N_TOKENS):
            row = {"piece": visible([piece])[0], "value": now, "label": f"{now:.3f}"}
            row["hint"] = f"{piece!r}, id {token}: probability {now:.4f}, baseline {before:.4f}"
            if run is not baseline:
                row |= {"before": before, "change": f"{now - before:+.3f}".replace("-", "−")}
            rows.append(row)
        return rows

    def show(self, numbers: list[dict]) -> None:
        self.bars.rows = numbers

    def __panel__(self) -> Any:
        return self.bars
