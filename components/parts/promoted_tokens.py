"""Promoted tokens: whose logits a part of the model raises most, and whose it lowers most, by itself."""

from typing import Any

import panel as pn
import param
from panel.viewable import Viewer

from transpector.components import theme
from transpector.components.base import figures, visible
from transpector.components.parts.notice import Notice
from transpector.components.parts.token_bars import TokenBars

Ranking = list[tuple[str, float]]


class PromotedTokens(Viewer):
    """Two lists of tokens with their logits, on one scale."""

    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")
    visible = param.Boolean(default=True, doc="Whether it is there.")

    def __init__(self, hint: str, **params: Any):
        """``hint`` says how the numbers come about."""
        super().__init__(**params)
        dark = self.param.dark
        self._promotes, self._suppresses = TokenBars(dark=dark), TokenBars(dark=dark)
        self._layout = pn.Column(
            Notice(text="promotes (logits)", hint=hint, tone="heading", dark=dark),
            self._promotes,
            Notice(text="suppresses (logits)", hint=hint, tone="heading", dark=dark),
            self._suppresses,
            sizing_mode="stretch_width",
            styles={"gap": f"{theme.UNIT}px"},
            visible=self.param.visible,
        )

    def show(self, up: Ranking, down: Ranking) -> None:
        """Show tokens and what is added to the logit of each, the furthest from zero first."""
        top = max(1e-9, *(abs(value) for _, value in up + down))
        for bars, tokens in ((self._promotes, up), (self._suppresses, down)):
            rows = [
                {
                    "piece": visible([piece])[0],
                    "value": value,
                    "label": figures(value, signed=True),
                    "hint": f"{piece!r}: {value:+.4f} logits",
                }
                for piece, value in tokens
            ]
            nothing = all(abs(value) < 1e-9 for _, value in tokens)
            bars.param.update(rows=[] if nothing else rows, top=top, empty="Nothing: it writes zero here.")

    def refuse(self, reason: str) -> None:
        """Say why nothing can be shown."""
        for bars in (self._promotes, self._suppresses):
            bars.param.update(rows=[], empty=reason)

    def __panel__(self) -> Any:
        return self._layout
