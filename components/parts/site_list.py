"""Site list: sites with their numbers, to be chosen from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import param
from panel.custom import JSComponent

from transpector.components import theme


class SiteList(JSComponent):
    """Rows ``{site, change, label, hint}``, with the text ``estimate`` where there is one; a click tells which.

    With ``before`` a row has a second bar, grey. A row with ``rest`` stands for all that is not listed, and can't be
    chosen; such rows come last.
    """

    rows = param.List(default=[], item_type=dict, doc="What is shown, from the top.")
    heads = param.List(default=["", "", ""], item_type=str, doc="What stands above the three columns.")
    top = param.Number(default=1, doc="The change of a full bar.")
    chosen = param.Integer(default=-1, doc="Which row is chosen; -1 for none.")
    name_of_list = param.String(default="Largest changes", doc="What a screen reader calls it.")
    dark = param.Boolean(default=False, doc="Whether the page is dark.")

    _esm = Path(__file__).parent / "site_list.js"
    _constants: ClassVar = {
        **theme.constants(),
        "signs": {
            name: [theme.palette("diverging", dark)[at] for at in (40, 216)]
            for name, dark in (("light", False), ("dark", True))
        },
    }

    def __init__(self, clicked: Callable[[int], None], **params: Any):
        params.setdefault("sizing_mode", "stretch_width")
        super().__init__(**params)
        self._clicked = clicked

    def _handle_msg(self, message: dict[str, Any]) -> None:
        at = message.get("at")
        if isinstance(at, int) and 0 <= at < len(self.rows) and not self.rows[at].get("rest"):
            self._clicked(at)
