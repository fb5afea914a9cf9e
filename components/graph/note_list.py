"""Note list: every note on the model at hand; a click goes to its part."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import param
from panel.custom import JSComponent

from transpector.components import theme


class NoteList(JSComponent):
    """The rows ``{id, text}``. ``go`` is given the id that is clicked, ``annotate`` one to delete, with no text."""

    rows = param.List(default=[], item_type=dict, doc="One a note.")
    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")

    _esm = Path(__file__).parent / "note_list.js"
    _constants = theme.constants()

    def __init__(self, go: Callable[[str], None], annotate: Callable[[str, str], None], **params: Any):
        params.setdefault("sizing_mode", "stretch_width")
        super().__init__(**params)
        self._go, self._annotate = go, annotate

    def _handle_msg(self, message: dict[str, Any]) -> None:
        if "go" in message:
            self._go(str(message["go"]))
        elif "remove" in message:
            self._annotate(str(message["remove"]), "")
