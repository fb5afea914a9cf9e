"""Scores: what each number of a head is, and where it is from."""

from typing import NamedTuple


class Score(NamedTuple):
    """One number of a head: its name for a reader, what it is, and the paper it is from."""

    label: str
    definition: str
    source: str


_OLSSON = "Olsson et al. 2022, “In-context Learning and Induction Heads”, methods: head activation evaluators"

OF_ATTENTION = {
    "previous_token": Score(
        "Previous token", "Mean attention to the token before, from every token but the first.", _OLSSON
    ),
    "duplicate_token": Score(
        "Duplicate token",
        "Mean attention, from each token that occurred before, to all its earlier occurrences.",
        "Wang et al. 2022, “Interpretability in the Wild”, section 3",
    ),
    "induction": Score(
        "Induction",
        "Mean attention, from each token that occurred before, to all tokens that followed it then; "
        "a token never counts as what followed itself.",
        f"{_OLSSON} (prefix matching)",
    ),
    "bos": Score(
        "First token",
        "Mean attention to the first token, from every other: where a head looks that finds nothing.",
        "Xiao et al. 2023, “Efficient Streaming Language Models with Attention Sinks”, section 3.1",
    ),
    "current_token": Score(
        "Current token",
        "Mean attention of every token but the first to itself.",
        "Clark et al. 2019, “What Does BERT Look At?”, section 3.1",
    ),
}
SCORES = OF_ATTENTION | {
    "copying": Score(
        "Copying",
        "Of the eigenvalues of what the head's weights make of a token it attends to, logit by token: their sum "
        "over the sum of their magnitudes; 1 raises that very token, −1 lowers it, whatever the text.",
        "Elhage et al. 2021, “A Mathematical Framework for Transformer Circuits”, “Detecting copying behavior”",
    )
}
"""By name, every score; all but copying are of the text at hand."""
