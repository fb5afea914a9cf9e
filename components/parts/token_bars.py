"""Token bars: a list of tokens, each with a bar for its number now and, beneath, one for before."""

from pathlib import Path

import param
from panel.custom import JSComponent

from transpector.components import theme


class TokenBars(JSComponent):
    """Rows ``{piece, value, label}``, each with ``before``, ``change`` and ``hint`` where there is one."""

    rows = param.List(default=[], item_type=dict, doc="What is shown, from the top.")
    top = param.Number(default=0, doc="The value of a full bar; 0 for the largest shown.")
    empty = param.String(doc="What to say when there are no rows.")
    dark = param.Boolean(default=False, doc="Whether the page is dark.")

    _esm = Path(__file__).parent / "token_bars.js"
    _constants = theme.constants()

    def __init__(self, **params):
        params.setdefault("sizing_mode", "stretch_width")
        super().__init__(**params)
