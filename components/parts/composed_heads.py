"""Composed heads: how far a head reads what each earlier head writes, as a map and as a list."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import panel as pn
import param
from jaxtyping import Float
from panel.viewable import Viewer

from transpector.components import theme
from transpector.components.base import figures
from transpector.components.parts.notice import Notice
from transpector.components.parts.site_list import SiteList
from transpector.components.parts.value_map import ValueMap
from transpector.components.parts.weight_numbers import Told

N_HEADS = 10  # that are listed
ROOM = 400, 32, 32  # px for the cells; how many names of layers and of heads
KEYS = "Keys"
WAYS = {
    "Queries": ("q", "what the earlier head wrote decides what this one looks for"),
    KEYS: (
        "k",
        "what the earlier head wrote decides whether this one attends there; so induction heads find the token before",
    ),
    "Values": ("v", "what the earlier head wrote is carried on; the two act as one head"),
}
"""By what a head may read others: its name in the numbers, and what that means."""

_WHAT = (
    "The norm of the product of the two heads’ circuits over the product of their norms (Elhage et al. 2021), the norm’s gain "
    "counted in, rotary turns left out"
)


@dataclass(frozen=True)
class FromChance:
    """The scale of a value map that has the page's colour up to chance, and its last one at ``high``."""

    chance: float
    high: float
    kind = "from chance"

    @property
    def ends(self) -> tuple[float, float]:
        """What the first and the last colour stand for."""
        return self.chance, self.high

    @property
    def ticks(self) -> dict[float, str]:
        """Numbers along the scale."""
        return {float(at): figures(at) for at in np.linspace(self.chance, self.high, 4)}

    def shade(self, values: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "row column"]:
        """Where numbers lie between ``ends``."""
        return values

    def palette(self, dark: bool) -> list[str]:
        """Its colours, `#rrggbb`."""
        return theme.palette("sequential", dark)


class ComposedHeads(Viewer):
    """Layers × heads, and the largest of all; ``clicked`` is told which head was chosen."""

    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")

    def __init__(self, clicked: Callable[[int, int], None], **params: Any):
        super().__init__(**params)
        dark = self.param.dark
        self._heads: list[tuple[int, int]] = []
        self.map = ValueMap(clicked, "composition", dark=dark)
        self.list = SiteList(
            lambda at: clicked(*self._heads[at]),
            name_of_list="Heads read most",
            heads=["head", "0 to 1", "× chance"],
            dark=dark,
        )
        self._says = Notice(dark=dark)
        self._trouble = Notice(tone="warning", dark=dark)
        self._shape = (0, 0)
        self.param.watch(lambda event: self._frame(), "dark")
        self._listed = pn.Column(
            Notice(text="Read most", hint=_WHAT, tone="heading", dark=dark),
            self.list,
            width=264,
            styles={"gap": f"{theme.UNIT}px", "flex": "none"},
        )
        self._content = pn.Row(
            pn.Column(self.map, sizing_mode="stretch_width", styles={"flex": "1 1 0", "min-width": "0"}),
            self._listed,
            sizing_mode="stretch_width",
            styles={"gap": f"{2 * theme.UNIT}px"},
        )
        self._layout = pn.Column(
            self._says,
            self._trouble,
            self._content,
            sizing_mode="stretch_width",
            styles={"gap": f"{theme.UNIT}px"},
        )

    def show(self, told: Told, name: str, layer: int, way: str) -> None:
        """Show the composition of a head, called ``name``, by one of WAYS."""
        kind, says = WAYS[way]
        by = way.lower()
        self._says.text = f"By its {by}: {says}."
        values = None if told.found is None else getattr(told.found, kind)
        if layer == 0:
            self._refuse(f"{name} is in the first layer: there is no earlier head that it could read.")
        elif values is None:
            self._refuse(told.reason)
        elif not np.isfinite(values).any():
            self._refuse("What the earlier heads of this architecture write can't be told.")
        else:
            self._trouble.text, self._content.visible = "", True
            self._draw(values, told.found.chance, name, by)

    def _draw(self, values: Float[np.ndarray, "layer head"], chance: float, name: str, by: str) -> None:
        layers, heads = (
            [f"{letter}{at}" for at in range(size)] for letter, size in zip("LH", values.shape, strict=True)
        )
        high = max(float(np.nanmax(values)), 1.5 * chance)
        self.map.arrange(layers, heads, (layers, heads), ROOM, is_text=False)
        beside = "; layers without a colour hide what they write" if np.isnan(values).any() else ""
        self.map.draw(
            values,
            FromChance(chance, high),
            f"Earlier heads that {name} reads by its {by}",
            f"{by[:-1] if by != 'queries' else 'query'} composition, 0 to 1; the colour begins at chance, {figures(chance)}{beside}",
            "composition",
        )
        self._shape = values.shape
        self._frame()
        order = np.argsort(-np.nan_to_num(values, nan=-1).ravel(), kind="stable")[:N_HEADS]
        found = [tuple(map(int, np.unravel_index(at, values.shape))) for at in order]
        self._heads = [at for at in found if np.isfinite(values[at])]
        rows = [
            {
                "site": f"L{layer}H{head}",
                "change": float(values[layer, head]),
                "label": figures(float(values[layer, head])),
                "estimate": f"{values[layer, head] / chance:.1f} ×",
                "hint": f"L{layer}H{head}: {values[layer, head]:.6f}. A click goes to this head",
            }
            for layer, head in self._heads
        ]
        self.list.param.update(rows=rows, top=high)

    def _refuse(self, reason: str) -> None:
        self._says.text, self._trouble.text, self._content.visible = "", reason, False

    def _frame(self) -> None:
        """Show where the map ends, for most of it may have the page's colour."""
        rows, columns = map(range, self._shape)
        self.map.frame([(rows, columns, theme.ground(self.dark).line, 1)])

    def __panel__(self) -> Any:
        return self._layout
