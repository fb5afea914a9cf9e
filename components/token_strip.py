"""The token strip: the text as boxes, coloured by the attention from or to one token."""

from pathlib import Path

import param
from panel.custom import JSComponent

from transpector.components import theme


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
