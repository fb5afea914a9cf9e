"""Scale: from which number to which the colours of a picture run, and how."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from transpector.components import theme
from transpector.components.base import figures
from transpector.components.parts.effect_figure import palette

SLACK = 3.0  # times what 95 in 100 numbers keep within: what is further out does not stretch the colours
N_COLOURS = 511
MOST_TICKS = 6

Kind = Literal["log", "signed", "cosine", "share"]


@dataclass(frozen=True)
class Scale:
    """The ends of the colours, and how many of all numbers lie beyond them, in the colour of the end.

    ``log`` is for sizes, and begins at the page's colour; ``signed`` is about zero, and ``cosine`` from −1 to 1, where
    the colour follows the angle: streams of neighbouring layers differ by little. ``share`` is from nothing up.
    """

    kind: Kind
    low: float
    high: float
    n_beyond: int = 0
    n: int = 0

    @classmethod
    def of(
        cls,
        values: Float[np.ndarray, "row column"],
        kind: Kind,
        within: Float[np.ndarray, "row some"] | None = None,
    ) -> "Scale":
        """The scale on which these numbers read best, made for those ``within``; NaN is none."""
        known = values[np.isfinite(values)]
        if kind == "cosine":
            return cls("cosine", -1.0, 1.0, 0, known.size)
        sizes = _sizes(values) if within is None or not _sizes(within).size else _sizes(within)
        low, high = (0.1, 1.0) if not sizes.size else _ends(sizes)
        if kind == "signed":
            low = -high
        elif high < 1.1 * low:
            low = high / 10
        n_beyond = np.count_nonzero((known < low) | (known > high))
        return cls(kind, low, high, int(n_beyond), known.size)

    def shade(self, values: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "row column"]:
        """Where numbers lie between ``ends``."""
        if self.kind != "log":
            return values
        return np.log10(np.maximum(values, self.low)).astype(np.float32)

    @property
    def ends(self) -> tuple[float, float]:
        """What the first and the last colour stand for, as ``shade`` gives it."""
        return (
            tuple(np.log10([self.low, self.high]).tolist()) if self.kind == "log" else (self.low, self.high)
        )

    @property
    def ticks(self) -> dict[float, str]:
        """Numbers along the scale, by where they lie on it."""
        if self.kind == "cosine":
            numbers = [-1, -0.5, 0, 0.5, 1]
        elif self.kind == "share":
            numbers = [at * self.high / 4 for at in range(5)]
        elif self.kind == "signed":
            step = _step(self.high)
            numbers = [at * step for at in range(-2, 3) if abs(at * step) <= self.high]
        else:
            numbers = _decades(self.low, self.high)
        where = np.log10(numbers).tolist() if self.kind == "log" else numbers
        is_signed = self.kind == "signed"
        return {
            float(at): _trimmed(figures(number, is_signed and number > 0))
            for at, number in zip(where, numbers, strict=True)
        }

    @property
    def says(self) -> str:
        """What is to be known to read it."""
        if self.kind == "cosine":
            return "the colour follows the angle between the two"
        if not self.n_beyond:
            return "log scale" if self.kind == "log" else ""
        where = (
            f"±{figures(self.high)}"
            if self.kind == "signed"
            else f"{figures(self.low)} to {figures(self.high)}"
        )
        return f"{'log scale' if self.kind == 'log' else 'colours to'} {where}, {self.n_beyond:,} of {self.n:,} cells lie beyond"

    def palette(self, dark: bool) -> list[str]:
        """Its colours, `#rrggbb`."""
        if self.kind in ("log", "share"):
            return theme.palette("sequential", dark)
        if self.kind == "signed":
            return palette(dark)
        way, colours = np.linspace(-1, 1, N_COLOURS), theme.palette("diverging", dark)
        angle = np.sign(way) * (1 - np.arccos(np.abs(way)) * 2 / np.pi)
        return [colours[128 + round(float(127 * at))] for at in angle]


def _sizes(values: np.ndarray) -> np.ndarray:
    return np.abs(values[np.isfinite(values) & (values != 0)])


def _ends(sizes: np.ndarray) -> tuple[float, float]:
    """The least and the largest that do not lie far from all the others, as the first token's may."""
    few, many = np.quantile(sizes, (0.05, 0.95))
    within = sizes[(sizes >= few / SLACK) & (sizes <= many * SLACK)]
    return float(within.min()), float(within.max())


def _step(high: float) -> float:
    """Half of the largest round number, about, that is not above this."""
    size = 10.0 ** np.floor(np.log10(high))
    return next(float(size * part) / 2 for part in (8, 6, 4, 2, 1) if size * part <= high)


def _trimmed(text: str) -> str:
    """A round number without the zeros at its end."""
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def _decades(low: float, high: float) -> list[float]:
    """Round numbers between two, as evenly apart as a log scale has them."""
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for parts in ((1, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        found = [float(f"{power * part:.3g}") for power in powers for part in parts]
        found = [number for number in found if low <= number <= high]
        if len(found) <= MOST_TICKS:
            break
    return found or [low, high]
