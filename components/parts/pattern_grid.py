"""Pattern grid: a small attention pattern, drawn by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import param
from panel.custom import JSComponent

from transpector.components import theme


class PatternGrid(JSComponent):
    """Rows are queries, columns keys, of a text in so many parts; press and drag to draw, again to wipe."""

    side = param.Integer(default=12, bounds=(1, None), doc="Rows and columns.")
    cells = param.List(default=[], item_type=tuple, doc="What is drawn: (query, key) each.")
    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")

    _esm = Path(__file__).parent / "pattern_grid.js"
    _constants = theme.constants()

    def __init__(self, drawn: Callable[[list[tuple[int, int]]], None], **params: Any):
        """``drawn`` is given all cells whenever the hand comes to rest."""
        super().__init__(**params)
        self._drawn = drawn

    def _handle_msg(self, message: dict[str, Any]) -> None:
        cells = message.get("cells")
        if isinstance(cells, list):
            pairs = sorted({(int(query), int(key)) for query, key in cells})
            self._drawn([(query, key) for query, key in pairs if 0 <= key <= query < self.side])
