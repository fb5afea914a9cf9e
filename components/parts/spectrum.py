"""Spectrum: the singular values of a circuit as a curve, and the eigenvalues of another in their plane."""

from typing import Any

import numpy as np
import panel as pn
import param
from bokeh.models import ColumnDataSource, CustomJSTickFormatter, HoverTool, LinearColorMapper, Span
from bokeh.plotting import figure
from jaxtyping import Complex, Float
from panel.viewable import Viewer

from transpector.components import theme

HEIGHT = 168  # px
FRAME = 184, 124  # px, within the axes of the plane

# The eigenvalues of a circuit through the whole vocabulary are in the thousands.
_TICK = """
  const size = Math.abs(tick), [part, unit] = size >= 1e6 ? [1e6, "M"] : size >= 1e3 ? [1e3, "k"] : [1, ""]
  return (tick > 0 ? "+" : "") + (Number((tick / part).toPrecision(3)) + unit).replaceAll("-", "−")"""


class SingularValues(Viewer):
    """From the largest to the least; a dotted line marks the effective rank."""

    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")

    def __init__(self, name: str, **params: Any):
        """``name`` is that of the column."""
        super().__init__(**params)
        self._name = name
        self.source = ColumnDataSource({"rank": [], name: []})
        self.figure = figure(
            height=HEIGHT,
            sizing_mode="stretch_width",
            tools="",
            toolbar_location=None,
            min_border=4,
            visible=False,
            x_range=(0, 1),
            y_range=(0, 1),
        )
        self._area = self.figure.varea("rank", 0, name, source=self.source, fill_alpha=0.12)
        self._line = self.figure.line("rank", name, source=self.source, line_width=2)
        self._dots = self.figure.scatter("rank", name, source=self.source, size=4)
        self._at = Span(dimension="height", line_dash="dotted", visible=False)
        self.figure.add_layout(self._at)
        self.figure.add_tools(
            HoverTool(
                renderers=[self._dots],
                mode="vline",
                point_policy="snap_to_data",
                tooltips=[("number", "@rank"), ("singular value", f"@{name}{{0.000}}")],
            )
        )
        self.figure.xgrid.visible = False
        self.figure.yaxis.axis_label = "singular value"
        self.figure.yaxis.ticker.desired_num_ticks = 3
        self.param.watch(self._paint, "dark")
        self._paint()

    def show(self, values: Float[np.ndarray, " d_head"], rank: float) -> None:
        """Show singular values, the largest first, and their effective rank."""
        n = len(values)
        self.source.data = {"rank": np.arange(1, n + 1), self._name: values}
        self.figure.x_range.update(start=0.5, end=n + 0.5)
        self.figure.y_range.update(start=0, end=max(1e-9, 1.08 * float(values.max())))
        self._at.update(location=rank, visible=True)
        self.figure.visible = True

    def refuse(self) -> None:
        """Show nothing."""
        self.figure.visible = False

    def _paint(self, *events: Any) -> None:
        colours = theme.ground(self.dark)
        theme.paint(self.figure, self.dark)
        self._area.glyph.fill_color = self._line.glyph.line_color = colours.accent
        self._dots.glyph.update(fill_color=colours.accent, line_color=colours.accent)
        self._at.line_color = colours.muted

    def __panel__(self) -> Any:
        return pn.pane.Bokeh(self.figure, sizing_mode="stretch_width")


class EigenvaluePlane(Viewer):
    """Eigenvalues as dots; those to the right of zero, in the accent, copy."""

    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")

    def __init__(self, **params: Any):
        super().__init__(**params)
        self.source = ColumnDataSource({"real": [], "imaginary": []})
        self._mapper = LinearColorMapper(palette=["#000000", "#000000"], low=-1, high=1)
        self.figure = figure(
            frame_width=FRAME[0],
            frame_height=FRAME[1],
            tools="",
            toolbar_location=None,
            min_border=4,
            visible=False,
            x_range=(-1, 1),
            y_range=(-1, 1),
        )
        self._real, self._zero = (Span(dimension=way, location=0) for way in ("width", "height"))
        for line in (self._zero, self._real):
            self.figure.add_layout(line)
        self._dots = self.figure.scatter(
            "real",
            "imaginary",
            source=self.source,
            size=6,
            line_width=0.5,
            fill_color={"field": "real", "transform": self._mapper},
        )
        self.figure.add_tools(
            HoverTool(
                renderers=[self._dots], tooltips=[("real", "@real{0.0}"), ("imaginary", "@imaginary{0.0}")]
            )
        )
        self.figure.grid.visible = False
        self.figure.xaxis.axis_label = "against ← real → copies"
        self.figure.yaxis.axis_label = "imaginary"
        for axis in self.figure.axis:
            axis.formatter = CustomJSTickFormatter(code=_TICK)
            axis.ticker.desired_num_ticks = 3
        self.param.watch(self._paint, "dark")
        self._paint()

    def show(self, values: Complex[np.ndarray, " d_head"]) -> None:
        """Show eigenvalues on the same scale both ways."""
        self.source.data = {"real": values.real, "imaginary": values.imag}
        top = max(float(np.abs(values).max()), 1e-9)
        self._mapper.update(low=-top, high=top)
        wide, high = FRAME
        # As many to a px both ways.
        each = 1.15 * max(
            float(np.abs(values.real).max()) / wide, float(np.abs(values.imag).max()) / high, 1e-9
        )
        self.figure.x_range.update(start=-wide * each, end=wide * each)
        self.figure.y_range.update(start=-high * each, end=high * each)
        self.figure.visible = True

    def refuse(self) -> None:
        """Show nothing."""
        self.figure.visible = False

    def _paint(self, *events: Any) -> None:
        colours = theme.ground(self.dark)
        theme.paint(self.figure, self.dark)
        self._mapper.palette = [colours.baseline, colours.accent]
        self._real.line_color, self._zero.line_color = colours.muted, colours.line
        self._dots.glyph.line_color = colours.paper

    def __panel__(self) -> Any:
        return pn.pane.Bokeh(self.figure)
