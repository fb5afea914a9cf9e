"""Token flow: a continuation as running text, coloured by what the model gave each token."""

from pathlib import Path

import param
from panel.custom import JSComponent

from transpector.components import theme


class TokenFlow(JSComponent):
    """Tokens after the end of their prompt; a label by the pointer has position and probability."""

    label = param.String(doc="What a screen reader calls it.")
    context = param.String(doc="The end of what the tokens continue, as it is to be shown.")
    first = param.Integer(default=0, doc="Position of the first token.")
    tokens = param.List(default=[], item_type=tuple, doc="Each as it is to be shown, and its probability.")
    parted = param.Integer(
        default=-1, doc="The first token that differs from the other continuation's; −1 for none."
    )
    end = param.String(doc="Why it ended.")
    busy = param.Boolean(doc="Whether more is to come.")
    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")
    palette = param.Bytes(
        default=theme.sequential_bytes(), constant=True, doc="uint8 [ground, entry, channel]: the two scales."
    )

    _esm = Path(__file__).parent / "token_flow.js"
    _constants = theme.constants()

    def __init__(self, **params):
        params.setdefault("sizing_mode", "stretch_width")
        super().__init__(**params)
