"""Selected head: its attention pattern at full size, with the tokens along both sides."""

from typing import Any, ClassVar

import numpy as np
import panel as pn
from bokeh.models import ColumnDataSource, CustomJSHover, FixedTicker, HoverTool, LinearColorMapper
from bokeh.plotting import figure

from transpector.components import theme
from transpector.components.base import Pane, clip, visible

MAX_KEYS, MAX_QUERIES = 16, 24  # labels; more would overlap


class SelectedHead(Pane):
    """Rows are queries from the top, columns keys; the colour is the probability."""

    reads: ClassVar = ("run", "head")

    def __init__(self, session: Any, **params: Any):
        super().__init__(session, **params)
        self._source = ColumnDataSource({"image": [np.zeros((1, 1), np.float32)], "n": [1]})
        self._pieces = ColumnDataSource({"piece": []})
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
            visible=False,
            tools="",
            toolbar_location=None,
            match_aspect=False,
            min_border=4,
            output_backend="canvas",
        )
        image = plot.image(
            image="image", x=0, y=0, dw="n", dh="n", source=self._source, color_mapper=self._mapper
        )
        token = CustomJSHover(
            args={"source": self._pieces}, code="return source.data.piece[Math.floor(value)] ?? ''"
        )
        plot.add_tools(
            HoverTool(
                renderers=[image],
                tooltips=[("query", "$y{custom}"), ("key", "$x{custom}"), ("probability", "@image{0.000}")],
                formatters={"$x": token, "$y": token},
            )
        )
        plot.xaxis.axis_label, plot.yaxis.axis_label = "key", "query"
        plot.xaxis.major_label_orientation = 1.2
        plot.grid.visible = False
        return plot

    def measure(self, run: Any, head: tuple[int, int]) -> tuple[Any, list[str]]:
        return run.pattern(*head), visible(run.tokens)

    def show(self, numbers: tuple[Any, list[str]]) -> None:
        pattern, pieces = numbers
        n = len(pieces)
        self.figure.visible = True
        self._pieces.data = {"piece": [f"{piece} (position {at})" for at, piece in enumerate(pieces)]}
        self._source.data = {"image": [pattern], "n": [n]}
        for axis, most in ((self.figure.xaxis[0], MAX_KEYS), (self.figure.yaxis[0], MAX_QUERIES)):
            ticks = [at + 0.5 for at in range(0, n, -(-n // most))]
            axis.ticker = FixedTicker(ticks=ticks)
            axis.major_label_overrides = {at: clip(pieces[int(at)]) for at in ticks}
        self.figure.x_range.end = n
        self.figure.y_range.start = n

    def _paint(self, *events: Any) -> None:
        self._mapper.palette = theme.palette("sequential", self.dark)
        theme.paint(self.figure, self.dark)

    def __panel__(self) -> Any:
        return self._pane
