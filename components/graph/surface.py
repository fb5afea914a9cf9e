"""Surface: the diagram as it lies on the page: what is done to it beside drawing and erasing, and what changes its look."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import param
from panel.custom import JSComponent

from transpector.components import theme


class Surface(JSComponent):
    """Put right after the diagram in the same column. ``made`` is given ``{what, …}``.

    ``pick`` comes with the ``ids`` of nodes, and says whether ``more`` are to be selected than these (Shift).
    ``toggle`` (the title of a layer clicked, or a node twice) and ``menu`` (a right click, at x, y) come with the ``id``
    of a node, ``chosen`` with the ``label`` of an entry of the menu, ``refused`` with the reason ``why`` a line could not end there, ``arrow`` with the ``key``, ``size`` with
    the diagram's ``width`` and ``height``, px.
    """

    css = param.String(doc="Style rules for the diagram, on nodes and wires by their `data-id`.")
    picked = param.List(default=[], item_type=str, doc="Ids of the nodes that are to be seen selected.")
    menu = param.List(default=[], item_type=dict, doc="Entries `{label, icon}` of the menu that is to open.")
    at = param.NumericTuple(default=(0, 0), length=2, doc="Where it opens, px of the window.")
    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")

    _esm = Path(__file__).parent / "surface.js"
    _constants = theme.constants()

    def __init__(self, made: Callable[[dict[str, Any]], None], **params: Any):
        super().__init__(height=0, margin=0, **params)
        self._made = made

    def open_menu(self, entries: list[dict[str, str]], x: float, y: float) -> None:
        """Show a menu by the pointer."""
        self.at = (x, y)
        self.menu = entries
        self.param.trigger("menu")  # the same menu may open again

    def _handle_msg(self, message: dict[str, Any]) -> None:
        self._made(message)
