"""Effect bars: changes of the metric along one axis: a bar a layer, or a stem a neuron."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.models import BasicTicker, BasicTickFormatter, ColumnDataSource, Span
from jaxtyping import Float

from transpector.components import theme
from transpector.components.parts.effect_figure import TITLES, EffectFigure, label, signed_ticks

BAR = 40  # px, the highest
HEIGHT = 420  # px
_COLUMNS = ("left", "right", "top", "bottom", "change", "estimate", "site", "way", "alpha")


class EffectBars(EffectFigure):
    """Layers from the top, or neurons from the left; blue below zero, orange above."""

    def _make(self) -> None:
        self._source = ColumnDataSource({name: [] for name in _COLUMNS})
        self._bars = self.figure.quad(
            "left",
            "right",
            "top",
            "bottom",
            source=self._source,
            fill_alpha="alpha",
            line_alpha="alpha",
            fill_color={"field": "way", "transform": self._mapper},
            line_color={"field": "way", "transform": self._mapper},
        )
        self._zero = [Span(dimension=way, location=0) for way in ("height", "width")]
        for span in self._zero:
            self.figure.add_layout(span)
        self._label = self._hover(
            self._bars,
            "return source.data.site[special_vars.index]",
            "source.data.estimate[special_vars.index]",
            mode="hline",
            limit=1,
        )
        self.figure.add_tools(self._label)

    def arrange(self, names: Sequence[str], sites: Sequence[str], what: str) -> None:
        """Label the places: beneath one another if they have names, else side by side, as so many ``what``."""
        plot, across = self.figure, not names
        self._across, self._sites = across, list(sites)
        n = len(sites)
        along, scale = (plot.xaxis[0], plot.yaxis[0]) if across else (plot.yaxis[0], plot.xaxis[0])
        scale.update(
            ticker=BasicTicker(desired_num_ticks=5), major_label_overrides={}, formatter=signed_ticks()
        )
        along.formatter = BasicTickFormatter(use_scientific=False)
        if across:
            along.update(ticker=BasicTicker(desired_num_ticks=8), major_label_overrides={}, axis_label=what)
            plot.x_range.update(start=0, end=n)
        else:
            label(along, names, 32)
            along.axis_label = None
            plot.y_range.update(start=n, end=0)
        self._zero[0].visible, self._zero[1].visible = not across, across
        plot.xgrid.visible, plot.ygrid.visible = not across, across
        self._label.mode = "vline" if across else "hline"
        plot.height = TITLES + 40 + (HEIGHT if across else min(BAR * n, HEIGHT))
        plot.visible = True

    def draw(
        self,
        values: Float[np.ndarray, " place"],
        estimate: Float[np.ndarray, " place"] | None,
        largest: float,
    ) -> None:
        """Show the changes that are known; those that were not run, beside ones that were, are pale."""
        self._mapper.update(low=-1, high=1)
        plot, unit = self.figure, self._facts.data["unit"][0]
        self._reach = reach = 1.06 * largest
        if self._across:
            plot.y_range.update(start=-reach, end=reach)
            plot.yaxis[0].axis_label = f"change ({unit})"
        else:
            plot.x_range.update(start=-reach, end=reach)
            plot.xaxis[0].axis_label = f"change ({unit})"
            plot.yaxis[0].axis_label = None
        at = np.nonzero(np.isfinite(values))[0]
        change = values[at]
        gap = 0 if self._across else 0.1
        sides = {
            "near": at + gap,
            "far": at + 1 - gap,
            "low": np.minimum(change, 0),
            "high": np.maximum(change, 0),
        }
        order = ("near", "far", "high", "low") if self._across else ("low", "high", "near", "far")
        self._source.data = {
            **dict(zip(("left", "right", "top", "bottom"), (sides[side] for side in order), strict=True)),
            "change": change,
            "estimate": np.full(len(at), np.nan, np.float32) if estimate is None else estimate[at],
            "site": [self._sites[place] for place in at],
            "alpha": np.ones(len(at)) if estimate is None else np.where(np.isfinite(estimate[at]), 1, 0.4),
            "way": 0.7 * np.sign(change),  # two colours of the scale: the length says the rest
        }

    def frame(self, places: Sequence[tuple[Sequence[int], str, float]]) -> None:
        """Frame places in a colour and a width (px) each, the last one uppermost."""
        low, high = -self._reach, self._reach
        self._frame(
            [
                (at, at + 1, high, low, colour, wide)
                if self._across
                else (low, high, at, at + 1, colour, wide)
                for (at, *_), colour, wide in places
            ]
        )

    def _paint(self, *events: Any) -> None:
        super()._paint()
        for span in self._zero:
            span.line_color = theme.ground(self.dark).muted
