"""Head matrices: the spectra of a head's two circuits, and pictures of its four matrices."""

from typing import Any

import numpy as np
import panel as pn
import param
from panel.viewable import Viewer

from transpector.components import theme
from transpector.components.base import figures
from transpector.components.parts.notice import Notice
from transpector.components.parts.spectrum import EigenvaluePlane, SingularValues
from transpector.components.parts.weight_numbers import Told, copying_says, effective_rank
from transpector.components.parts.weight_picture import WeightPicture

_RANK = " The effective rank, dotted, is of how many equal singular values the entropy would be the same (Roy & Vetterli 2007)"
_SINGULAR = {
    "OV": "How strongly the head carries its main directions from the stream it attends to into its own."
    + _RANK,
    "QK": "How strongly the main directions of queries and keys are matched with one another." + _RANK,
}
_EIGEN = (
    "Of the OV circuit from the vocabulary to itself. To the right of zero it promotes the very tokens that it attends to, "
    "to the left it suppresses them; the copying score is their sum over the sum of their sizes"
)
_DOES = {
    "W_Q": "Makes the query of the stream: what the head looks for",
    "W_K": "Makes the key of the stream: what it is found by",
    "W_V": "Makes the value of the stream: what is carried over from where it attends",
    "W_O": "Writes what was carried over into the stream",
}


class HeadMatrices(Viewer):
    """Singular values and eigenvalues above, the matrices below."""

    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")

    def __init__(self, **params: Any):
        super().__init__(**params)
        dark = self.param.dark
        self.singular = {name: SingularValues(f"singular_{name}", dark=dark) for name in _SINGULAR}
        self._ranks = {name: Notice(tone="heading", hint=hint, dark=dark) for name, hint in _SINGULAR.items()}
        self._hidden = {name: Notice(dark=dark) for name in (*_SINGULAR, "eigenvalues", "weights")}
        self.eigenvalues = EigenvaluePlane(dark=dark)
        self._score = Notice(dark=dark)
        self.pictures = {name: WeightPicture(name, hint, dark=dark) for name, hint in _DOES.items()}
        self._how = Notice(dark=dark)
        above = [
            _column(self._ranks[name], self._hidden[name], self.singular[name], least=232)
            for name in _SINGULAR
        ]
        plane = _column(
            Notice(text="Eigenvalues of OV", hint=_EIGEN, tone="heading", dark=dark),
            self._hidden["eigenvalues"],
            self._score,
            self.eigenvalues,
            least=232,
        )
        self._layout = pn.Column(
            _wrapped(*above, plane),
            self._how,
            self._hidden["weights"],
            _wrapped(*(_column(picture, least=320) for picture in self.pictures.values())),
            sizing_mode="stretch_width",
            styles={"gap": f"{theme.UNIT}px"},
        )

    def show(self, numbers: dict[str, Any]) -> None:
        """Show what ``WeightNumbers.of_matrices`` found; "shared" says with which heads W_K and W_V are."""
        self._show_singular(numbers["singular"])
        self._show_eigenvalues(numbers["eigenvalues"])
        self._show_weights(numbers["weights"], numbers["shared"])

    def _show_singular(self, told: Told) -> None:
        for name, values in zip(_SINGULAR, told.found or (None, None), strict=True):
            self._hidden[name].text = told.reason
            if values is None:
                self._ranks[name].text = f"Singular values of {name}"
                self.singular[name].refuse()
            else:
                rank = effective_rank(values)
                self._ranks[name].text = f"{name}: effective rank {figures(rank)} of {len(values)}"
                self.singular[name].show(values, rank)

    def _show_eigenvalues(self, told: Told) -> None:
        self._hidden["eigenvalues"].text, self._score.text = told.reason, ""
        if told.found is None:
            self.eigenvalues.refuse()
            return
        values, score = told.found
        self._score.text = (
            f"copying score {figures(score, signed=True)}: {copying_says(score).removeprefix('are ')}"
        )
        self.eigenvalues.show(values)

    def _show_weights(self, told: Told, shared: str) -> None:
        self._hidden["weights"].text, self._how.text = told.reason, ""
        if told.found is None:
            for picture in self.pictures.values():
                picture.refuse()
            return
        each = 1
        for name, picture in self.pictures.items():
            matrix = told.found[name]
            lying = matrix if name == "W_O" else np.ascontiguousarray(matrix.T)
            each = picture.show(lying, shared if name in ("W_K", "W_V") else "")
        n, m = told.found["W_O"].shape
        pooled = f", each the furthest from zero of {each}" if each > 1 else ""
        self._how.text = f"Its four matrices. Rows: the {n} dimensions of the head; columns: the {m:,} of the stream{pooled}."

    def __panel__(self) -> Any:
        return self._layout


def _column(*parts: Any, least: int) -> pn.Column:
    return pn.Column(
        *parts, sizing_mode="stretch_width", styles={"flex": f"1 1 {least}px", "min-width": f"{least}px"}
    )


def _wrapped(*columns: pn.Column) -> pn.Row:
    gap = f"{theme.UNIT}px {2 * theme.UNIT}px"
    return pn.Row(*columns, sizing_mode="stretch_width", styles={"gap": gap, "flex-wrap": "wrap"})
