"""Chat: messages, and the text that a chat model's template makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transpector.state.errors import TextError

if TYPE_CHECKING:
    from transpector.state.tokens import Tokens

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """What one side says; ``role`` is system, user or assistant, or whatever else the template knows."""

    role: str
    content: str = ""


def has_template(text: "Tokens") -> bool:
    """Whether a model says how messages are written for it."""
    return bool(getattr(text.tokenizer, "chat_template", None))


def rendered(text: "Tokens", messages: Sequence[Message]) -> str:
    """Write messages as the model's template does, up to where the assistant is to speak or to go on.

    Raises TextError if there is no template, or if it refuses the messages.
    """
    if not has_template(text):
        raise TextError(
            "This model has no chat template. Type a text, or choose a model that was made for chats."
        )
    rows = [{"role": message.role, "content": message.content} for message in messages]
    goes_on = messages[-1].role == "assistant" and bool(messages[-1].content.strip())
    try:
        return text.tokenizer.apply_chat_template(
            rows, tokenize=False, add_generation_prompt=not goes_on, continue_final_message=goes_on
        )
    except Exception as error:
        raise TextError(f"This model's chat template refuses these messages: {error}.") from error
