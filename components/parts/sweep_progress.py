"""Sweep progress: how far a sweep is, how long still, and a way to stop it."""

from typing import Any

import panel as pn
import panel_material_ui as pmui
import param
from panel.viewable import Viewer

from transpector.components import theme
from transpector.components.parts.notice import Notice
from transpector.components.parts.sweep_form import button
from transpector.components.parts.sweep_view import SweepView
from transpector.state.errors import TranspectorError

_BUG = "Something went wrong inside Transpector ({}). The log has the details."


class SweepProgress(Viewer):
    """A line for one sweep, and a notice of what went wrong with it; ``besides`` stands at the line's end."""

    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")

    def __init__(self, *besides: Any, **params: Any):
        super().__init__(**params)
        self._sweep: Any = None
        self._says = Notice(dark=self.param.dark, sizing_mode=None, width=264, align="center")
        self._meter = pmui.LinearProgress(value=0, variant="determinate", width=160, margin=0, align="center")
        self.cancel = button("Cancel", "stop", "Stop here; what is known stays", "text")
        self.cancel.on_click(lambda event: self._sweep.cancel())
        self.trouble = Notice(dark=self.param.dark, tone="warning")
        self._besides = besides
        self.tell(None)

    def tell(self, sweep: Any) -> None:
        """Say how far a sweep is; None has nothing to say."""
        self._sweep = sweep
        self.cancel.visible = self._meter.visible = sweep is not None and not sweep.is_over
        self._says.text = self.trouble.text = ""
        if sweep is not None:
            self._meter.value = round(100 * sweep.fraction)
            self._says.text = SweepView(sweep).progress()
            error = sweep.error
            if error is not None:
                expected = isinstance(error, TranspectorError)
                self.trouble.text = str(error) if expected else _BUG.format(type(error).__name__)

    def __panel__(self) -> Any:
        gap = f"{theme.UNIT}px"
        return pn.Column(
            self.trouble,
            pn.FlexBox(
                self._says,
                self._meter,
                self.cancel,
                pn.Spacer(styles={"flex": "1"}),
                *self._besides,
                align_items="center",
                gap=gap,
                sizing_mode="stretch_width",
            ),
            sizing_mode="stretch_width",
            styles={"gap": gap},
        )
