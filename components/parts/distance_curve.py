"""Distance curve: the attention of a head by how far back a key lies, now against the baseline."""

from typing import Any

import numpy as np
import panel as pn
import param
from bokeh.models import ColumnDataSource, HoverTool, NumeralTickFormatter
from bokeh.plotting import figure
from jaxtyping import Float
from panel.viewable import Viewer

from transpector.components import theme

HEIGHT, HALVES = 184, (96, 124)  # px, of the one curve, or of both


class DistanceCurve(Viewer):
    """The mean probability of the key so many tokens back; below it what the weights alone add to its score."""

    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")

    def __init__(self, **params: Any):
        super().__init__(**params)
        self.source = ColumnDataSource({"away": [], "attention": [], "before": [], "queries": []})
        self.closed_source = ColumnDataSource({"away": [], "closed_form": []})
        self.figure, self.closed = _blank("probability"), _blank("score")
        self._before = self.figure.line("away", "before", source=self.source, line_width=1.5, visible=False)
        self._now = self.figure.line("away", "attention", source=self.source, line_width=2)
        self._dots = self.figure.scatter("away", "attention", source=self.source, size=4)
        self._curve = self.closed.line("away", "closed_form", source=self.closed_source, line_width=2)
        far = ("distance", "@away tokens back")
        self._labels = [far, ("now", "@attention{0.000}")]
        self._hover = _hover(self._dots, [*self._labels, ("mean of", "@queries queries")])
        self.figure.add_tools(self._hover)
        self.closed.add_tools(_hover(self._curve, [far, ("adds to the score", "@closed_form{+0.00}")]))
        self.closed.yaxis.formatter = NumeralTickFormatter(format="+0.[00]")
        self._layout = pn.Column(
            *(pn.pane.Bokeh(plot, sizing_mode="stretch_width") for plot in (self.figure, self.closed)),
            sizing_mode="stretch_width",
        )
        self.param.watch(self._paint, "dark")
        self._paint()

    def show(
        self,
        now: Float[np.ndarray, " distance"],
        before: Float[np.ndarray, " distance"] | None,
        scores: Float[np.ndarray, " distance"] | None,
    ) -> None:
        """Show the means; ``before`` are the baseline's, where that is another run, ``scores`` the closed form."""
        n = len(now)
        away, is_both = np.arange(n), before is not None
        self.source.data = {
            "away": away,
            "attention": now,
            "before": before if is_both else np.full(n, np.nan, np.float32),
            "queries": n - away,
        }
        self._before.visible = is_both
        was = [("baseline", "@before{0.000}")] if is_both else []
        self._hover.tooltips = [*self._labels, *was, ("mean of", "@queries queries")]
        top = max(float(now.max()), float(before.max()) if is_both else 0.0)
        self.figure.y_range.update(start=0, end=max(1e-6, 1.08 * top))
        self.figure.update(visible=True, height=HEIGHT if scores is None else HALVES[0])
        self.closed.update(visible=scores is not None, height=HALVES[1])
        self.figure.min_border_bottom = 4 if scores is None else 10
        self.figure.xaxis.visible = scores is None  # else it is that of the other
        if scores is not None:
            self.closed_source.data = {"away": np.arange(len(scores)), "closed_form": scores}
            low, high = float(scores.min()), float(scores.max())
            room = 0.08 * max(1e-6, high - low)
            self.closed.y_range.update(start=low - room, end=high + room)
        for plot in (self.figure, self.closed):
            plot.x_range.update(start=-0.5, end=max(1, n - 0.5))

    def refuse(self) -> None:
        """Show nothing."""
        self.figure.visible = self.closed.visible = False

    def _paint(self, *events: Any) -> None:
        colours = theme.ground(self.dark)
        for plot in (self.figure, self.closed):
            theme.paint(plot, self.dark)
        for line in (self._now, self._curve):
            line.glyph.line_color = colours.accent
        self._dots.glyph.update(fill_color=colours.accent, line_color=colours.accent)
        self._before.glyph.line_color = colours.baseline

    def __panel__(self) -> Any:
        return self._layout


def _blank(label: str) -> Any:
    plot = figure(
        height=HEIGHT,
        sizing_mode="stretch_width",
        tools="",
        toolbar_location=None,
        min_border=4,
        min_border_left=48,  # the two of them aligned
        x_range=(-0.5, 1),
        y_range=(0, 1),
        visible=False,
    )
    plot.xaxis.axis_label, plot.yaxis.axis_label = "tokens back", label
    plot.xgrid.visible = False
    plot.yaxis.ticker.desired_num_ticks = 3
    plot.xaxis.ticker.min_interval = 1
    return plot


def _hover(renderer: Any, tooltips: list[tuple[str, str]]) -> HoverTool:
    return HoverTool(
        renderers=[renderer],
        mode="vline",
        point_policy="snap_to_data",
        line_policy="nearest",
        tooltips=tooltips,
    )
