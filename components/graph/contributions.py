"""Contributions: what heads and MLPs do to the metric, as the width and the colour of the wires they write to."""

from collections.abc import Callable
from typing import Any

from transpector.components import theme
from transpector.components.graph.drawing import Drawing
from transpector.state.errors import TranspectorError

WIDEST = 9  # px of a wire
_SWEEPS = {"z": "heads", "mlp_out": "layers"}


class Contributions:
    """Estimates by gradients what zeroing each head and MLP would do to the metric; ``found`` is called when it is known.

    A contribution is the metric now, less what it would be without the part: attribution patching, to first order.
    """

    def __init__(self, session: Any, found: Callable[[], None]):
        self._session, self._found = session, found
        self._sweeps: dict[str, Any] = {}
        self.trouble = ""
        """Why there are none."""

    def ask(self) -> None:
        """Estimate anew, for the newest question."""
        from transpector.state.sweep import sweep  # brings torch, which the first paint does not wait for

        self.forget()
        try:
            for kind, over in _SWEEPS.items():
                if self._session.model.health.can_write(kind):
                    self._sweeps[kind] = begun = sweep(self._session, over, kind, "zero", estimate=True)
                    begun.watch(lambda: self._session.inbox.post(self._found))
        except TranspectorError as error:
            self.trouble = str(error)
        self._found()

    def forget(self) -> None:
        """Give up what is under way, and what was found."""
        for sweep in self._sweeps.values():
            sweep.cancel()
        self._sweeps = {}
        self.trouble = ""

    @property
    def values(self) -> dict[str, float]:
        """By id of a part; in the metric's unit. Empty until all of them are known."""
        found: dict[str, float] = {}
        for sweep in self._sweeps.values():
            if sweep.state == "failed":
                self.trouble = str(sweep.error)
            if sweep.state != "done":
                return {}
            for index in sweep.grid:
                found[str(sweep.grid.site(index))] = -float(sweep.array[index])
        return found

    def rules(self, drawing: Drawing, dark: bool) -> str:
        """The style of the wires."""
        values = self.values
        top = max(map(abs, values.values()), default=0.0)
        if not top:
            return ""
        scale = theme.palette("diverging", dark)
        out = []
        for wire in drawing.wires:
            if wire.source in values:
                share = values[wire.source] / top
                colour = scale[round(128 + 96 * (1 if share > 0 else -1) * abs(share) ** 0.5)]
                out.append(
                    f'.react-flow__edge[data-id="{wire.id}"] .react-flow__edge-path '
                    f"{{ stroke: {colour}; stroke-width: {1 + (WIDEST - 1) * abs(share):.1f}; }}"
                )
        return "\n".join(out)
