"""Sweep form: which change a causal map makes, at which sites, and buttons that begin it."""

from collections.abc import Callable, Iterable
from typing import Any

import panel as pn
import panel_material_ui as pmui
import param
from panel.viewable import Viewer

from transpector.components import theme
from transpector.components.parts.notice import Notice
from transpector.state.errors import TranspectorError
from transpector.state.grid import KINDS_OVER, from_text

CHANGES = {"Set to zero": "zero", "Set to mean": "mean", "Patch from text B": "text-b"}
OVER = {
    "Heads": "heads",
    "Layers × positions": "layers_positions",
    "Heads × positions": "heads_positions",
    "Layers": "layers",
    "Neurons of one layer": "neurons",
}
OF_WHAT = "The kind of site that is changed"


class SweepForm(Viewer):
    """Do what, over which sites, of which kind; what this model can't do is greyed out. ``begun`` is given the sweep."""

    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")

    def __init__(self, session: Any, begun: Callable[[Any], None], **params: Any):
        super().__init__(**params)
        self.session, self._begun = session, begun
        self.change = select("Do", CHANGES, 152, "The change that is made at each site in turn, alone")
        self.over = select("Over", OVER, 192, "The sites: a number for each of them")
        self.of = select("Of", KINDS_OVER["heads"], 112, OF_WHAT)
        self.layer = pmui.IntInput(
            label="Layer", value=0, start=0, width=88, size="small", margin=0, description="Whose neurons"
        )
        self.estimate = button("Estimate", "bolt", "From gradients: quick, first order")
        self.run = button("Run", "play_arrow", "Exact: a run for each site", "contained")
        self.trouble = Notice(dark=self.param.dark, tone="warning")
        for widget in (self.change, self.over):
            widget.param.watch(self._offer, "value")
        self.estimate.on_click(lambda event: self._begin(True))
        self.run.on_click(lambda event: self._begin(False))
        self._watcher = session.param.watch(self._offer, ["model", "text_b"])
        self._offer()

    def close(self) -> None:
        """Stop watching the session."""
        self.session.param.unwatch(self._watcher)

    def _offer(self, *events: Any) -> None:
        """Offer what there is over these sites; grey out what this model can't do there, with the reason."""
        model = self.session.model
        over, change = OVER[self.over.value], CHANGES[self.change.value]
        kinds, unable = list(KINDS_OVER[over]), []
        if model is not None:
            can, reads = model.health, change != "zero"
            unable = [kind for kind in kinds if not can.can_write(kind) or (reads and not can.can_read(kind))]
            self.layer.end = model.spec.n_layers - 1
        able = [kind for kind in kinds if kind not in unable]
        reasons = [] if model is None else [r for r in model.health.reasons if r.split(":")[0] in unable]
        self.of.param.update(
            options=kinds,
            disabled_options=unable,
            value=self.of.value if self.of.value in able else (able or kinds)[0],
            description="; ".join(reasons) or OF_WHAT,
        )
        self.layer.visible = over == "neurons"
        if any(event.obj is self.over for event in events):
            self.layer.value = self.session.head[0]
        lacks_text = change == "text-b" and not self.session.text_b
        self.trouble.text = (
            "Text B is empty. Type the text to patch from at the left, of as many tokens as this one."
            if lacks_text
            else ""
        )
        for each in (self.estimate, self.run):
            each.disabled = model is None or not able or lacks_text

    def _begin(self, estimate: bool) -> None:
        from transpector.state.sweep import sweep  # brings torch, which the first paint does not wait for

        over, change = OVER[self.over.value], CHANGES[self.change.value]
        try:
            begun = sweep(
                self.session,
                over,
                self.of.value,
                from_text(self.session.text_b) if change == "text-b" else change,
                estimate,
                layer=self.layer.value if over == "neurons" else None,
            )
        except TranspectorError as error:
            self.trouble.text = str(error)
            return
        self.trouble.text = ""
        self._begun(begun)

    def __panel__(self) -> Any:
        return pn.Column(
            pn.FlexBox(
                self.change,
                self.over,
                self.of,
                self.layer,
                self.estimate,
                self.run,
                align_items="center",
                gap=f"{theme.UNIT}px",
                sizing_mode="stretch_width",
            ),
            self.trouble,
            sizing_mode="stretch_width",
            styles={"gap": f"{theme.UNIT}px"},
        )


def select(label: str, options: Iterable[str], width: int, says: str) -> pmui.Select:
    """A small select; the first option is chosen."""
    options = list(options)
    return pmui.Select(
        label=label,
        options=options,
        value=options[0],
        width=width,
        description=says,
        size="small",
        margin=0,
    )


def button(label: str, icon: str, says: str, variant: str = "outlined") -> pmui.Button:
    """A small button."""
    return pmui.Button(label=label, icon=icon, description=says, variant=variant, size="small", margin=0)
