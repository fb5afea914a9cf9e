"""Selected head: its attention pattern at full size, with the tokens along both sides."""

from typing import Any, ClassVar

import numpy as np
import panel as pn
from bokeh.models import BasicTicker, ColorBar, ColumnDataSource, FixedTicker, HoverTool, LinearColorMapper
from bokeh.plotting import figure

from transpector.components import theme
from transpector.components.base import Pane, visible

MAX_LABELS = 28  # more would overlap


class SelectedHead(Pane):
    """Rows are queries from the top, columns keys; the colour is the probability."""

    reads: ClassVar = ("run", "head")

    def __init__(self, session: Any, **params: Any):
        super().__init__(session, **params)
        self._source = ColumnDataSource({"image": [np.zeros((1, 1), np.float32)], "n": [1]})
        self._mapper = LinearColorMapper(palette=theme.palette("sequential", self.dark), low=0, high=1)
        self.figure = self._figure()
        self._pane = pn.pane.Bokeh(self.figure, sizing_mode="stretch_both", min_height=300)
        self.param.watch(self._paint, "dark")
        self._paint()

    def _figure(self) -> Any:
        plot = figure(
            sizing_mode="stretch_both",
            x_axis_location="above",
            x_range=(0, 1),
            y_range=(1, 0),
            tools="",
            toolbar_location=None,
            match_aspect=False,
            min_border=4,
            output_backend="canvas",
        )
        image = plot.image(
            image="image", x=0, y=0, dw="n", dh="n", source=self._source, color_mapper=self._mapper, origin="top_left"
        )
        tips = HoverTool(
            renderers=[image],
            tooltips=[("query", "$y{0}"), ("key", "$x{0}"), ("probability", "@image{0.000}")],
        )
        plot.add_tools(tips)
        self._tips = tips
        bar = ColorBar(
            color_mapper=self._mapper, width=8, padding=4, ticker=BasicTicker(desired_num_ticks=3), title=None, border_line_color=None
        )
        plot.add_layout(bar, "right")
        self._bar = bar
        plot.xaxis.axis_label, plot.yaxis.axis_label = "key", "query"
        plot.xaxis.major_label_orientation = 1.2
        plot.grid.visible = False
        return plot

    def measure(self, run: Any, head: tuple[int, int]) -> tuple[Any, list[str]]:
        return run.pattern(*head), visible(run.tokens)

    def show(self, numbers: tuple[Any, list[str]]) -> None:
        pattern, pieces = numbers
        n = len(pieces)
        self._source.data = {"image": [pattern], "n": [n]}
        step = -(-n // MAX_LABELS)
        ticks = [at + 0.5 for at in range(0, n, step)]
        for axis in (*self.figure.xaxis, *self.figure.yaxis):
            axis.ticker = FixedTicker(ticks=ticks)
            axis.major_label_overrides = {at: _clip(pieces[int(at)]) for at in ticks}
        self.figure.x_range.end = n
        self.figure.y_range.start = n

    def _paint(self, *events: Any) -> None:
        colours = theme.ground(self.dark)
        self._mapper.palette = theme.palette("sequential", self.dark)
        theme.paint(self.figure, self.dark)
        self._bar.background_fill_color = colours.paper
        self._bar.major_label_text_color = colours.muted

    def __panel__(self) -> Any:
        return self._pane


def _clip(piece: str, length: int = 10) -> str:
    clipped = piece if len(piece) <= length else piece[: length - 1] + "…"
    # Bokeh would typeset $$…$$ and the like; a text is only a text.
    return clipped.replace("$", "$\u200b").replace("\\", "\\\u200b")
