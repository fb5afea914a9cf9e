"""Layer curve: a number through the layers of the model, now against the baseline."""

from typing import Any

import numpy as np
import panel as pn
import param
from bokeh.models import ColumnDataSource, HoverTool, Span
from bokeh.plotting import figure
from panel.viewable import Viewer

from transpector.components import theme


class LayerCurve(Viewer):
    """The line is now, grey the baseline; a dotted line marks the selected layer."""

    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")

    def __init__(self, name: str, label: str, *, log: bool = False, **params: Any):
        """``name`` is the column's, ``label`` the axis's; ``log`` is for ranks, the first of which is at the top."""
        super().__init__(**params)
        self._name = name
        self.source = ColumnDataSource({"layer": [], name: [], "before": [], "row": []})
        self.figure = figure(
            height=144,
            sizing_mode="stretch_width",
            tools="",
            toolbar_location=None,
            min_border=4,
            x_range=(-0.5, 1),
            y_range=(1, 0) if log else (0, 1),
            y_axis_type="log" if log else "linear",
            visible=False,
        )
        self._log = log
        self._at = Span(dimension="height", line_dash="dotted", visible=False)
        self._before = self.figure.line("layer", "before", source=self.source, line_width=1.5)
        self._now = self.figure.line("layer", name, source=self.source, line_width=2)
        self._dots = self.figure.scatter("layer", name, source=self.source, size=4)
        self.figure.add_layout(self._at)
        figures = "{0,0}" if log else "{0.0000}"
        self.figure.add_tools(
            HoverTool(
                renderers=[self._dots],
                mode="vline",
                point_policy="snap_to_data",
                tooltips=[
                    ("stream", "@row"),
                    ("now", f"@{name}{figures}"),
                    ("baseline", f"@before{figures}"),
                ],
            )
        )
        self.figure.xaxis.axis_label, self.figure.yaxis.axis_label = "layer", label
        self.figure.xgrid.visible = False
        self.figure.yaxis.ticker.desired_num_ticks = 3
        self.param.watch(self._paint, "dark")
        self._paint()

    def show(self, now: np.ndarray, before: np.ndarray, rows: list[str], layer: int | None) -> None:
        """Show a number for each row, the stream before each layer and the output."""
        self.figure.visible = True
        self.source.data = {"layer": np.arange(len(now)), self._name: now, "before": before, "row": rows}
        self.figure.x_range.update(start=-0.5, end=len(now) - 0.5)
        top = float(max(now.max(), before.max()))
        if self._log:
            self.figure.y_range.update(start=max(10.0, 1.3 * top), end=0.8)
        else:
            self.figure.y_range.update(start=0, end=max(1e-6, 1.08 * top))
        self._at.update(location=layer or 0, visible=layer is not None)

    def _paint(self, *events: Any) -> None:
        colours = theme.ground(self.dark)
        theme.paint(self.figure, self.dark)
        self._now.glyph.line_color = colours.accent
        self._dots.glyph.update(fill_color=colours.accent, line_color=colours.accent)
        self._before.glyph.line_color = colours.baseline
        self._at.line_color = colours.muted

    def __panel__(self) -> Any:
        return pn.pane.Bokeh(self.figure, sizing_mode="stretch_width")
