"""Weight picture: a matrix of a head as an image, blue below zero, orange above."""

from typing import Any

import numpy as np
import panel as pn
import param
from bokeh.models import ColumnDataSource, CustomJSHover, HoverTool, LinearColorMapper
from bokeh.plotting import figure
from jaxtyping import Float
from panel.viewable import Viewer

from transpector.components import theme
from transpector.components.base import figures
from transpector.components.parts.notice import Notice
from transpector.components.parts.weight_numbers import pooled

HEIGHT = 112  # px
QUANTILE = 0.99

# Which rows or columns of the matrix a place stands for.
_PLACE = """
  const each = source.data.each[0][AXIS], size = source.data.size[0][AXIS]
  const first = Math.floor(value / each) * each, last = Math.min(first + each, size) - 1
  return last > first ? first + "–" + last : String(first)"""


class WeightPicture(Viewer):
    """d_head from the top, d_model from the left; the colours end at the 0.99 quantile of the sizes shown."""

    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")

    def __init__(self, name: str, hint: str, **params: Any):
        """``name`` is the column's, and what the picture is called; ``hint`` says what the matrix does."""
        super().__init__(**params)
        self._name = name
        self._title = Notice(text=name, hint=hint, tone="heading", dark=self.param.dark)
        self.source = ColumnDataSource({name: [], "dw": [], "dh": [], "each": [], "size": []})
        self._mapper = LinearColorMapper(palette=theme.palette("diverging"), low=-1, high=1)
        self.figure = figure(
            height=HEIGHT,
            sizing_mode="stretch_width",
            tools="",
            toolbar_location=None,
            min_border=4,
            visible=False,
            x_range=(0, 1),
            y_range=(1, 0),
            output_backend="canvas",
        )
        image = self.figure.image(
            name, x=0, y=0, dw="dw", dh="dh", source=self.source, color_mapper=self._mapper
        )
        row, column = (
            CustomJSHover(args={"source": self.source}, code=_PLACE.replace("AXIS", str(axis)))
            for axis in range(2)
        )
        self.figure.add_tools(
            HoverTool(
                renderers=[image],
                tooltips=[
                    ("of the head", "$y{custom}"),
                    ("of the stream", "$x{custom}"),
                    ("weight", f"@{{{name}}}{{+0.0000}}"),
                ],
                formatters={"$y": row, "$x": column},
            )
        )
        self.figure.grid.visible = False
        for axis in self.figure.axis:
            axis.ticker.desired_num_ticks = 4
        self.param.watch(self._paint, "dark")
        self._paint()

    def show(self, weights: Float[np.ndarray, "d_head d_model"], more: str = "") -> int:
        """Show a matrix; ``more`` is said beside its name. Gives how many columns each of the picture stands for."""
        values, each = pooled(weights)
        n, m = weights.shape
        top = float(np.quantile(np.abs(values), QUANTILE)) or 1.0
        self._mapper.update(low=-top, high=top)
        self.figure.x_range.end, self.figure.y_range.start = m, n
        self.source.data = {
            self._name: [values],
            "dw": [values.shape[1] * each[1]],
            "dh": [values.shape[0] * each[0]],
            "each": [[*each]],
            "size": [[n, m]],
        }
        self._title.text = f"{self._name}, colours to ±{figures(top)}{more}"
        self.figure.visible = True
        return each[1]

    def refuse(self) -> None:
        """Show nothing."""
        self._title.text, self.figure.visible = "", False

    def _paint(self, *events: Any) -> None:
        theme.paint(self.figure, self.dark)
        self._mapper.palette = theme.palette("diverging", self.dark)

    def __panel__(self) -> Any:
        return pn.Column(
            self._title,
            pn.pane.Bokeh(self.figure, sizing_mode="stretch_width"),
            sizing_mode="stretch_width",
        )
