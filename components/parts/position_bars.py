"""Position bars: a number for each token of the text, as bars."""

from typing import Any

import numpy as np
import panel as pn
import param
from bokeh.models import ColumnDataSource, HoverTool
from bokeh.plotting import figure
from panel.viewable import Viewer

from transpector.components import theme


class PositionBars(Viewer):
    """Bars from zero, up or down, one a position; the label by the pointer names the token."""

    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")

    def __init__(self, name: str, **params: Any):
        """``name`` is that of the number; it is the column's too."""
        super().__init__(**params)
        self._name = name
        self.source = ColumnDataSource({"x": [], name: [], "token": []})
        self.figure = figure(
            height=110,
            sizing_mode="stretch_width",
            tools="",
            toolbar_location=None,
            min_border=4,
            visible=False,
            y_range=(0, 1),
        )
        self._bars = self.figure.vbar(x="x", top=name, width=0.8, source=self.source, line_color=None)
        self.figure.add_tools(
            HoverTool(
                renderers=[self._bars],
                mode="vline",
                tooltips=[("token", "@token (position @x)"), (name, f"@{name}{{0.00}}")],
            )
        )
        self.figure.xgrid.visible = False
        self.figure.yaxis.axis_label = name
        self.figure.yaxis.ticker.desired_num_ticks = 3
        self.param.watch(self._paint, "dark")
        self._paint()

    def show(self, values: np.ndarray, tokens: list[str]) -> None:
        """Show a number for each token."""
        self.figure.visible = True
        low, high = float(np.min(values, initial=0)), float(np.max(values, initial=0))
        room = 0.08 * (high - low)
        self.figure.y_range.update(start=low - room * (low < 0), end=high + room if high > low else 1.0)
        self.source.data = {"x": np.arange(len(values)), self._name: values, "token": tokens}

    def _paint(self, *events: Any) -> None:
        theme.paint(self.figure, self.dark)
        self._bars.glyph.fill_color = theme.ground(self.dark).accent

    def __panel__(self) -> Any:
        return pn.pane.Bokeh(self.figure, sizing_mode="stretch_width")
