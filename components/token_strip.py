"""The token strip: the text as boxes, coloured by the attention from or to one token."""

from pathlib import Path
from typing import Any, ClassVar

import param
from panel.custom import JSComponent

from transpector.components import theme
from transpector.components.base import Pane, visible


class TokenStrip(JSComponent):
    """The text, token by token; the one under the pointer shows what it attends to, a click holds it.

    The pieces are drawn as they come: marks for spaces, line ends and bytes are the caller's. A leading `·`
    and every `⏎` and `⇥` are drawn quietly, and a line ends after a `⏎`.
    """

    pieces = param.List(default=[], item_type=str, doc="The tokens, as they are to be shown.")
    ids = param.List(default=[], item_type=int, doc="The tokens' ids in the vocabulary; may be empty.")
    patterns = param.Bytes(
        default=b"",
        doc="""
        uint8 [scope, query, key], 255 × probability; the scopes are the selected head, the mean over its
        layer, and the mean over all heads.""",
    )
    head = param.String(
        default="", doc="The selected head's name, such as L5H1, for the button of the scope."
    )
    scope = param.Selector(
        default="head", objects=["head", "layer", "all"], doc="Which of the three patterns gives the colours."
    )
    direction = param.Selector(
        default="from",
        objects=["from", "to"],
        doc="""
        `from`: what the token attends to; `to`: which tokens attend to it.""",
    )
    position = param.Integer(
        default=None,
        allow_None=True,
        doc="""
        The selected position; None for none. Both ways: a click or an arrow sets it, Escape clears it.""",
    )
    lines = param.Integer(
        default=6, bounds=(1, None), doc="How many lines of tokens to show before scrolling."
    )
    dark = param.Boolean(default=False, doc="Whether the page is dark.")
    palette = param.Bytes(
        default=theme.sequential_bytes(), constant=True, doc="uint8 [ground, entry, channel]: the two scales."
    )

    _esm = Path(__file__).parent / "token_strip.js"
    _constants = theme.constants()

    def __init__(self, **params):
        params.setdefault("sizing_mode", "stretch_width")
        super().__init__(**params)


class TextStrip(Pane):
    """The newest run's text, coloured by the selected head's attention; a click selects a position."""

    reads: ClassVar = ("run", "head")

    def __init__(self, session: Any, **params: Any):
        super().__init__(session, **params)
        self.strip = TokenStrip(dark=self.param.dark, lines=3)
        self.strip.param.watch(self._select, "position")
        session.param.watch(self._follow, "position")

    def measure(self, run: Any, head: tuple[int, int]) -> dict[str, Any]:
        from transpector.state.measure import (
            strip_patterns,
        )  # brings torch, which the first paint does not wait for

        return {
            "pieces": visible(run.tokens),
            "ids": run.token_ids.tolist(),
            "patterns": strip_patterns(run, *head).tobytes(),
            "head": "L{}H{}".format(*head),
        }

    def show(self, numbers: dict[str, Any]) -> None:
        held = self.strip.position
        if held is not None and held >= len(numbers["pieces"]):
            numbers |= {"position": None}
        self.strip.param.update(**numbers)

    def _select(self, event: Any) -> None:
        self.session.position = -1 if event.new is None else event.new

    def _follow(self, event: Any) -> None:
        if event.new != -1 and event.new != self.strip.position:
            self.strip.position = event.new
        elif event.new == -1:
            self.strip.position = None

    def __panel__(self) -> Any:
        return self.strip
