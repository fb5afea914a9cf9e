"""Message list: the messages of a chat, each edited in place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import param
from panel.custom import JSComponent

from transpector.components import theme
from transpector.state.chat import ROLES


class MessageList(JSComponent):
    """The rows ``{role, content}``; ``changed`` is told what is done: edit, role, add or remove, and at which."""

    rows = param.List(default=[], item_type=dict, doc="One a message, in order.")
    roles = param.List(default=list(ROLES), item_type=str, constant=True, doc="Who may say something.")
    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")

    _esm = Path(__file__).parent / "message_list.js"
    _constants = theme.constants()

    def __init__(self, changed: Callable[[dict[str, Any]], None], **params: Any):
        params.setdefault("sizing_mode", "stretch_width")
        super().__init__(**params)
        self._changed = changed

    def _handle_msg(self, message: dict[str, Any]) -> None:
        self._changed(message)
