"""Intervene: a form for any intervention at any site that the model's self-test passed."""

from dataclasses import replace
from typing import Any

import panel as pn
import panel_material_ui as pmui
import param
from panel.viewable import Viewer

from transpector.components import theme
from transpector.components.parts.direction_form import DirectionForm
from transpector.components.parts.notice import Notice
from transpector.state.errors import TranspectorError
from transpector.state.interventions import Ablate, Freeze, Intervention, Patch, Scale, Set, Skip
from transpector.state.sites import AXES, Site
from transpector.state.steering import STEERED, Steer, reach

ZERO, MEAN, SET, SCALE, FREEZE, FROM_B, FROM_HERE, STEER, SKIP = WAYS = (
    "Set to zero",
    "Set to mean",
    "Set to a number",
    "Scale",
    "Freeze",
    "Patch from text B",
    "Patch from this run",
    "Steer",
    "Skip layers",
)


class Intervene(Viewer):
    """Choose a site and what to do there; what this model can't do is greyed out."""

    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")

    def __init__(self, session: Any, **params: Any):
        super().__init__(**params)
        self.session = session
        narrow = {"size": "small", "margin": 0, "sizing_mode": "stretch_width"}
        self.way = pmui.Select(label="Do", options=list(WAYS), value=ZERO, **narrow)
        self.site = pmui.TextInput(
            label="Site",
            placeholder="L5H1.z",
            description="L layer, H head, N neuron, D dimension, @ position: "
            "L5H1.z, L9.mlp_out, L2.resid_pre@-1, L5N311.mlp_post@3, L5D37.resid_pre, embed",
            **narrow,
        )
        self.source = pmui.TextInput(label="Source", placeholder="the same site", **narrow)
        self.value = pmui.FloatInput(label="Value", value=0.0, **narrow)
        self.factor = pmui.FloatInput(label="Factor", value=0.5, step=0.1, **narrow)
        self.direction = DirectionForm(self._submit, dark=self.param.dark)
        self.first = pmui.IntInput(label="First layer", value=0, start=0, **narrow)
        self.last = pmui.IntInput(label="Last layer", value=0, start=0, **narrow)
        self._layers = pn.Row(
            self.first, self.last, sizing_mode="stretch_width", styles={"gap": f"{theme.UNIT}px"}
        )
        self.add = pmui.Button(label="Add", variant="outlined", size="small", margin=0, icon="add")
        self._fields = _column()
        self._suggested = ""
        self._trouble = Notice(dark=self.param.dark, tone="warning")
        self._kinds = Notice(dark=self.param.dark)
        self.way.param.watch(self._arrange, "value")
        self.site.param.watch(self._submit, "enter_pressed")
        self.source.param.watch(self._submit, "enter_pressed")
        self.add.on_click(self._submit)
        session.param.watch(self._suggest, ["selection", "model"])
        self._arrange()

    def _arrange(self, *events: Any) -> None:
        way = self.way.value
        self.source.placeholder = "the same site" if way == FROM_B else "an upstream site"
        self._suggest()
        beside = {
            SET: [self.value],
            SCALE: [self.factor],
            FROM_B: [self.source],
            FROM_HERE: [self.source],
            STEER: [self.direction],
        }
        # What another way asks for is not even there: each field keeps a page waiting that opens.
        self._fields[:] = [self._layers] if way == SKIP else [self.site, *beside.get(way, [])]

    def _suggest(self, *events: Any) -> None:
        model, sites = self.session.model, self.session.sites
        steers = self.way.value == STEER
        if steers:  # where most directions make sense
            sites = [site for site in sites if site.axes_of_kind == ("pos", "d_model") and site.dim is None]
            suggested = str(sites[0]) if sites else f"L{self.session.head[0]}.resid_pre"
        elif sites or model is None:
            suggested = str(sites[0]) if sites else "L{}H{}.z".format(*self.session.head)
        else:
            suggested = self.site.value
        if events or self.site.value == self._suggested:  # another way leaves a site as it was typed
            self.site.value = self._suggested = suggested
        if model is not None:
            able = [kind for kind in AXES if model.health.can_write(kind) and (kind in STEERED or not steers)]
            self._kinds.param.update(text="Kinds: " + " ".join(able), hint="\n".join(model.health.reasons))
            self.first.end = self.last.end = model.spec.n_layers - 1
        self._kinds.visible = self.way.value != SKIP and bool(self._kinds.text)

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
        if isinstance(intervention, Steer) and self.session.baseline is not None:
            self._steer(intervention)
        else:
            self.session.add(intervention)

    def _steer(self, steer: Steer) -> None:
        """Add it with a strength that can be seen: half as long as what is there already."""
        baseline = self.session.baseline

        def add(future: Any) -> None:
            error = future.exception()
            if isinstance(error, TranspectorError):
                self._trouble.text = str(error)
            elif error is not None:
                raise error
            elif baseline.model is self.session.model:
                self.session.add(replace(steer, strength=float(f"{future.result() / 2 or 1.0:.2g}")))

        future = baseline.model.worker.submit(lambda: reach(baseline, steer))
        future.add_done_callback(lambda done: self.session.inbox.post(lambda: add(done)))

    def _intervention(self) -> Intervention:
        way = self.way.value
        if way == SKIP:
            return Skip(self.first.value or 0, self.last.value or 0)
        site = Site.parse(self.site.value_input)  # Enter is heard of before the value is
        if way in (ZERO, MEAN):
            return Ablate(site, "zero" if way == ZERO else "mean")
        if way == SET:
            return Set(site, self.value.value)
        if way == SCALE:
            return Scale(site, self.factor.value)
        if way == FREEZE:
            return Freeze(site)
        if way == STEER:
            return Steer(site, self.direction.direction())
        source = Site.parse(self.source.value_input) if self.source.value_input.strip() else site
        if way == FROM_HERE:
            return Patch(site, source)
        if not self.session.text_b:
            raise TranspectorError("Text B is empty. Type the text to patch from at the left.")
        return Patch(site, source, self.session.text_b)

    def __panel__(self) -> Any:
        return _column(
            self.way,
            self._fields,
            self._trouble,
            pn.Row(self.add, self._kinds, sizing_mode="stretch_width", styles={"gap": f"{theme.UNIT}px"}),
        )


def _column(*parts: Any) -> pn.Column:
    return pn.Column(*parts, sizing_mode="stretch_width", styles={"gap": f"{theme.UNIT + 4}px"})
