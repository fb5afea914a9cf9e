"""Score table: a row for each head, a column for each number, sorted by one of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import param
from panel.custom import JSComponent

from transpector.components import theme


class ScoreTable(JSComponent):
    """A click on the name of a column sorts by it, a click on a row chooses it; ``clicked`` is told which, and of what.

    NaN is shown as a dash and comes last. Of very many rows only the first some hundred are in the page.
    """

    names = param.List(default=[], item_type=str, doc="Of the rows.")
    columns = param.List(
        default=[], item_type=dict, doc="``{name, label, hint, top}``, ``top`` the number of a full bar."
    )
    values = param.Bytes(default=b"", doc="float32 [row, column].")
    by = param.String(doc="The name of the column that the rows are sorted by, the largest first.")
    chosen = param.Integer(default=-1, doc="The chosen row, as in ``names``; -1 for none.")
    label = param.String(doc="What a screen reader calls it.")
    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")

    _esm = Path(__file__).parent / "score_table.js"
    _constants = theme.constants()

    def __init__(self, clicked: Callable[[str, Any], None], **params: Any):
        """``clicked`` is given "row" and its place, or "by" and the name of a column."""
        params.setdefault("sizing_mode", "stretch_width")
        super().__init__(**params)
        self._clicked = clicked

    def _handle_msg(self, message: dict[str, Any]) -> None:
        row, by = message.get("row"), message.get("by")
        if isinstance(row, int) and 0 <= row < len(self.names):
            self._clicked("row", row)
        elif by in [column["name"] for column in self.columns]:
            self._clicked("by", by)
