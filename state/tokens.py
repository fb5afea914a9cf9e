"""Tokens: between text, ids and the strings that a reader can see."""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from transpector.state.errors import TextError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's table of printable stand-ins, one character a byte, turned round."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    rest = (byte for byte in range(256) if byte not in printable)
    return table | {chr(0x100 + n): byte for n, byte in enumerate(rest)}


class Tokens:
    """One model's tokenizer, asked with an explicit BOS switch and never to add anything else."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", ends: Iterable[int] = ()):
        """``ends`` are ids that end a text for this model, beside the tokenizer's own."""
        self.tokenizer = tokenizer
        self.bos_id: int | None = tokenizer.bos_token_id
        ids = tokenizer("a").input_ids
        self.adds_bos = self.bos_id is not None and ids[:1] == [self.bos_id]
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self.end_ids: set[int] = {tokenizer.eos_token_id, *ends} - {None}
        self._byte_level = backend is not None and "ByteLevel" in repr(backend.decoder)
        self._special = set(tokenizer.all_special_tokens)
        self._pieces: dict[int, str] = {}

    def encode(self, text: str, bos: bool = False) -> list[int]:
        """Ids of the text, with BOS in front if asked for; raises TextError if nothing is left to read."""
        if not text:
            raise TextError("The text is empty. Type a few words.")
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        if bos and self.bos_id is not None:
            ids = [self.bos_id, *ids]
        if not ids:
            raise TextError(f"This model's tokenizer makes no token of {text[:40]!r}. Type another text.")
        return ids

    def token_id(self, text: str) -> int:
        """The id of a text that is one token; raises TextError with the pieces if it is not."""
        ids = self.encode(text)
        if len(ids) != 1:
            pieces = ", ".join(repr(piece) for piece in self.pieces(ids)[:8])
            raise TextError(
                f"{text!r} is {len(ids)} tokens ({pieces}), not one. Name one token; a word often begins with a space."
            )
        return ids[0]

    def plain_ids(self) -> list[int]:
        """Ids of ordinary tokens, none of them special: what random tokens are drawn from."""
        special = set(self.tokenizer.all_special_ids)
        return [
            token_id for token_id in sorted(self.tokenizer.get_vocab().values()) if token_id not in special
        ]

    def pieces(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Each token as the text it stands for; bytes that are no text on their own as ‹E2 80›."""
        for token_id in ids:
            if token_id not in self._pieces:
                self._pieces[token_id] = self._piece(int(token_id))
        return tuple(self._pieces[token_id] for token_id in ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text that the ids stand for, special tokens left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _piece(self, token_id: int) -> str:
        token = self.tokenizer.convert_ids_to_tokens(token_id)
        if token is None:  # a row of the embedding that no token uses
            return f"‹{token_id}›"
        if isinstance(token, bytes):
            return _text(token)
        if token in self._special:
            return token
        if self._byte_level:
            table = _byte_of_character()
            return _text(bytes(table[c] for c in token)) if all(c in table for c in token) else token
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return _text(bytes([int(token[3:5], 16)]))
        return token.replace("▁", " ")


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "‹" + raw.hex(" ").upper() + "›"
