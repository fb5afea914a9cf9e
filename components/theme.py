"""The look, in one place: colours, scales, type and spacing, for light and for dark."""

from dataclasses import asdict, dataclass
from functools import cache
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8

SANS = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif'
MONO = 'ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace'

UNIT = 8
"""The grid: every distance is a multiple of this or half of it, px."""


@dataclass(frozen=True)
class Ground:
    """The colours of one ground, light or dark, as `#rrggbb`."""

    paper: str
    """The page; zero has this colour in every scale."""
    surface: str
    """What floats above the page: menus, labels by the pointer."""
    ink: str
    muted: str
    line: str
    """A hairline."""
    accent: str
    """What is selected, what is clickable, and the present run ("now")."""
    baseline: str
    """The run with no intervention."""
    ablated: str
    frozen: str
    patched: str
    steered: str
    error: str


LIGHT = Ground(
    paper="#ffffff",
    surface="#ffffff",
    ink="#1b1a27",
    muted="#6c6b7b",
    line="#e4e3ee",
    accent="#5145e5",
    baseline="#8f8e9c",
    ablated="#77767f",
    frozen="#2ba3dd",
    patched="#e58a00",
    steered="#b02fd0",
    error="#c62f2f",
)
DARK = Ground(
    paper="#121216",
    surface="#212129",
    ink="#ecebf5",
    muted="#9a99a9",
    line="#2d2d38",
    accent="#a097ff",
    baseline="#858494",
    ablated="#a3a2ad",
    frozen="#7fd4ff",
    patched="#ffb13d",
    steered="#e07bff",
    error="#ff7a70",
)

ICONS = {"ablated": "block", "frozen": "ac_unit", "patched": "alt_route", "steered": "near_me"}
"""The Material icon of each state of a component of the model."""

STATES = {
    "ablate": "ablated",
    "freeze": "frozen",
    "patch": "patched",
    "scale": "steered",
    "set": "steered",
    "skip": "ablated",
    "steer": "steered",
}
"""What an intervention's verb makes of a component."""

_SEQUENTIAL = {
    False: ("#ffffff", "#e3e1fd", "#b5aff8", "#8078ec", "#5547d3", "#35229c", "#190b52"),
    True: ("#121216", "#2a2457", "#3f3691", "#5d50cb", "#8a7ff3", "#bdb6ff", "#f3f1ff"),
}
_DIVERGING = {
    False: ("#0a3f7d", "#2f7cc1", "#96c2e6", "#ffffff", "#f7bd86", "#dd7415", "#803800"),
    True: ("#bfe0ff", "#5ba6ea", "#245687", "#121216", "#7d4511", "#e0852f", "#ffdcb3"),
}


def ground(dark: bool) -> Ground:
    """Give the colours of the dark or of the light ground."""
    return DARK if dark else LIGHT


def tint(colour: str, dark: bool) -> str:
    """Give a colour half way to the paper, for what is written on."""
    paper = ground(dark).paper
    halves = ((int(c[at : at + 2], 16) for c in (colour, paper)) for at in (1, 3, 5))
    return "#" + "".join(f"{sum(both) // 2:02x}" for both in halves)


@cache
def sequential(dark: bool = False) -> UInt8[np.ndarray, "256 3"]:
    """Give the scale of probabilities: from the paper, through one family of hue, ever further in lightness.

    It climbs as probability ** 0.7: attention spread over 64 tokens (0.016 each) can still be told from none.
    """
    return _scale(_SEQUENTIAL[dark], np.linspace(0, 1, 256) ** 0.7)


@cache
def diverging(dark: bool = False) -> UInt8[np.ndarray, "256 3"]:
    """Give the scale of differences, blue to orange; entry 128, where zero falls, is exactly the paper."""
    return _scale(_DIVERGING[dark], (1 + np.clip((np.arange(256) - 128) / 127, -1, 1)) / 2)


def palette(name: Literal["sequential", "diverging"], dark: bool = False) -> list[str]:
    """Give a scale as 256 colours `#rrggbb`, as Bokeh's colour mappers take it."""
    scales = {"sequential": sequential, "diverging": diverging}
    return ["#{:02x}{:02x}{:02x}".format(*rgb) for rgb in scales[name](dark)]


def sequential_bytes() -> bytes:
    """Give the light, then the dark scale of probabilities, uint8 [ground, entry, channel]."""
    return np.stack([sequential(False), sequential(True)]).tobytes()


def constants() -> dict:
    """Give what a component's JavaScript needs of the look."""
    return {"light": asdict(LIGHT), "dark": asdict(DARK), "sans": SANS, "mono": MONO, "unit": UNIT}


def theme_config() -> dict:
    """Give the look as panel-material-ui's `theme_config`."""
    return {name: _mui(colours) for name, colours in (("light", LIGHT), ("dark", DARK))}


def _mui(colours: Ground) -> dict:
    return {
        "palette": {
            "primary": {"main": colours.accent},
            "background": {"default": colours.paper, "paper": colours.paper},
            "text": {"primary": colours.ink, "secondary": colours.muted},
            "divider": colours.line,
        },
        "typography": {"fontFamily": SANS, "fontSize": 13, "button": {"textTransform": "none"}},
        "shape": {"borderRadius": UNIT // 2},
        "components": {
            "MuiAppBar": {
                "styleOverrides": {
                    "root": {
                        "backgroundColor": colours.paper,
                        "backgroundImage": "none",
                        "color": colours.ink,
                        "boxShadow": f"0 1px 0 {colours.line}",
                    }
                }
            },
            # The page's own title is white, whatever the bar.
            "MuiTypography": {
                "styleOverrides": {
                    "h3": {
                        "color": f"{colours.ink} !important",
                        "fontSize": "18px !important",
                        "marginRight": "24px",
                    }
                }
            },
            "MuiToolbar": {"styleOverrides": {"root": {"minHeight": "56px !important"}}},
            "MuiDrawer": {
                "styleOverrides": {"paper": {"backgroundImage": "none", "borderColor": colours.line}}
            },
            "MuiTooltip": {"styleOverrides": {"tooltip": {"fontSize": 12}}},
        },
    }


def _scale(stops: tuple[str, ...], at: Float[np.ndarray, "256"]) -> UInt8[np.ndarray, "256 3"]:
    """Interpolate between stops in OKLab, where equal steps look equal."""
    rgb = np.array([[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in stops]) / 255
    where = np.linspace(0, 1, len(stops))
    lab = np.stack([np.interp(at, where, channel) for channel in _to_oklab(rgb).T], axis=-1)
    return np.rint(_from_oklab(lab) * 255).astype(np.uint8)


# Björn Ottosson, "A perceptual color space for image processing", 2020.
_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def _to_oklab(rgb: Float[np.ndarray, "colour 3"]) -> Float[np.ndarray, "colour 3"]:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _TO_LMS.T) @ _TO_LAB.T


def _from_oklab(lab: Float[np.ndarray, "colour 3"]) -> Float[np.ndarray, "colour 3"]:
    linear = (lab @ np.linalg.inv(_TO_LAB).T) ** 3 @ np.linalg.inv(_TO_LMS).T
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def paint(plot: object, dark: bool) -> None:
    """Give a Bokeh figure the page's colours and type: few lines, quiet axes."""
    colours = ground(dark)
    # On the page, panel-material-ui fills it when the ground changes, and clears the canvas only if it finds it unfilled.
    if plot.document is None:
        plot.background_fill_color = plot.border_fill_color = colours.paper
    plot.outline_line_color = None
    for axis in plot.axis:
        axis.axis_line_color = axis.major_tick_line_color = axis.minor_tick_line_color = None
        axis.major_label_text_color = axis.axis_label_text_color = colours.muted
        axis.major_label_text_font = axis.axis_label_text_font = SANS
        axis.axis_label_text_font_style = "normal"
        axis.major_label_text_font_size = axis.axis_label_text_font_size = "11px"
        axis.major_label_standoff = 2
    for grid in plot.grid:
        grid.grid_line_color = colours.line
