"""Loss: cross-entropy of each token, now against the baseline."""

from typing import Any, ClassVar

import numpy as np
import panel as pn
from bokeh.models import ColumnDataSource, HoverTool, Span
from bokeh.plotting import figure

from transpector.components import theme
from transpector.components.base import Pane, figures, visible

_COLUMNS = ("x", "loss", "before", "token", "predicted", "p", "change")


class TokenLoss(Pane):
    """Loss in nats by position; the line is now, grey the baseline. Hover for predicted and actual token."""

    reads: ClassVar = ("run", "baseline")

    def __init__(self, session: Any, **params: Any):
        super().__init__(session, **params)
        self._source = ColumnDataSource({name: [] for name in _COLUMNS})
        self._at = Span(dimension="height", line_dash="dotted", visible=False)
        self.figure = self._figure()
        self._pane = pn.pane.Bokeh(self.figure, sizing_mode="stretch_both", min_height=160)
        session.param.watch(self._place, "position")
        self.param.watch(self._paint, "dark")
        self._paint()

    def _figure(self) -> Any:
        plot = figure(
            sizing_mode="stretch_both",
            tools="",
            toolbar_location=None,
            min_border=4,
            x_range=(0.5, 2),
            y_range=(0, 1),
            visible=False,
        )
        self._before = plot.step("x", "before", source=self._source, mode="center", line_width=1.5)
        self._now = plot.step("x", "loss", source=self._source, mode="center", line_width=2)
        self._dots = plot.scatter("x", "loss", source=self._source, size=4)
        plot.add_layout(self._at)
        plot.add_tools(
            HoverTool(
                renderers=[self._dots],
                mode="vline",
                point_policy="snap_to_data",
                tooltips=[
                    ("token", "@token (position @x)"),
                    ("loss", "@loss{0.00} nats, @change to the baseline"),
                    ("predicted", "@predicted (@p{0.00})"),
                ],
            )
        )
        plot.xaxis.axis_label, plot.yaxis.axis_label = "position", "loss (nats)"
        plot.xgrid.visible = False
        return plot

    def measure(self, run: Any, baseline: Any) -> dict[str, Any]:
        from transpector.state.measure import (
            predicted,
        )  # brings torch, which the first paint does not wait for

        guesses = predicted(run)[:-1]
        change = run.loss - baseline.loss
        return {
            "x": np.arange(1, run.n_pos),
            "loss": run.loss,
            "before": baseline.loss,
            "token": visible(run.tokens[1:]),
            "predicted": visible([piece for piece, _ in guesses]),
            "p": np.array([p for _, p in guesses], np.float32),
            "change": [figures(float(c), signed=True) for c in change],
        }

    def show(self, numbers: dict[str, Any]) -> None:
        self.figure.visible = True
        self._source.data = numbers
        n = len(numbers["x"])
        highest = max([1.0, *numbers["loss"], *numbers["before"]])
        self.figure.x_range.update(start=0.5, end=max(n + 0.5, 1.5))
        self.figure.y_range.update(start=0, end=float(highest) * 1.08)

    def _place(self, event: Any) -> None:
        self._at.update(location=event.new, visible=event.new >= 0)

    def _paint(self, *events: Any) -> None:
        colours = theme.ground(self.dark)
        theme.paint(self.figure, self.dark)
        self._now.glyph.line_color = self._dots.glyph.fill_color = self._dots.glyph.line_color = (
            colours.accent
        )
        self._before.glyph.line_color = colours.baseline
        self._at.line_color = colours.muted

    def __panel__(self) -> Any:
        return self._pane
