"""Text input: the text that the model reads, or the chat that it is made of, and a second one to patch from."""

from dataclasses import replace
from typing import Any, ClassVar

import panel as pn
import panel_material_ui as pmui

from transpector.components import theme
from transpector.components.base import Pane
from transpector.components.parts.message_list import MessageList
from transpector.components.parts.notice import Notice
from transpector.state.chat import Message, has_template
from transpector.state.errors import TranspectorError

CHAT = "Write messages, and have the model's own template make the text of them"
NO_CHAT = "This model has no chat template: it was not made for chats"
N_REPEATED = 24  # tokens of the random span that is then repeated


class TextInput(Pane):
    """The text, run as it is typed; BOS switch, token count, and repeated random tokens at a click."""

    reads: ClassVar = ("run", "text_b")

    def __init__(self, session: Any, **params: Any):
        super().__init__(session, **params)
        self._area = _area("Text", session.text, "Type a text: the model reads it as you type.")
        self._area_b = _area(
            "Text B, to patch from", session.text_b, "A second text, best of as many tokens."
        )
        self._bos = pmui.Switch(
            label="BOS",
            value=False,
            size="small",
            margin=(0, 0, 0, 4),
            description="Begin with the model's BOS token",
        )
        self._chat = pmui.Switch(
            label="Chat", value=False, size="small", margin=(0, 0, 0, 4), description=CHAT, disabled=True
        )
        self._messages = MessageList(self._say, dark=self.param.dark, visible=False)
        self._repeat = pmui.Button(
            label="Repeated random tokens",
            icon="repeat",
            variant="outlined",
            size="small",
            margin=0,
            description=f"Insert {N_REPEATED} random tokens twice: a head that finds the first copy makes the second one easy (induction)",
        )
        self._count = Notice(dark=self.param.dark)
        self._count_b = Notice(dark=self.param.dark)
        self._taking = False
        self._shown = session.text
        self._area.param.watch(self._typed, "value_input")
        self._area_b.param.watch(lambda event: session.param.update(text_b=event.new), "value_input")
        self._bos.param.watch(lambda event: self._taking or session.param.update(bos=event.new), "value")
        self._chat.param.watch(lambda event: self._taking or self._begin_chat(event.new), "value")
        self._repeat.on_click(self._insert_repeated)
        session.param.watch(self._take, ["text", "token_ids", "bos", "model", "messages"])
        self._take()

    def _typed(self, event: Any) -> None:
        if not self._taking and event.new != self._shown:
            self._shown = event.new
            self.session.text = event.new

    def _take(self, *events: Any) -> None:
        """Show what the session has been given elsewhere."""
        session = self.session
        self._taking = True
        try:
            if session.token_ids is not None and session.model is not None:
                text = "".join(session.model.pieces(session.token_ids))
            else:
                text = session.text
            if text != self._shown:
                self._shown = self._area.value = text
            if session.model is not None:
                has_bos = session.model.text.bos_id is not None
                self._bos.param.update(
                    value=has_bos and (session.model.text.adds_bos if session.bos is None else session.bos),
                    disabled=not has_bos or session.token_ids is not None,
                )
                chats = has_template(session.model.text)
                self._chat.param.update(
                    value=bool(session.messages), disabled=not chats, description=CHAT if chats else NO_CHAT
                )
            self._messages.param.update(
                rows=[{"role": each.role, "content": each.content} for each in session.messages],
                visible=bool(session.messages),
            )
            self._area.label = "As the model reads it" if session.messages else "Text"
        finally:
            self._taking = False

    def _begin_chat(self, on: bool) -> None:
        session = self.session
        if on:
            session.messages = [Message("user", "" if session.token_ids else session.text)]
        else:
            said = [each.content for each in session.messages if each.role == "user"]
            session.text = said[-1] if said else ""

    def _say(self, message: dict[str, Any]) -> None:
        messages, at = list(self.session.messages), message.get("at", -1)
        if message["do"] == "add":
            asked = messages and messages[-1].role == "user"
            messages.append(Message("assistant" if asked else "user"))
        elif not 0 <= at < len(messages):
            return  # of a message that has gone meanwhile
        elif message["do"] == "remove":
            del messages[at]
        elif message["do"] == "role":
            messages[at] = replace(messages[at], role=str(message["role"]))
        elif message["do"] == "edit":
            messages[at] = replace(messages[at], content=str(message["content"]))
        if messages:
            self.session.messages = messages
        else:
            self._begin_chat(False)

    def _insert_repeated(self, event: Any) -> None:
        model = self.session.model
        if model is None:
            return
        from transpector.state.heads import repeated_random  # brings torch

        # Twice, and BOS in front of them.
        n = min(N_REPEATED, ((model.spec.n_ctx or 2 * N_REPEATED + 1) - 1) // 2)
        self.session.token_ids = list(repeated_random(model, n, seed=None, bos=True).token_ids)

    def measure(self, run: Any, text_b: str) -> tuple[int, int, int, str]:
        trouble, n_b = "", 0
        if text_b:
            try:
                n_b = len(run.model.tokenize(text_b, run.question.bos))
            except TranspectorError as error:
                trouble = str(error)
        return run.n_pos, run.model.spec.n_ctx, n_b, trouble

    def show(self, numbers: tuple[int, int, int, str]) -> None:
        n_pos, n_ctx, n_b, trouble = numbers
        self._count.param.update(
            text=f"{n_pos:,} tokens", hint=f"This model reads at most {n_ctx:,}" if n_ctx else ""
        )
        differs = "" if n_b in (0, n_pos) else f", text has {n_pos}: patch single positions"
        self._count_b.text = trouble or (f"{n_b:,} tokens{differs}" if n_b else "")

    def __panel__(self) -> Any:
        return pn.Column(
            self._area,
            self._messages,
            pn.Row(self._count, self._bos, self._chat, sizing_mode="stretch_width", align="center"),
            self._repeat,
            self._area_b,
            self._count_b,
            sizing_mode="stretch_width",
            styles={"gap": f"{theme.UNIT}px"},
        )


def _area(label: str, text: str, placeholder: str) -> pmui.TextAreaInput:
    return pmui.TextAreaInput(
        label=label,
        value=text,
        placeholder=placeholder,
        auto_grow=True,
        rows=2,
        max_rows=6,
        max_length=200_000,
        size="small",
        margin=0,
        sizing_mode="stretch_width",
    )
