"""Lens table: layers × positions, each with the token that its stream would predict."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import param
from panel.custom import JSComponent

from transpector.components import theme


class LensTable(JSComponent):
    """Draws what is in view, and asks for it; ``told`` hears what is in view, selected, or dropped on what.

    A cell is ``{pieces, probabilities, entropy, divergence, chosen, rank}``, likeliest token first; ``cells`` is a
    block of them ``{key, row, column, cells}``, where ``key`` names the run that they are of.
    """

    rows = param.List(default=[], item_type=str, doc="Names of the layers, from the top.")
    pieces = param.List(default=[], item_type=str, doc="The text's tokens, as they are to be shown.")
    cells = param.Dict(default={}, doc="The newest block of cells.")
    wanted = param.String(doc="Key of the run whose cells are to come: what is shown pales until then.")
    colour = param.Selector(
        default="probability",
        objects=["probability", "entropy", "divergence", "chosen", "rank"],
        doc="Which number of a cell its colour tells.",
    )
    chosen = param.String(doc="The token whose probability and rank are told, as it is to be shown.")
    d_vocab = param.Integer(default=2, doc="How many tokens there are.")
    selected = param.NumericTuple(
        default=None, length=2, allow_None=True, doc="Row and column of the selected cell."
    )
    marks = param.List(
        default=[], item_type=dict, doc="Cells that are changed: `{row, columns: [from, to], state}`."
    )
    max_height = param.Integer(default=480, doc="px, from where it scrolls.")
    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")
    palette = param.Bytes(
        default=theme.sequential_bytes(), constant=True, doc="uint8 [ground, entry, channel]: the two scales."
    )

    _esm = Path(__file__).parent / "lens_table.js"
    _constants = theme.constants()

    def __init__(self, told: Callable[[dict[str, Any]], None], **params: Any):
        params.setdefault("sizing_mode", "stretch_width")
        super().__init__(**params)
        self._told = told

    def _handle_msg(self, message: dict[str, Any]) -> None:
        self._told(message)
