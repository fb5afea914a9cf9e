"""Note: a remark on a part of a model."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Note:
    """What somebody remarked on a part of a model, by the model's name and the part's id in its graph."""

    model: str
    node: str
    text: str


def noted(notes: Iterable[Note], note: Note) -> list[Note]:
    """The notes with one in place of that on the same part; an empty text takes it away."""
    others = [each for each in notes if (each.model, each.node) != (note.model, note.node)]
    return [*others, note] if note.text.strip() else others
