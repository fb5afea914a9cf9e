"""Fact table: pairs of what and how much."""

from pathlib import Path

import param
from panel.custom import JSComponent

from transpector.components import theme


class FactTable(JSComponent):
    """Rows ``[what, how much]``, as they are."""

    rows = param.List(default=[], item_type=list, doc="Pairs of texts.")
    dark = param.Boolean(default=False, doc="Whether the page is dark.")

    _esm = Path(__file__).parent / "fact_table.js"
    _constants = theme.constants()

    def __init__(self, **params):
        params.setdefault("sizing_mode", "stretch_width")
        super().__init__(**params)
