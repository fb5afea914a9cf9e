"""Effect figure: what the pictures of a causal map share: two lines of title, a scale about zero, a click, a file."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np
import panel as pn
import param
from bokeh.events import Tap
from bokeh.models import (
    ColumnDataSource,
    CustomJSHover,
    CustomJSTickFormatter,
    FixedTicker,
    HoverTool,
    Label,
    LinearColorMapper,
    SaveTool,
)
from bokeh.plotting import figure
from panel.viewable import Viewer

from transpector.components import theme
from transpector.components.base import clip

EDGES = ("left", "right", "top", "bottom", "color", "wide")
TITLES = 48  # px that the two lines above the picture take

FIGURES = """
  function figures(number, signed, digits) {
    const rounded = Number(number.toPrecision(digits)), size = Math.abs(rounded)
    const isLong = size && Number.isFinite(size) && (size < 1e-3 || size >= 1e6)
    const text = isLong ? number.toExponential(1).replace(".0e", "e").replace("e+", "e")
      : size && size < 1e3 ? rounded.toPrecision(digits) : rounded.toLocaleString("en-US")
    return ((signed && number > 0 ? "+" : "") + text).replaceAll("-", "−")
  }"""
"""How the pointer's labels write a number: as `base.figures` does."""

# With what is told beside the number, where there is such a thing.
_CHANGE = (
    FIGURES
    + """
  const [unit, estimated] = [facts.data.unit[0], facts.data.estimated[0]]
  const signed = (number) => figures(number, true, DIGITS)
  if (Number.isNaN(value)) return "UNKNOWN"
  const guess = GUESS
  const besides = Number.isNaN(guess) ? (estimated ? " (estimate)" : "") : ", BESIDE " + signed(guess)
  return signed(value) + " " + unit + besides"""
)
_TICK = "return (tick > 0 ? '+' : '') + String(Number(tick.toPrecision(3))).replaceAll('-', '−')"

_LINE = {
    "x": 0,
    "y": 0,
    "x_units": "screen",
    "y_units": "screen",
    "text_font": theme.SANS,
    "text_baseline": "bottom",
    "text": " ",
}

Frame = tuple[float, float, float, float, str, float]


class EffectFigure(Viewer):
    """A Bokeh figure of changes of the metric; a subclass draws them. ``clicked`` is told where: x, y."""

    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")

    x_axis_location: ClassVar = "below"
    words: ClassVar = ("change", "estimate", "not yet")
    """By the pointer: what the number is, what is told beside it, and what is said where it is not known."""
    digits: ClassVar = 3

    def __init__(self, clicked: Callable[[float, float], None], **params: Any):
        super().__init__(**params)
        self._facts = ColumnDataSource({"unit": [""], "estimated": [False]})
        self._frames = ColumnDataSource({edge: [] for edge in EDGES})
        self._mapper = LinearColorMapper(palette=palette(False), low=-1, high=1, nan_color="rgba(0, 0, 0, 0)")
        # Labels, for panel-material-ui has its own idea of a Title.
        self._title = Label(**_LINE, text_font_size="14px", text_font_style="bold")
        self._subtitle = Label(**_LINE, text_font_size="12px")
        self.save = SaveTool()
        self.figure = figure(
            sizing_mode="stretch_width",
            x_axis_location=self.x_axis_location,
            x_range=(0, 1),
            y_range=(1, 0),
            tools=[self.save],
            toolbar_location=None,
            min_border=8,
            visible=False,
            output_backend="canvas",
        )
        self.figure.add_layout(self._subtitle, "above")
        self.figure.add_layout(self._title, "above")
        self.figure.on_event(Tap, lambda tap: clicked(tap.x, tap.y))
        self._make()
        self.figure.quad(
            "left",
            "right",
            "top",
            "bottom",
            source=self._frames,
            fill_color=None,
            line_color="color",
            line_width="wide",
        )
        self._pane = pn.pane.Bokeh(self.figure, sizing_mode="stretch_width")
        self.param.watch(self._paint, "dark")
        self._paint()

    def _make(self) -> None:
        """Add what is drawn."""
        raise NotImplementedError

    def tell(self, title: str, subtitle: str, unit: str, estimated: bool, filename: str) -> None:
        """Say what is shown, in which unit, whether it is an estimate, and how its file is to be called."""
        self._title.text, self._subtitle.text = clip(title, 160), clip(subtitle, 160)
        self._facts.data = {**self._facts.data, "unit": [unit], "estimated": [estimated]}
        self.save.filename = filename

    def _frame(self, frames: Sequence[Frame]) -> None:
        self._frames.data = {edge: [frame[at] for frame in frames] for at, edge in enumerate(EDGES)}

    def _hover(self, renderer: Any, site: str, guess: str, **options: Any) -> HoverTool:
        """The pointer's label; scripts name the site, and give the number beside its own or NaN."""
        what, beside, unknown = self.words
        told = {"GUESS": guess, "BESIDE": beside, "UNKNOWN": unknown, "DIGITS": str(self.digits)}
        code = _CHANGE
        for name, text in told.items():
            code = code.replace(name, text)
        sources = {"facts": self._facts, "source": self._source}
        return HoverTool(
            renderers=[renderer],
            tooltips=[("site", "$x{custom}"), (what, "@change{custom}")],
            formatters={
                "$x": CustomJSHover(args=sources, code=site),
                "@change": CustomJSHover(args=sources, code=code),
            },
            **options,
        )

    def _paint(self, *events: Any) -> None:
        colours = theme.ground(self.dark)
        theme.paint(self.figure, self.dark)
        self._mapper.palette = palette(self.dark)
        self._title.text_color, self._subtitle.text_color = colours.ink, colours.muted

    def __panel__(self) -> Any:
        return self._pane


@cache
def palette(dark: bool) -> list[str]:
    """The scale of differences, climbing as change ** 0.6: beside one that is ten times as large, a cell still shows."""
    scale = theme.palette("diverging", dark)
    way = np.linspace(-1, 1, 255)
    return [scale[128 + round(float(127 * np.sign(at) * abs(at) ** 0.6))] for at in way]


def signed_ticks() -> CustomJSTickFormatter:
    """Numbers along a scale about zero."""
    return CustomJSTickFormatter(code=_TICK)


def label(axis: Any, names: Sequence[str], most: int) -> None:
    """Name the places along an axis, as many as there is room for."""
    ticks = [at + 0.5 for at in range(0, len(names), max(1, -(-len(names) // most)))]
    axis.ticker = FixedTicker(ticks=ticks)
    axis.major_label_overrides = {at: clip(names[int(at)]) for at in ticks}


def largest(values: np.ndarray) -> float:
    """The largest known magnitude; 1 where nothing is known, or nothing but zero."""
    known = np.abs(values[np.isfinite(values)])
    return float(known.max()) if known.any() else 1.0
