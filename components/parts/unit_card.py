"""Unit card: one neuron, or one dimension of the residual stream, in full: what it does now, what it writes and reads."""

from typing import Any

import panel as pn
import param
from panel.viewable import Viewer

from transpector.components import theme
from transpector.components.base import figures
from transpector.components.parts.notice import Notice
from transpector.components.parts.token_ranking import TokenRanking, largest
from transpector.components.parts.unit import name_of
from transpector.components.parts.unit_numbers import ACTS, GATE, NORM, PRE, VALUE, UnitNumbers

N_LOWEST = 2  # tokens that a unit reads least
_WRITES = (
    "What it adds to the residual stream while its activation is 1, read off by the unembedding: logits about their mean, "
    "the divisor of the final norm left at 1. A negative activation turns promoted into suppressed"
)
_READS = (
    "What it is given of a token’s embedding alone, through the layer’s own norm: the highest tokens and the lowest. What "
    "the layers below add to a token is left out"
)
_HELD = (
    "How much of this dimension a token’s embedding has, before any layer: the highest tokens and the lowest"
)
_READ_AS = {"gate": "Reads: the gate opens for", "in": "… and the value comes from"}
_SELECTED = "Selected everywhere; the buttons that change it are at the right."
_NOT_SELECTED = "Not selected yet: click it in the list for the buttons that change it."


class UnitCard(Viewer):
    """Its numbers at the position; below, two columns of tokens."""

    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")

    def __init__(self, **params: Any):
        super().__init__(**params)
        dark = self.param.dark
        self._title = Notice(tone="big", dark=dark)
        self._what, self._was, self._writes, self._how = (Notice(dark=dark) for _ in range(4))
        self._does = Notice(tone="heading", dark=dark)
        self._promotes, self._suppresses = (TokenRanking(_WRITES, dark=dark) for _ in range(2))
        self._reads = [TokenRanking(_READS, dark=dark), TokenRanking(_READS, dark=dark)]
        self._second = pn.Column(self._reads[1], sizing_mode="stretch_width")
        gap = {"gap": f"{2 * theme.UNIT}px"}
        columns = ((self._promotes, self._suppresses), (self._reads[0], self._second))
        self._layout = pn.Column(
            pn.Column(self._title, self._what, self._how, sizing_mode="stretch_width"),
            pn.Column(self._does, self._was, self._writes, sizing_mode="stretch_width"),
            pn.Row(
                *(
                    pn.Column(
                        *lists,
                        sizing_mode="stretch_width",
                        styles={"flex": "1 1 0", "min-width": "0", **gap},
                    )
                    for lists in columns
                ),
                sizing_mode="stretch_width",
                styles={"gap": f"{3 * theme.UNIT}px"},
            ),
            sizing_mode="stretch_width",
            styles={"gap": f"{theme.UNIT}px"},
        )

    def show(self, numbers: UnitNumbers) -> None:
        """Show a unit."""
        site = numbers.site
        self._title.text = name_of(site)
        which = (
            f"neuron {site.neuron:,} of {numbers.n_units:,} of layer {site.layer}"
            if site.neuron is not None
            else f"dimension {site.dim:,} of {numbers.n_units:,}, before layer {site.layer}"
        )
        self._what.text = f"{which}, {numbers.where}"
        self._does.text = _told(numbers.doing, numbers.changed)
        self._was.text = "" if numbers.did is None else f"baseline: {_told(numbers.did, False)}"
        norms = [each[NORM] for each in (numbers.doing, numbers.did) if each is not None and NORM in each]
        was = f" (baseline {figures(norms[1])})" if len(norms) > 1 else ""
        self._writes.text = f"adds a vector of norm {figures(norms[0])} to the stream{was}" if norms else ""
        self._show_tokens(numbers)

    def mark(self, is_selected: bool) -> None:
        """Say where it is changed."""
        self._how.text = _SELECTED if is_selected else _NOT_SELECTED

    def _show_tokens(self, numbers: UnitNumbers) -> None:
        found = numbers.tokens.found
        self._second.visible = found is not None and len(found.reads) > 1
        if found is None:
            self._promotes.refuse("Writes, and reads", numbers.tokens.reason)
            for each in (self._suppresses, self._reads[0]):
                each.refuse("", "")
            return
        up, down = found.writes
        titles = "Writes: promotes", "… and suppresses"
        for ranking, title, tokens in zip(
            (self._promotes, self._suppresses), titles, (up, down), strict=True
        ):
            ranking.show(title, "logits, for each unit of activation", tokens, largest(up, down), "logits")
        for ranking, (name, (high, low)) in zip(self._reads, found.reads.items(), strict=False):
            title, note, hint = _read_as(name, len(found.reads) > 1, numbers.site.neuron is not None)
            ranking.title.hint = ranking.note.hint = hint
            tokens = [*high[: max(1, len(high) - N_LOWEST)], *reversed(low[:N_LOWEST])]
            ranking.show(title, note, tokens, largest(tokens), "")

    def __panel__(self) -> Any:
        return self._layout


def _told(numbers: dict[str, float], changed: bool) -> str:
    """What a unit does, in a line."""
    acts, gated = figures(numbers[ACTS], signed=True), GATE in numbers and VALUE in numbers
    made = ""
    if gated:
        made = f"curve({GATE} {figures(numbers[GATE], True)}) × {VALUE} {figures(numbers[VALUE], True)}"
    elif PRE in numbers:
        made = f"curve({figures(numbers[PRE], True)})"
    return " ".join(filter(None, (ACTS, acts, made and ("in place of" if changed else "="), made)))


def _read_as(name: str, gated: bool, is_neuron: bool) -> tuple[str, str, str]:
    """What a list of what a unit reads is called, what its numbers are, and how they come about."""
    if not is_neuron:
        return "Most in the embedding of", "this dimension, of each token alone", _HELD
    if not gated:
        return "Reads: excited by", "before the curve, of each token alone", _READS
    return _READ_AS[name], f"{'gate' if name == 'gate' else 'value'}, of each token alone", _READS
