"""Value map: numbers in rows and columns of cells, on a scale that suits them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from bokeh.models import ColorBar, ColumnDataSource, CustomJSHover, FixedTicker, HoverTool
from jaxtyping import Float

from transpector.components import theme
from transpector.components.base import clip
from transpector.components.parts.effect_figure import FIGURES, TITLES, EffectFigure, label
from transpector.components.parts.scale import Scale

CELL = 72  # px, at most
MANY = 100  # cells side by side, from where no gap is drawn between them
NAMES = {False: 24, True: 64}  # px that the names of columns take: short ones, tokens
BAR = 24  # px that a scale below takes

_SITE = """
  const row = Math.floor(special_vars.y), column = Math.floor(special_vars.x)
  return facts.data.rows[0][row] + facts.data.columns[0][column]"""
_NUMBER = (
    FIGURES
    + """
  const [quantity, unit, signed] = ["quantity", "unit", "signed"].map((name) => facts.data[name][0])
  if (Number.isNaN(value)) return "no number"
  return quantity + " " + figures(value, signed, 3) + (unit && " " + unit)"""
)


class ValueMap(EffectFigure):
    """Rows from the top; a square one has its scale below. ``clicked`` is told the row and the column."""

    x_axis_location = "above"

    def __init__(
        self,
        clicked: Callable[[int, int], None],
        name: str,
        *,
        square: bool = False,
        scale: Scale | None = None,
        **params: Any,
    ):
        """``name`` is that of the column of numbers, row by row; ``scale`` the one that is first drawn on, if known.

        A figure that is still being laid out in the browser can't take another: what is drawn with it is lost.
        """
        self._name, self._is_square, self._shape = name, square, (0, 0)
        self._scale = scale or Scale("signed", -1.0, 1.0)

        def tapped(x: float, y: float) -> None:
            row, column = int(np.floor(y)), int(np.floor(x))
            if 0 <= row < self._shape[0] and 0 <= column < self._shape[1]:
                clicked(row, column)

        super().__init__(tapped, **params)

    def _make(self) -> None:
        blank = np.zeros((1, 1), np.float32)
        self._source = ColumnDataSource({"shade": [blank], self._name: [blank], "width": [1], "height": [1]})
        self._facts.data = {"quantity": [""], "unit": [""], "signed": [False], "rows": [[]], "columns": [[]]}
        plot = self.figure
        image = plot.image(
            "shade", x=0, y=0, dw="width", dh="height", source=self._source, color_mapper=self._mapper
        )
        # No grid: panel-material-ui colours those itself.
        self._gaps = ColumnDataSource({"x0": [], "x1": [], "y0": [], "y1": []})
        self._gap = plot.segment("x0", "y0", "x1", "y1", source=self._gaps, level="underlay", line_width=1)
        plot.grid.visible = False
        sources = {"facts": self._facts}
        plot.add_tools(
            HoverTool(
                renderers=[image],
                tooltips=[("site", "$x{custom}"), ("value", f"@{{{self._name}}}{{custom}}")],
                formatters={
                    "$x": CustomJSHover(args=sources, code=_SITE),
                    f"@{{{self._name}}}": CustomJSHover(args=sources, code=_NUMBER),
                },
            )
        )
        ticks = self._scale.ticks
        self._ticker = FixedTicker(ticks=[*ticks])
        self._bar = ColorBar(
            color_mapper=self._mapper,
            ticker=self._ticker,
            major_label_overrides=ticks,
            padding=0,
            margin=8 if self._is_square else 16,
            background_fill_color=None,
            bar_line_color=None,
            major_tick_line_color=None,
            major_label_text_font=theme.SANS,
            major_label_text_font_size="11px",
            **{"height" if self._is_square else "width": 8 if self._is_square else 10},
        )
        plot.add_layout(self._bar, "below" if self._is_square else "right")

    def arrange(
        self,
        rows: Sequence[str],
        columns: Sequence[str],
        sites: tuple[Sequence[str], Sequence[str]],
        room: tuple[int, int, int],
        *,
        is_text: bool,
    ) -> None:
        """Label the rows and the columns; ``sites`` are the two halves of what a cell is called.

        ``room`` is for the cells in px from top to bottom, and for how many names of rows and of columns.
        """
        plot = self.figure
        high, most_rows, most_columns = room
        n, m = self._shape = len(rows), len(columns)
        label(plot.yaxis[0], rows, most_rows)
        label(plot.xaxis[0], columns, most_columns)
        plot.xaxis[0].major_label_orientation = 1.2 if is_text else "horizontal"
        self._facts.data = {**self._facts.data, "rows": [[*sites[0]]], "columns": [[*sites[1]]]}
        plot.x_range.end, plot.y_range.start = m, n
        lines = [(at, at, 0, n) for at in range(1, m)] + [(0, m, at, at) for at in range(1, n)]
        lines = lines if max(n, m) <= MANY else []
        self._gaps.data = {
            name: [line[at] for line in lines] for at, name in enumerate(("x0", "x1", "y0", "y1"))
        }
        if not self._is_square:
            high = min(high // n, CELL) * n
            plot.max_width = 130 + CELL * m
        plot.height = TITLES + NAMES[is_text] + high + (BAR if self._is_square else 0)
        plot.visible = True

    def draw(
        self,
        values: Float[np.ndarray, "row column"],
        scale: Scale,
        title: str,
        subtitle: str,
        quantity: str,
        unit: str = "",
        signed: bool = False,
    ) -> None:
        """Show numbers; the pointer's label says of what quantity they are, and with their sign if ``signed``."""
        self._title.text, self._subtitle.text = clip(title, 160), clip(subtitle, 160) or " "
        self._facts.data = {
            **self._facts.data,
            "quantity": [quantity],
            "unit": [unit],
            "signed": [signed],
        }
        self._scale = scale
        low, high = scale.ends
        self._mapper.update(low=low, high=high, palette=scale.palette(self.dark))
        self._bar.major_label_overrides = scale.ticks
        self._ticker.ticks = [*scale.ticks]
        self._source.data = {
            "shade": [scale.shade(values)],
            self._name: [values],
            "width": [values.shape[1]],
            "height": [values.shape[0]],
        }

    def frame(self, frames: Sequence[tuple[range, range, str, float]]) -> None:
        """Frame cells, by their rows and columns, in a colour and a width (px) each, the last one uppermost."""
        self._frame(
            [
                (columns.start, columns.stop, rows.start, rows.stop, colour, wide)
                for rows, columns, colour, wide in frames
                if rows and columns
            ]
        )

    def _paint(self, *events: Any) -> None:
        super()._paint()
        colours = theme.ground(self.dark)
        self._mapper.palette = self._scale.palette(self.dark)
        self._gap.glyph.line_color = colours.paper
        self._bar.major_label_text_color = colours.muted
