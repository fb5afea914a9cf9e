"""Contributions: how much each part of the model adds to the metric's logit, part by part up to the whole of it."""

import re
from typing import Any, ClassVar

import numpy as np
import panel as pn
import panel_material_ui as pmui

from transpector.components import theme
from transpector.components.base import Pane, figures
from transpector.components.parts.contribution_map import ContributionMap
from transpector.components.parts.contribution_numbers import (
    BESIDE,
    NOW,
    ROUNDING,
    SHOWN,
    ContributionNumbers,
    by_layer,
    of_neurons,
    of_no_neuron,
    of_parts,
    ranked,
    reach,
    row,
)
from transpector.components.parts.notice import Notice
from transpector.components.parts.site_list import SiteList
from transpector.components.parts.sweep_form import select
from transpector.state.errors import SiteError
from transpector.state.sites import Site

N_PARTS, N_NEURONS = 24, 12  # that are listed
_HOW = "What it writes into the residual stream, through the final norm, its divisor as it was in the run, and the unembedding"


class ContributionsPane(Pane):
    """A map of heads and MLPs, the largest parts of all, and the largest neurons of one layer; a click selects."""

    reads: ClassVar = ("run", "baseline", "position", "metric")

    def __init__(self, session: Any, **params: Any):
        super().__init__(session, **params)
        self._numbers: ContributionNumbers | None = None
        self._layer = session.head[0]  # whose neurons are listed
        self._parts: list[str] = []
        self._neurons: list[str] = []
        dark = self.param.dark
        self._target = Notice(tone="heading", hint=_HOW, dark=dark)
        self._sum, self._difference, self._note = (Notice(dark=dark) for _ in range(3))
        self._trouble = Notice(tone="warning", dark=dark)
        self.shown = select("Show", SHOWN, 152, "Of which run, where interventions make two of it")
        self.shown.visible = False
        self.map = ContributionMap(self._click, dark=dark)
        self.parts = SiteList(
            lambda at: self._select(self._parts[at]), name_of_list="Largest contributions", dark=dark
        )
        self.layer = pmui.IntInput(
            label="Layer",
            value=self._layer,
            start=0,
            width=88,
            size="small",
            margin=0,
            description="Whose neurons are listed: that of what is selected, unless another is set",
        )
        self._neurons_title = Notice(tone="heading", align="center", dark=dark)
        self._hidden = Notice(dark=dark)
        self.neurons = SiteList(
            lambda at: self._select(f"{self._neurons[at]}.mlp_post"),
            name_of_list="Largest neurons",
            dark=dark,
        )
        self._spec: Any = None
        self._n_changes = 0
        self.shown.param.watch(lambda event: self._draw(), "value")
        self.layer.param.watch(self._set_layer, "value")
        watch = session.param.watch
        self._watchers = [
            watch(self._follow, "selection"),
            watch(lambda event: self._mark(), "interventions"),
        ]
        self.param.watch(lambda event: self._mark(), "dark")
        self._layout = self._laid_out()
        self._follow()
        self.refresh()

    def close(self) -> None:
        """Stop watching the session."""
        super().close()
        for watcher in self._watchers:
            self.session.param.unwatch(watcher)
        self._numbers = None

    # What is computed

    def measure(self, run: Any, baseline: Any, position: int, metric: Any) -> tuple[Any, ContributionNumbers]:
        layer = min(self._layer, run.model.spec.n_layers - 1)
        return run, ContributionNumbers.of(run, baseline, metric, position, layer)

    def show(self, numbers: tuple[Any, ContributionNumbers]) -> None:
        run, self._numbers = numbers
        now, before = self._numbers.now, self._numbers.before
        self._spec = run.model.spec
        self._n_changes = len(run.question.interventions)
        self.layer.end = self._spec.n_layers - 1
        self._target.text = now.target[:1].upper() + now.target[1:]
        self._sum.text, self._difference.text = _in_all(now), _against(now, before)
        self._note.text, self._trouble.text = now.note, ""
        self.shown.visible = before is not None
        self._content.visible = True
        beside = max(np.abs(by_layer(found)[:, -1]).max() for found in (now, before) if found is not None)
        self.map.lay(self._spec, bool(len(now.mlps)), bool(beside > ROUNDING * self._numbers.top))
        self._draw()

    def refuse(self, reason: str) -> None:
        self._numbers = None
        self._trouble.text = reason
        self._target.text = self._sum.text = self._difference.text = self._note.text = ""
        self._content.visible = self.shown.visible = False

    # What is shown

    def _draw(self) -> None:
        numbers = self._numbers
        if numbers is None:
            return
        which = NOW if numbers.before is None else self.shown.value
        n = self._n_changes if which == NOW else 0
        cells, before, top = numbers.cells(which)
        says = which.lower() + (f", with {n} intervention{'s' * (n > 1)}" if n else "")
        self.map.tell(
            f"What heads {'and MLPs ' if len(numbers.now.mlps) else ''}add, layer by layer",
            says + ("; the colour ends at the largest head" if (np.abs(cells) > top).any() else ""),
            numbers.now.unit,
            False,
            "transpector-contributions",
        )
        self.map.paint_cells(cells, before, top)
        values, before = numbers.shown(which, of_parts)
        self._parts, rows = ranked(values, before, N_PARTS, "others")
        self.parts.param.update(rows=rows, top=reach(rows), heads=_heads(which))
        self._draw_neurons(which)
        self._mark()

    def _draw_neurons(self, which: str) -> None:
        numbers = self._numbers
        self._hidden.text = numbers.hidden
        self.layer.disabled = bool(numbers.hidden)
        self.neurons.visible = not numbers.hidden
        if numbers.hidden:
            self._neurons_title.text, self._neurons = "Neurons of a layer", []
            return
        values, before = numbers.shown(which, of_neurons)
        self._neurons, rows = ranked(values, before, N_NEURONS, "others")
        beside, were = numbers.shown(which, of_no_neuron)
        rows += [
            row(name, value, were and were[name]) | {"rest": True}
            for name, value in beside.items()
            if abs(value) > ROUNDING * numbers.top
        ]
        in_all = sum([*values.values(), *beside.values()])
        in_all = figures(in_all if abs(in_all) > ROUNDING * numbers.top else 0, signed=True)
        self._neurons_title.text = f"Neurons of layer {numbers.now.layer}: {in_all} logits in all"
        self.neurons.param.update(rows=rows, top=reach(rows), heads=_heads(which))

    # What is chosen

    def _click(self, x: float, y: float) -> None:
        cell = None if self._numbers is None else self.map.cell(x, y)
        if cell is not None and (part := self.map.site(cell) or self._beside(cell[0])):
            self._select(part)

    def _beside(self, layer: int) -> str | None:
        """The largest part of a layer that is no head and no MLP."""
        values = of_parts(self._numbers.now)
        found = [part for part in (f"L{layer}.{kind}" for kind in BESIDE) if part in values]
        return max(found, key=lambda part: abs(values[part]), default=None)

    def _select(self, part: str) -> None:
        self.session.selection = [self._selected_with(part)]

    def _selected_with(self, part: str) -> str:
        """The part of the model's graph that a part of the sum is to be looked at by."""
        layer, _, kind = part.rpartition(".")
        if part == "bias":
            return "unembed"
        if kind == "attn_bias":
            return f"{layer}.attn_out"
        if kind == "written":
            return f"{layer}.resid_pre"
        if kind == "beside":
            after = int(layer[1:]) + 1
            return f"L{after}.resid_pre" if after < self._spec.n_layers else f"{layer}.resid_post"
        return part

    def _set_layer(self, event: Any) -> None:
        if event.new is not None and event.new != self._layer:
            self._layer = event.new
            self.refresh()

    def _follow(self, *events: Any) -> None:
        """The neurons are of the layer in which something is selected."""
        layers = [int(found[1]) for found in map(_LAYER.match, self.session.selection) if found]
        if layers and layers[0] != self._layer:
            self.layer.end = self.session.model.spec.n_layers - 1
            self._layer = self.layer.value = layers[0]
            self.refresh()
        self._mark()

    def _mark(self) -> None:
        """Frame what is selected and what is changed already."""
        if self._numbers is None:
            return
        session, colours = self.session, theme.ground(self.dark)
        frames = [
            (cell, getattr(colours, theme.STATES[verb]), 5)
            for verb, site in session.changes
            for cell in self.map.cells_of(site)
        ]
        selected = session.selection[0] if len(session.selection) == 1 else ""
        try:
            frames += [(cell, colours.accent, 2) for cell in self.map.cells_of(Site.parse(selected))]
        except SiteError:  # no cell either
            pass
        self.map.frame(frames)
        chosen = [self._selected_with(part) for part in self._parts]
        self.parts.chosen = chosen.index(selected) if selected in chosen else -1
        neurons = [f"{neuron}.mlp_post" for neuron in self._neurons]
        self.neurons.chosen = neurons.index(selected) if selected in neurons else -1

    def _laid_out(self) -> pn.Column:
        gap = {"gap": f"{theme.UNIT}px"}
        wide = {"sizing_mode": "stretch_width"}
        self._content = pn.Row(
            pn.Column(
                self.map,
                pn.Row(self.layer, self._neurons_title, styles={**gap, "align-items": "center"}, **wide),
                self._hidden,
                self.neurons,
                styles={"flex": "1 1 0", "min-width": "0", **gap},
                **wide,
            ),
            pn.Column(
                Notice(text="Largest parts", tone="heading", hint=_HOW, dark=self.param.dark),
                self.parts,
                width=288,
                styles=gap,
            ),
            styles={"gap": f"{3 * theme.UNIT}px"},
            visible=False,
            **wide,
        )
        return pn.Column(
            pn.Row(
                pn.Column(self._target, self._sum, self._difference, self._note, **wide),
                self.shown,
                styles={**gap, "align-items": "center"},
                **wide,
            ),
            self._trouble,
            self._content,
            styles=gap,
            **wide,
        )

    def __panel__(self) -> Any:
        return self._layout


def _heads(which: str) -> list[str]:
    return ["", which.lower(), "baseline"]


def _in_all(found: Any) -> str:
    """That the parts add up to what the model says."""
    return (
        f"{len(found.parts):,} parts add up to {_figures(found.total)} logits; "
        f"the model’s logit is {_figures(found.logit)} (gap {figures(abs(found.gap))})"
    )


def _against(now: Any, before: Any) -> str:
    """What became of the baseline's logit."""
    if before is None:
        return ""
    return f"Baseline {_figures(before.logit)}, difference {figures(now.logit - before.logit, signed=True)}"


def _figures(number: float) -> str:
    return f"{number:.3f}".replace("-", "−")


_LAYER = re.compile(r"L(\d+)[HND.]")
