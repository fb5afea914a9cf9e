"""Token ranking: a list of tokens with a number each, under its own heading, or the reason why there is none."""

from typing import Any

import panel as pn
import param
from panel.viewable import Viewer

from transpector.components import theme
from transpector.components.base import figures, visible
from transpector.components.parts.notice import Notice
from transpector.components.parts.token_bars import TokenBars

Ranking = list[tuple[str, float]]


class TokenRanking(Viewer):
    """A heading, a quiet line below it, the tokens, the furthest first, and what there is to add."""

    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")

    def __init__(self, hint: str, **params: Any):
        """``hint`` says how the numbers come about."""
        super().__init__(**params)
        dark = self.param.dark
        self.title = Notice(tone="heading", hint=hint, dark=dark)
        self.note = Notice(hint=hint, dark=dark)
        self.bars = TokenBars(dark=dark)
        self.beside = Notice(hint=hint, dark=dark)
        self._layout = pn.Column(
            pn.Column(self.title, self.note, sizing_mode="stretch_width"),
            self.bars,
            self.beside,
            sizing_mode="stretch_width",
            styles={"gap": f"{theme.UNIT // 2}px"},
        )

    def show(self, title: str, note: str, tokens: Ranking, top: float, unit: str, more: str = "") -> None:
        """Show tokens; ``top`` is the number of a full bar, ``more`` is said below."""
        self.title.text, self.note.text, self.beside.text = title, note, more
        rows = [
            {
                "piece": visible([piece])[0],
                "value": value,
                "label": figures(value, signed=True),
                "hint": f"{piece!r}: {value:+.4f} {unit}",
            }
            for piece, value in tokens
        ]
        nothing = all(abs(value) < 1e-9 for _, value in tokens)
        self.bars.param.update(
            rows=[] if nothing else rows, top=max(1e-9, top), empty="Nothing: all are zero."
        )

    def refuse(self, title: str, reason: str) -> None:
        """Say why there is nothing to show."""
        self.title.text, self.note.text, self.beside.text = title, "", ""
        self.bars.param.update(rows=[], empty=reason)

    def __panel__(self) -> Any:
        return self._layout


def largest(*rankings: Ranking) -> float:
    """The largest magnitude among some rankings."""
    return max((abs(value) for ranking in rankings for _, value in ranking), default=0.0)
