"""Token circuits: what a head writes of a token, which tokens it matches with which, and how far back it looks."""

from typing import Any

import panel as pn
import param
from panel.viewable import Viewer

from transpector.components import theme
from transpector.components.base import figures
from transpector.components.parts.distance_curve import DistanceCurve
from transpector.components.parts.notice import Notice
from transpector.components.parts.token_ranking import TokenRanking, largest
from transpector.components.parts.weight_numbers import Told, copying_says

_OV = (
    "Logits about their mean, by the OV circuit: the token’s embedding alone, through the layer’s norm, W_V, W_O, the gain "
    "of the final norm (its divisor left at 1) and the unembedding"
)
_COPIED = (
    "The tokens whose own logit it raises most where it attends to them: the diagonal of its OV circuit. The copying score "
    "is the sum of that circuit’s eigenvalues over the sum of their sizes, −1 to 1"
)
_QK = (
    "By content alone, by the QK circuit: the two tokens’ embeddings through the layer’s norm, W_Q and W_K. No distance lies "
    "between them; rotary turns and position embeddings are left out"
)
_DISTANCE = (
    "The mean probability of the key so many tokens before the query, over the queries that have one, on this text; grey is "
    "the baseline"
)
_LONG = 14  # characters of a token in a heading


class TokenCircuits(Viewer):
    """Two rows of three: what it moves, above; where it looks, below."""

    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")

    def __init__(self, **params: Any):
        super().__init__(**params)
        dark = self.param.dark
        self.promotes, self.suppresses = (TokenRanking(_OV, dark=dark) for _ in range(2))
        self.copies = TokenRanking(_COPIED, dark=dark)
        self.attends, self.attended = (TokenRanking(_QK, dark=dark) for _ in range(2))
        self.curve = DistanceCurve(dark=dark)
        self._how = Notice(dark=dark)
        distance = pn.Column(
            Notice(text="Attention by distance", hint=_DISTANCE, tone="heading", dark=dark),
            self.curve,
            self._how,
            sizing_mode="stretch_width",
        )
        self._layout = pn.Column(
            _row(self.promotes, self.suppresses, self.copies),
            _row(self.attends, self.attended, distance),
            sizing_mode="stretch_width",
            styles={"gap": f"{2 * theme.UNIT}px"},
        )

    def show(self, numbers: dict[str, Any]) -> None:
        """Show what ``WeightNumbers.of_tokens`` found, with "copied" and "distance" beside it."""
        token = _quoted(numbers["token"])
        self._show_moved(numbers["moved"], token)
        self._show_copied(numbers["copied"])
        unit = numbers["unit"].found or ""
        self._show_matched(numbers["attends"], numbers["attended"], token, unit)
        self._show_distance(numbers["distance"])

    def _show_moved(self, moved: Told, token: str) -> None:
        titles = f"Attending to {token} promotes", "… and suppresses"
        lists = self.promotes, self.suppresses
        for title, ranking, tokens in zip(titles, lists, moved.found or (None, None), strict=True):
            if tokens is None:
                ranking.refuse(title, moved.reason if ranking is self.promotes else "")
            else:
                ranking.show(title, "logits", tokens, largest(*moved.found), "logits")

    def _show_copied(self, copied: Told) -> None:
        title = "Tokens it copies most"
        if copied.found is None:
            self.copies.refuse(title, copied.reason)
            return
        tokens, score = copied.found
        says = f"Copying score {figures(score, signed=True)}: the eigenvalues of its OV circuit {copying_says(score)}"
        self.copies.show(title, "logits", tokens, largest(tokens), "logits", says)

    def _show_matched(self, attends: Told, attended: Told, token: str, unit: str) -> None:
        top = largest(*(each.found for each in (attends, attended) if each.found is not None))
        for ranking, title, told in (
            (self.attends, f"{token} attends most to", attends),
            (self.attended, "… is attended to most by", attended),
        ):
            if told.found is None:
                ranking.refuse(
                    title, "" if told is attended and told.reason == attends.reason else told.reason
                )
            else:
                ranking.show(title, f"{unit}, by content alone", told.found, top, unit)

    def _show_distance(self, distance: Told) -> None:
        if distance.found is None:
            self._how.text = distance.reason
            self.curve.refuse()
            return
        now, before = distance.found
        self._how.text = now.how[:1].upper() + now.how[1:]
        self.curve.show(now.attention, None if before is None else before.attention, now.scores)

    def __panel__(self) -> Any:
        return self._layout


def _row(*columns: Any) -> pn.Row:
    styles = {"flex": "1 1 0", "min-width": "0"}
    return pn.Row(
        *(pn.Column(each, sizing_mode="stretch_width", styles=styles) for each in columns),
        sizing_mode="stretch_width",
        styles={"gap": f"{3 * theme.UNIT}px"},
    )


def _quoted(token: str) -> str:
    return f"“{token if len(token) <= _LONG else token[: _LONG - 1] + '…'}”"
