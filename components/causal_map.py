"""Causal map: one change made at every site in turn, and what each does to the metric, as the numbers come in."""

import io
import time
from typing import Any

import numpy as np
import panel as pn
import panel_material_ui as pmui
import param
from panel.viewable import Viewer

from transpector.components import theme
from transpector.components.parts.effect_bars import EffectBars
from transpector.components.parts.effect_figure import largest
from transpector.components.parts.heat_map import HeatMap
from transpector.components.parts.notice import Notice
from transpector.components.parts.site_list import SiteList
from transpector.components.parts.sweep_form import SweepForm, button, select
from transpector.components.parts.sweep_progress import SweepProgress
from transpector.components.parts.sweep_view import SweepView
from transpector.state.grid import Index
from transpector.state.session import Session

LARGEST, SELECTED = "Largest of each head", "The selected one"
PAUSE = 0.1  # s between two pictures of a map in the making
N_LISTED = 15
N_VERIFIED = 20

_INTRODUCTION = (
    "A causal map makes one change at one place of the model, such as setting a head's output to zero, reads how far the "
    "{} moves, puts it back, and goes on to the next place. What matters for this text stands out; what does not stays "
    "blank. Press Estimate for the whole map from gradients, in about three passes, or Run for the exact numbers, which "
    "are shown as they are found."
)
_STALE = "This map is of the text, interventions and metric before; run it again."


class CausalMap(Viewer):
    """Choose a change and where to make it; estimate it or run it, read it, and keep what is found."""

    session = param.ClassSelector(class_=Session, doc="The question and its answer.")
    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")
    in_view = param.Boolean(
        default=True, allow_refs=True, doc="Whether its tab is open; until then what is new can wait."
    )

    def __init__(self, session: Session, **params: Any):
        super().__init__(session=session, **params)
        self.sweep: Any = None  # the newest, whatever became of it
        self.view: SweepView | None = None  # of the newest of which a number is known
        self._chosen: Index | None = None
        self._is_picked = False  # by a click here; else the selected head is chosen
        self._listed: list[Index] = []
        self._place: np.ndarray | None = None  # the position shown of each head, where there are three axes
        self._told, self._posted = 0.0, False
        self.form = SweepForm(session, self._attend, dark=self.param.dark)
        self._make_controls()
        self._make_pictures()
        watch = session.param.watch
        self._watchers = [
            watch(self._clear, "model"),
            watch(self._age, ["run", "metric"]),
            watch(self._follow, ["head", "position"]),
            watch(lambda event: self._mark(), "interventions"),
        ]
        self.param.watch(lambda event: self._draw(), "in_view")
        self.param.watch(lambda event: self._mark(), "dark")
        self._clear()
        self._age()

    def close(self) -> None:
        """Stop watching the session, and give up what is under way."""
        self.form.close()
        for watcher in self._watchers:
            self.session.param.unwatch(watcher)
        if self.sweep is not None:
            self.sweep.cancel()
        self.sweep = self.view = None  # and with them the model

    def _make_controls(self) -> None:
        self.at = select("Position", (LARGEST, SELECTED), 184, "Which position of each head the map shows")
        self.keep = button("Keep as intervention", "add", "Add this change to the interventions")
        self.n_verified = pmui.IntInput(
            label="Largest", value=N_VERIFIED, start=1, width=88, size="small", margin=0
        )
        self.verify = button("Verify", "done_all", "Run the largest of the estimate exactly")
        self.csv = pmui.FileDownload(
            callback=lambda: io.StringIO(self.view.csv()),
            label="CSV",
            filename="transpector.csv",
            description="Every site, a row each",
            size="small",
            margin=0,
        )
        self.csv.variant = "text"  # of the constructor it makes a deprecation warning
        self.png = button("PNG", "image", "The picture as it is", "text")
        self.at.param.watch(lambda event: self._draw(), "value")
        self.verify.on_click(self._verify)
        self.keep.on_click(self._keep)

    def _make_pictures(self) -> None:
        dark = self.param.dark
        self._stale = Notice(dark=dark)
        self.progress = SweepProgress(self.at, self.csv, self.png, dark=dark)
        self._intro = Notice(dark=dark)
        self.heat, self.bars = HeatMap(self._click, dark=dark), EffectBars(self._click, dark=dark)
        for picture in (self.heat, self.bars):
            self.png.js_on_click(
                args={"figure": picture.figure, "save": picture.save},
                code="if (figure.visible) save.do.emit('save')",
            )
        self._site, self._number = Notice(dark=dark, tone="big"), Notice(dark=dark)
        self._agreement = Notice(dark=dark)
        self.list = SiteList(lambda at: self._choose(self._listed[at]), dark=dark)

        gap = {"gap": f"{theme.UNIT}px"}
        wide = {"sizing_mode": "stretch_width"}
        self._empty = pn.Column(
            Notice(text="Which parts of the model does this text depend on?", tone="heading", dark=dark),
            self._intro,
            max_width=640,
            margin=(4 * theme.UNIT, 0),
            styles=gap,
            **wide,
        )
        self._verifying = pn.Row(self.verify, self.n_verified, styles={**gap, "align-items": "center"})
        self._result = pn.Row(
            pn.Column(self.heat, self.bars, styles={"flex": "1 1 0", "min-width": "0"}, **wide),
            pn.Column(
                self._site,
                self._number,
                self.keep,
                self._verifying,
                self._agreement,
                self.list,
                width=264,
                styles=gap,
            ),
            styles={"gap": f"{2 * theme.UNIT}px"},
            **wide,
        )
        self._layout = pn.Column(
            self.form,
            self.progress,
            self._stale,
            self._empty,
            self._result,
            styles=gap,
            **wide,
        )

    # What comes in

    def _verify(self, event: Any) -> None:
        self._attend(self.view.estimated.verify(self.n_verified.value))

    def _attend(self, sweep: Any) -> None:
        if self.sweep is not None:
            self.sweep.cancel()
        self.sweep, self._posted = sweep, False
        sweep.watch(lambda: self._hear(sweep))
        self._take(sweep)  # it may be over already

    def _hear(self, sweep: Any) -> None:
        """On the worker's thread, for every number: the page is told now and then, and at the end."""
        if sweep.is_over or not (self._posted or time.monotonic() - self._told < PAUSE):
            self._posted = True
            self.session.inbox.post(lambda: self._take(sweep))

    def _take(self, sweep: Any) -> None:
        if sweep is not self.sweep:
            return
        self._posted = False
        with pn.io.hold():
            self.progress.tell(sweep)
            if sweep.done:
                if self.view is None or self.view.sweep is not sweep:
                    self._show(sweep)
                self._draw()
        self._told = time.monotonic()

    def _clear(self, *events: Any) -> None:
        """Forget the maps of another model, which its session has stopped."""
        self.sweep = self.view = None
        self.progress.tell(None)
        for each in (self.at, self.csv, self.png, self.heat.figure, self.bars.figure):
            each.visible = False
        self._stale.text = ""
        self._result.visible, self._empty.visible = False, True

    def _age(self, *events: Any) -> None:
        """Say so when the answer on the page is another than the map's."""
        session, view = self.session, self.view
        self._intro.text = _INTRODUCTION.format(session.metric.label)
        if view is not None and session.run is not None:
            now, then = (session.run.question, session.metric), (view.sweep.question, view.sweep.metric)
            self._stale.text = "" if now == then else _STALE

    # What is shown

    def _show(self, sweep: Any) -> None:
        """Make room for another map."""
        before = self.view
        self.view = view = SweepView(sweep, before and before.estimated)
        if before is None or before.grid != view.grid:
            self._chosen, self._is_picked = None, False
        self._empty.visible, self._result.visible, self._stale.text = False, True, ""
        self.csv.visible = self.png.visible = True
        self.at.visible = view.n_axes == 3
        self.csv.filename = f"{view.filename}.csv"
        rows, columns, sites, pieces = view.names()
        is_flat = view.n_axes == 1
        self.heat.figure.visible, self.bars.figure.visible = not is_flat, is_flat
        if is_flat:
            self.bars.arrange(rows, sites[0] or sites[1], f"neuron of layer {view.grid.layer}")
        else:
            self.heat.arrange(rows, columns, sites, pieces)

    def _draw(self) -> None:
        view = self.view
        if view is None or not self.in_view:
            return
        values, estimate = view.numbers()
        top = largest(values)
        position = self.session.position if self.at.value == SELECTED else None
        self._place = view.place(values, position)
        where = ""
        if view.n_axes == 3:
            where = (
                "largest over positions" if position is None else f"at position {position % view.grid.n_pos}"
            )
        picture = self.bars if view.n_axes == 1 else self.heat
        picture.tell(*view.title(where), view.unit, bool(view.estimated), view.filename)
        if view.n_axes == 1:
            self.bars.draw(values, estimate, top)
        else:
            flat = [_at(numbers, self._place) for numbers in (values, estimate)]
            self.heat.draw(*flat, self._place, top)
        self._listed, rows = view.rows(values, estimate, N_LISTED)
        kind = "estimate" if view.sweep.estimated else "change" if estimate is None else "run"
        self.list.param.update(rows=rows, top=top, heads=["largest", kind, "estimate"])
        self._verifying.visible = view.estimated is not None
        self.verify.disabled = not (view.estimated and view.estimated.done)
        self._agreement.text = view.agreement()
        self._follow()

    # What is chosen

    def _click(self, x: float, y: float) -> None:
        grid = self.view.grid
        row, column = int(np.floor(y)), int(np.floor(x))
        index = {"layers": (row,), "neurons": (column,)}.get(grid.over, (row, column))
        if all(0 <= at < size for at, size in zip(index, grid.shape, strict=False)):
            self._choose(index if self._place is None else (*index, int(self._place[index])))

    def _choose(self, index: Index) -> None:
        """Select a site here, and its head and its position everywhere."""
        self._chosen, self._is_picked = index, True
        self.session.param.update(**self.view.selection(index))
        self._mark()

    def _keep(self, event: Any) -> None:
        if self.view is not None and self._chosen is not None:
            self.session.add(self.view.sweep.intervention(self._chosen))

    def _follow(self, *events: Any) -> None:
        """The head that is selected elsewhere is so here."""
        if self.view is None or not self.in_view:
            return
        shows_position = self.view.n_axes == 3 and self.at.value == SELECTED
        if events and shows_position:
            self._draw()  # and comes back here
            return
        here = self.view.of_head(self.session.head)
        if here is not None and not (self._is_picked and self._chosen[:2] == here and not shows_position):
            self._is_picked = False
            self._chosen = here if self._place is None else (*here, int(self._place[here]))
        self._mark()

    def _mark(self) -> None:
        """Frame what is chosen and what is changed already, and say what is known of the first."""
        view, chosen = self.view, self._chosen
        if view is None or not self.in_view:
            return
        colours = theme.ground(self.dark)
        frames = [
            (index, getattr(colours, theme.STATES[verb]), 5)
            for index, verb in view.touched(self.session.changes)
        ]
        if chosen is not None:
            frames.append((chosen, colours.accent, 2))  # with the other to be seen around it
        (self.bars if view.n_axes == 1 else self.heat).frame(frames)
        self.list.chosen = self._listed.index(chosen) if chosen in self._listed else -1
        self.keep.disabled = chosen is None
        self._site.text = "" if chosen is None else str(view.grid.site(chosen))
        self._number.text = "Click a site to select it." if chosen is None else view.says(chosen)

    def __panel__(self) -> Any:
        return self._layout


def _at(numbers: np.ndarray | None, place: np.ndarray | None) -> np.ndarray | None:
    """What a heat map shows of numbers that may have a third axis: those of one position of each head."""
    if numbers is None or place is None:
        return numbers
    return np.take_along_axis(numbers, place[..., None], -1)[..., 0]
