"""Heat map: changes of the metric in rows and columns of cells; those not known yet are hatched."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.models import ColorBar, ColumnDataSource
from jaxtyping import Float, Int

from transpector.components import theme
from transpector.components.parts.effect_figure import TITLES, EffectFigure, label, signed_ticks

CELL = (72, 56)  # px, at most
HEIGHT = 452  # px of the rows and the names of the columns, at most
LEAST = 6  # px, the lowest row
NAMES = (24, 64)  # px that the names of columns take: of heads, of tokens
MAX_ROWS, MAX_COLUMNS = 32, 32  # labels; more would overlap
MANY = 100  # cells side by side, from where no gap is drawn between them

# "L2" + "H3.z" + "@5"
_SITE = """
  const row = Math.floor(special_vars.y), column = Math.floor(special_vars.x)
  const [rows, columns, pieces] = ["rows", "columns", "pieces"].map((name) => facts.data[name][0])
  const place = source.data.place[0][row * columns.length + column]
  return rows[row] + columns[column] + (place >= 0 ? "@" + place : "") + "  " + (pieces[place >= 0 ? place : column] ?? "")"""
_GUESS = """source.data.estimate[0][
  Math.floor(special_vars.y) * facts.data.columns[0].length + Math.floor(special_vars.x)]"""


class HeatMap(EffectFigure):
    """Rows from the top; the colour is the change, blue below zero, orange above."""

    x_axis_location = "above"

    def _make(self) -> None:
        blank = np.zeros((1, 1), np.float32)
        self._source = ColumnDataSource(
            {"change": [blank], "estimate": [blank], "place": [blank], "width": [1], "height": [1]}
        )
        self._dots = ColumnDataSource({"x": [], "y": []})
        plot = self.figure
        # Behind the image, which is clear where nothing is known; a figure's own hatch fails in the browser.
        self._unknown = plot.quad(
            0,
            "width",
            0,
            "height",
            source=self._source,
            level="image",
            fill_color=None,
            line_color=None,
            hatch_pattern="right_diagonal_line",
            hatch_scale=8,
            hatch_weight=1.5,
        )
        image = plot.image(
            "change", x=0, y=0, dw="width", dh="height", source=self._source, color_mapper=self._mapper
        )
        # No grid: panel-material-ui colours those itself.
        self._gaps = ColumnDataSource({"x0": [], "x1": [], "y0": [], "y1": []})
        self._gap = plot.segment("x0", "y0", "x1", "y1", source=self._gaps, level="underlay", line_width=1)
        plot.grid.visible = False
        self._dot = plot.scatter("x", "y", source=self._dots, size=6, line_width=1)
        plot.add_tools(self._hover(image, _SITE, _GUESS))
        self._bar = ColorBar(
            color_mapper=self._mapper,
            width=10,
            padding=0,
            margin=16,
            title_standoff=8,
            formatter=signed_ticks(),
            background_fill_color=None,
            bar_line_color=None,
            major_tick_line_color=None,
            title_text_font=theme.SANS,
            title_text_font_style="normal",
            title_text_font_size="11px",
            major_label_text_font=theme.SANS,
            major_label_text_font_size="11px",
        )
        plot.add_layout(self._bar, "right")

    def arrange(
        self,
        rows: Sequence[str],
        columns: Sequence[str],
        sites: tuple[Sequence[str], Sequence[str]],
        pieces: Sequence[str] = (),
    ) -> None:
        """Label the rows and the columns; ``sites`` are the two halves of each cell's address, ``pieces`` tokens."""
        plot = self.figure
        n, m = len(rows), len(columns)
        is_text = bool(pieces) and len(columns) == len(pieces)
        label(plot.yaxis[0], rows, MAX_ROWS)
        label(plot.xaxis[0], columns, MAX_COLUMNS)
        plot.xaxis[0].major_label_orientation = 1.2 if is_text else "horizontal"
        self._facts.data = {
            **self._facts.data,
            "rows": [[*sites[0]]],
            "columns": [[*sites[1]]],
            "pieces": [[*pieces]],
        }
        plot.x_range.end, plot.y_range.start = m, n
        lines = [(at, at, 0, n) for at in range(1, m)] + [(0, m, at, at) for at in range(1, n)]
        lines = lines if max(n, m) <= MANY else []
        self._gaps.data = {
            name: [line[at] for line in lines] for at, name in enumerate(("x0", "x1", "y0", "y1"))
        }
        high = min(CELL[1], max(LEAST, (HEIGHT - NAMES[is_text]) // n))
        plot.height = TITLES + NAMES[is_text] + high * n
        plot.max_width = 130 + CELL[0] * m
        plot.visible = True

    def draw(
        self,
        values: Float[np.ndarray, "row column"],
        estimate: Float[np.ndarray, "row column"] | None,
        place: Int[np.ndarray, "row column"] | None,
        largest: float,
    ) -> None:
        """Show the changes; dots are where an estimate has been run. ``place`` is the position that each is at."""
        self._mapper.update(low=-largest, high=largest)
        self._bar.title = self._facts.data["unit"][0]
        blank = np.full(values.shape, np.nan, np.float32)
        run = np.zeros(values.shape, bool) if estimate is None else np.isfinite(estimate)
        y, x = np.nonzero(run)
        self._dots.data = {"x": x + 0.5, "y": y + 0.5}
        self._source.data = {
            "change": [values],
            "estimate": [blank if estimate is None else estimate],
            "place": [np.full(values.shape, -1, np.int32) if place is None else place.astype(np.int32)],
            "width": [values.shape[1]],
            "height": [values.shape[0]],
        }

    def frame(self, cells: Sequence[tuple[Sequence[int], str, float]]) -> None:
        """Frame cells (row, column, …) in a colour and a width (px) each, the last one uppermost."""
        self._frame([(at[1], at[1] + 1, at[0], at[0] + 1, colour, wide) for at, colour, wide in cells])

    def _paint(self, *events: Any) -> None:
        super()._paint()
        colours = theme.ground(self.dark)
        self._gap.glyph.line_color = colours.paper
        self._unknown.glyph.hatch_color = colours.line
        self._bar.major_label_text_color = self._bar.title_text_color = colours.muted
        self._dot.glyph.update(fill_color=colours.ink, line_color=colours.paper)
