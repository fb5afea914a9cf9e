"""Notice: a line of text on the page that is never read as HTML."""

from pathlib import Path

import param
from panel.custom import JSComponent

from transpector.components import theme


class Notice(JSComponent):
    """Shows ``text`` as it is; nothing when it is empty."""

    text = param.String(doc="What to say.")
    tone = param.Selector(
        default="quiet", objects=["quiet", "heading", "big", "warning", "error"], doc="How loud to say it."
    )
    hint = param.String(doc="A tooltip.")
    dark = param.Boolean(default=False, doc="Whether the page is dark.")

    _esm = Path(__file__).parent / "notice.js"
    _constants = theme.constants()

    def __init__(self, **params):
        params.setdefault("sizing_mode", "stretch_width")
        super().__init__(**params)
        self._take_room()

    @param.depends("text", watch=True)
    def _take_room(self) -> None:
        self.visible = bool(self.text)
