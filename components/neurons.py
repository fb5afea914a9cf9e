"""Neurons: the largest neurons of a layer, or dimensions of the residual stream, by what is wanted, and one of them in full."""

import re
from typing import Any, ClassVar

import panel as pn
import panel_material_ui as pmui

from transpector.components import theme
from transpector.components.base import Pane, visible
from transpector.components.parts.notice import Notice
from transpector.components.parts.site_list import SiteList
from transpector.components.parts.sweep_form import select
from transpector.components.parts.unit import unit_of
from transpector.components.parts.unit_card import UnitCard
from transpector.components.parts.unit_numbers import (
    ACTIVATION,
    ADDS,
    EFFECT,
    KINDS,
    NEURONS,
    OF,
    RANKINGS,
    STREAM,
    WRITTEN,
    Asked,
    UnitMeasure,
    UnitNumbers,
    UnitRanking,
    unable_by,
    unable_of,
)
from transpector.state.errors import Cancelled
from transpector.state.sites import Site

N_LISTED = 20
BESIDE = 280  # px
_OF = "The neurons of a layer (mlp_post), or single dimensions of the residual stream before it (resid_pre)"
_BY = "By which number, at the selected position, the largest are found"
_LAYER_OF = "Whose neurons are listed: that of what is selected, unless another is set"
_TITLES = {
    ACTIVATION: "Largest activations",
    WRITTEN: "Largest written norms",
    ADDS: "Largest additions to the metric",
    EFFECT: "Largest effects of zeroing",
}
_EXPLAINED = {
    ACTIVATION: "What a neuron passes on at the selected position.",
    WRITTEN: "The length of what a neuron adds to the residual stream at the selected position.",
    ADDS: "What a neuron adds to the metric’s logit by itself, past all later layers.",
    EFFECT: "What setting one to zero at every position would change of the metric, estimated from its gradient.",
}
_OF_STREAM = "How much of a dimension the residual stream has before the layer, at the selected position."


class NeuronsPane(Pane):
    """A list of the largest, and beside it the one that is selected; a click selects everywhere."""

    reads: ClassVar = ("run", "baseline", "position", "metric")

    def __init__(self, session: Any, **params: Any):
        super().__init__(session, **params)
        dark = self.param.dark
        self._layer = session.head[0]
        self._measure = UnitMeasure(self._is_stale, lambda: session.inbox.post(self._wait))
        self._given_up = False  # for a question that came between
        self._shown: UnitRanking | None = None
        self._listed: list[str] = []
        self._card_of: Site | None = None
        self._taking = False
        self.of = select("Of", OF, 112, _OF)
        self.layer = pmui.IntInput(
            label="Layer", value=self._layer, start=0, width=88, size="small", margin=0, description=_LAYER_OF
        )
        self.by = select("Rank by", RANKINGS, 248, _BY)
        self._explained = Notice(dark=dark)
        self._note, self._slow = Notice(dark=dark), Notice(dark=dark)
        self._trouble = Notice(tone="warning", dark=dark)
        self._title, self._says = Notice(tone="heading", dark=dark), Notice(dark=dark)
        self.list = SiteList(self._click, name_of_list="Largest units", dark=dark)
        self.card = UnitCard(dark=dark)
        for widget in (self.of, self.by):
            widget.param.watch(lambda event: self._ask(), "value")
        self.layer.param.watch(self._set_layer, "value")
        watch = session.param.watch
        self._watchers = [
            watch(self._follow, "selection"),
            watch(lambda event: self._choose_able(), "model"),
            watch(lambda event: self._rest(), "state"),
        ]
        self._layout = self._laid_out()
        self._choose_able()
        self._follow()
        self.refresh()

    def close(self) -> None:
        """Stop watching the session."""
        super().close()
        for watcher in self._watchers:
            self.session.param.unwatch(watcher)
        self._measure.clear()
        self._shown = None

    # What is computed

    def measure(
        self, run: Any, baseline: Any, position: int, metric: Any
    ) -> tuple[Any, UnitRanking, UnitNumbers]:
        asked, at = self._asked_for(run), min(position, run.n_pos - 1) % run.n_pos
        selection = self.session.selection
        self._given_up = False
        try:
            ranking = self._measure.ranking(run, baseline, metric, at, asked)
            # What it is as tokens takes a look at the whole vocabulary; the list need not wait for it.
            self.session.inbox.post(lambda: self._show_early(run, ranking))
            unit = unit_of(selection, run.model.spec)
            if unit is None or not self._is_of(unit, asked):
                unit = asked.site(int(ranking.order[0]))
            if selection != self.session.selection:
                raise Cancelled
            where = f"at {visible(run.tokens)[at]}  (position {at})"
            return run, ranking, self._measure.unit(run, ranking, unit, where)
        except Cancelled:
            self._given_up = True
            raise

    def _asked_for(self, run: Any) -> Asked:
        return Asked(self.of.value, min(self._layer, run.model.spec.n_layers - 1), self.by.value)

    def _is_stale(self, asked: Asked) -> bool:
        session = self.session
        busy = session.state in ("queued", "running") or session.run is None
        return busy or asked != self._asked_for(session.run)

    def _is_of(self, unit: Site, asked: Asked) -> bool:
        is_neuron = unit.neuron is not None
        return (
            unit.layer == asked.layer
            and is_neuron == (asked.of == NEURONS)
            and (is_neuron or unit.kind == KINDS[STREAM])
        )

    def _wait(self) -> None:
        self._slow.text = "Measuring…"

    def _rest(self) -> None:
        """Measure what was given up for a question that came between, and may have had no answer."""
        if self.session.state == "idle" and self._given_up:
            self.refresh()

    # What is shown

    def show(self, numbers: tuple[Any, UnitRanking, UnitNumbers]) -> None:
        run, ranking, unit = numbers
        self._show_list(run, ranking)
        self._card_of = unit.site
        self.card.show(unit)
        self._content.visible = True
        self._mark()

    def _show_early(self, run: Any, ranking: UnitRanking) -> None:
        if self.session.run is run and not self._is_stale(ranking.asked):
            with pn.io.hold():
                self._show_list(run, ranking)

    def _show_list(self, run: Any, ranking: UnitRanking) -> None:
        self._slow.text = self._trouble.text = ""
        if ranking is self._shown:
            return
        self._shown, asked = ranking, ranking.asked
        self._listed = [str(asked.site(unit)) for unit in ranking.order[:N_LISTED].tolist()]
        rows = ranking.rows([site.partition(".")[0] for site in self._listed])
        top = max((abs(row.get(name, 0)) for row in rows for name in ("change", "before")), default=0) or 1.0
        self._title.text, self._says.text = _TITLES[asked.by], ranking.says
        self.list.param.update(rows=rows, top=top, heads=["", ranking.unit, "baseline"])
        self._offer(run)
        self._mark()

    def refuse(self, reason: str) -> None:
        self._trouble.text, self._slow.text = reason, ""
        self._content.visible = False
        self._shown = self._card_of = None
        self._offer(self.session.run)

    def _offer(self, run: Any) -> None:
        """Grey out what this run can't be ranked by, with the reason."""
        self.layer.end = run.model.spec.n_layers - 1
        asked = self._asked_for(run)
        reasons = unable_by(run, self.session.metric, asked)
        self.by.param.update(
            # The one that is chosen can't be greyed out; its reason is in the place of the list.
            disabled_options=[name for name in reasons if name != self.by.value],
            description=" ".join(dict.fromkeys(reasons.values())) or _BY,
        )

    def _choose_able(self) -> None:
        """Neurons, where the model has them; otherwise the stream, and why."""
        model = self.session.model
        reasons = {} if model is None else unable_of(model)
        able = [of for of in OF if of not in reasons]
        self.of.param.update(
            disabled_options=[] if not able else list(reasons),
            description=" ".join(reasons.values()) or _OF,
            value=self.of.value if self.of.value in able or not able else able[0],
        )
        self._note.text = " ".join(reasons.values()) if able else ""

    # What is chosen

    def _ask(self) -> None:
        """Ask for what the widgets say, of which not everything goes together."""
        if self._taking:
            return
        self._explain()
        if self.of.value == STREAM and self.by.value in (WRITTEN, ADDS):
            self.by.value = ACTIVATION  # which asks
        else:
            self.refresh()

    def _explain(self) -> None:
        is_held = self.of.value == STREAM and self.by.value == ACTIVATION
        self._explained.text = _OF_STREAM if is_held else _EXPLAINED[self.by.value]

    def _click(self, at: int) -> None:
        self.session.selection = [self._listed[at]]

    def _set_layer(self, event: Any) -> None:
        if event.new is not None and event.new != self._layer:
            self._layer = event.new
            self.refresh()

    def _follow(self, *events: Any) -> None:
        """What is listed is of the layer in which something is selected; it is shown in full."""
        session = self.session
        layers = [int(found[1]) for found in map(_LAYER.match, session.selection) if found]
        unit = None if session.model is None else unit_of(session.selection, session.model.spec)
        self._taking = True
        try:
            if layers and layers[0] != self._layer:
                self.layer.end = max(self.layer.end or 0, layers[0])
                self._layer = self.layer.value = layers[0]
            if unit is not None and unit.neuron is not None:
                self.of.value = NEURONS
            elif unit is not None and unit.kind == KINDS[STREAM]:
                self.of.value = STREAM
                self.by.value = self.by.value if self.by.value in (ACTIVATION, EFFECT) else ACTIVATION
        finally:
            self._taking = False
        self._explain()
        self.refresh()
        self._mark()

    def _mark(self) -> None:
        """Frame what is selected."""
        selected = self.session.selection[0] if len(self.session.selection) == 1 else ""
        self.list.chosen = self._listed.index(selected) if selected in self._listed else -1
        self.card.mark(self._card_of is not None and str(self._card_of) == selected)

    def _laid_out(self) -> pn.Column:
        gap = {"gap": f"{theme.UNIT}px"}
        wide = {"sizing_mode": "stretch_width"}
        explained = pn.Column(self._explained, styles={"flex": "1 1 160px", "min-width": "0"}, **wide)
        self._content = pn.Row(
            pn.Column(
                pn.Column(self._title, self._says, **wide),
                self.list,
                width=BESIDE,
                styles=gap,
            ),
            pn.Column(self.card, styles={"flex": "1 1 0", "min-width": "0"}, **wide),
            styles={"gap": f"{3 * theme.UNIT}px"},
            visible=False,
            **wide,
        )
        return pn.Column(
            pn.Row(
                self.of,
                self.layer,
                self.by,
                explained,
                styles={"gap": f"{2 * theme.UNIT}px", "align-items": "center"},
                **wide,
            ),
            self._note,
            self._trouble,
            self._slow,
            self._content,
            styles=gap,
            **wide,
        )

    def __panel__(self) -> Any:
        return self._layout


_LAYER = re.compile(r"L(\d+)[HND.]")
