"""Contribution map: what each head adds, layer by layer, and beside the heads the MLP and what else is added there."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from bokeh.models import ColumnDataSource
from jaxtyping import Float

from transpector.components import theme
from transpector.components.parts.heat_map import HeatMap
from transpector.components.parts.touched import heads_of
from transpector.state.sites import Site

MAX_NAMES = 16  # of heads; more would overlap
WIDE = 18  # columns, from where the last has no room for its name
GUTTER = 6  # px between the heads and the rest

Cell = tuple[int, int]


class ContributionMap(HeatMap):
    """A row a layer; a click on a cell tells ``x`` and ``y``, which ``site`` makes a site of."""

    words: ClassVar = ("adds", "baseline", "its heads can't be told apart")
    digits: ClassVar = 4

    def _make(self) -> None:
        super()._make()
        self._dot.visible = False
        self._sides = ColumnDataSource({"x": [], "y0": [], "y1": []})
        self._gutter = self.figure.segment("x", "y0", "x", "y1", source=self._sides, line_width=GUTTER)

    def lay(self, spec: Any, has_mlp: bool, has_more: bool) -> None:
        """Make room for a model; ``has_more`` is whether anything is added beside heads and MLPs."""
        self._spec = spec
        self.n_columns = spec.n_heads + has_mlp + has_more
        self._mlp = spec.n_heads if has_mlp else None
        self._more = spec.n_heads + has_mlp if has_more else None
        every = -(-spec.n_heads // MAX_NAMES)
        heads = [f"H{head}" if head % every == 0 else "" for head in range(spec.n_heads)]
        layers = [f"L{layer}" for layer in range(spec.n_layers)]
        names = [*heads, *["MLP"] * has_mlp, *["rest" if self.n_columns <= WIDE else ""] * has_more]
        halves = [
            *(f"H{head}.z" for head in range(spec.n_heads)),
            *[".mlp_out"] * has_mlp,
            *[": what is added beside heads and MLP"] * has_more,
        ]
        self.arrange(layers, names, (layers, halves))
        sides = [spec.n_heads] * (has_mlp or has_more)
        self._sides.data = {"x": sides, "y0": [0] * len(sides), "y1": [spec.n_layers] * len(sides)}

    def paint_cells(
        self,
        cells: Float[np.ndarray, "layer column"],
        before: Float[np.ndarray, "layer column"] | None,
        top: float,
    ) -> None:
        """Show numbers of as many columns as there is room for, and tell those of the baseline by the pointer."""
        n = self.n_columns
        self.draw(cells[:, :n], None if before is None else before[:, :n], None, top)

    def cell(self, x: float, y: float) -> Cell | None:
        """The cell at a place of the picture."""
        row, column = int(np.floor(y)), int(np.floor(x))
        is_in = 0 <= row < self._spec.n_layers and 0 <= column < self.n_columns
        return (row, column) if is_in else None

    def cells_of(self, site: Site) -> Iterator[Cell]:
        """The cells that a site is in, or that are in it."""
        if site.layer is None or site.layer >= self._spec.n_layers:
            return
        if site.kind.startswith("mlp_"):
            columns: Sequence[int | None] = [self._mlp]
        elif site.kind == "attn_out":
            columns = [self._more]
        else:
            columns = heads_of(site, self._spec)
        yield from ((site.layer, column) for column in columns if column is not None)

    def site(self, cell: Cell) -> str | None:
        """The id of the part that a cell stands for; None for what else is added there."""
        layer, column = cell
        if column < self._spec.n_heads:
            return f"L{layer}H{column}.z"
        return f"L{layer}.mlp_out" if column == self._mlp else None

    def _paint(self, *events: Any) -> None:
        super()._paint()
        self._gutter.glyph.line_color = theme.ground(self.dark).paper
