"""Intervene: a form for any intervention at any site that the model's self-test passed."""

from typing import Any

import panel as pn
import panel_material_ui as pmui
import param
from panel.viewable import Viewer

from transpector.components import theme
from transpector.components.parts.notice import Notice
from transpector.state.errors import TranspectorError
from transpector.state.interventions import Ablate, Freeze, Intervention, Patch
from transpector.state.sites import AXES, Site

WAYS = ("Set to zero", "Set to mean", "Freeze", "Patch from text B", "Patch from this run")


class Intervene(Viewer):
    """Choose a site and what to do there; what this model can't do is greyed out."""

    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")

    def __init__(self, session: Any, **params: Any):
        super().__init__(**params)
        self.session = session
        narrow = {"size": "small", "margin": 0, "sizing_mode": "stretch_width"}
        self.way = pmui.Select(label="Do", options=list(WAYS), value=WAYS[0], **narrow)
        self.site = pmui.TextInput(
            label="Site",
            placeholder="L5H1.z",
            description="L layer, H head, N neuron, @ position: L5H1.z, L9.mlp_out, L2.resid_pre@-1, L5N311.mlp_post@3, embed",
            **narrow,
        )
        self.source = pmui.TextInput(label="Source", placeholder="the same site", **narrow)
        self.add = pmui.Button(label="Add", variant="outlined", size="small", margin=0, icon="add")
        self._trouble = Notice(dark=self.param.dark, tone="warning")
        self._kinds = Notice(dark=self.param.dark)
        self.way.param.watch(self._arrange, "value")
        self.site.param.watch(self._submit, "enter_pressed")
        self.source.param.watch(self._submit, "enter_pressed")
        self.add.on_click(self._submit)
        session.param.watch(self._suggest, ["selection", "model"])
        self._suggest()
        self._arrange()

    def _arrange(self, *events: Any) -> None:
        self.source.visible = self.way.value.startswith("Patch")
        self.source.placeholder = "the same site" if self.way.value == WAYS[3] else "an upstream site"

    def _suggest(self, *events: Any) -> None:
        model, sites = self.session.model, self.session.sites
        if sites or model is None:
            self.site.value = str(sites[0]) if sites else "L{}H{}.z".format(*self.session.head)
        if model is not None:
            able = [kind for kind in AXES if model.health.can_write(kind)]
            self._kinds.param.update(text="Kinds: " + " ".join(able), hint="\n".join(model.health.reasons))

    def _submit(self, *events: Any) -> None:
        try:
            intervention = self._intervention()
            if self.session.model is not None and self.session.run is not None:
                run = self.session.run
                self.session.model.check([intervention], run.n_pos, run.question.bos)
        except TranspectorError as error:
            self._trouble.text = str(error)
            return
        self._trouble.text = ""
        self.session.add(intervention)

    def _intervention(self) -> Intervention:
        site = Site.parse(self.site.value_input)  # Enter is heard of before the value is
        way = self.way.value
        if way in WAYS[:2]:
            return Ablate(site, "zero" if way == WAYS[0] else "mean")
        if way == WAYS[2]:
            return Freeze(site)
        source = Site.parse(self.source.value_input) if self.source.value_input.strip() else site
        if way == WAYS[4]:
            return Patch(site, source)
        if not self.session.text_b:
            raise TranspectorError("Text B is empty. Type the text to patch from at the left.")
        return Patch(site, source, self.session.text_b)

    def __panel__(self) -> Any:
        return pn.Column(
            self.way,
            self.site,
            self.source,
            self._trouble,
            pn.Row(self.add, self._kinds, sizing_mode="stretch_width", styles={"gap": f"{theme.UNIT}px"}),
            sizing_mode="stretch_width",
            styles={"gap": f"{theme.UNIT + 4}px"},
        )
