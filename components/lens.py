"""Lens: what each layer would predict, computed for what is in view; cells are selected and patched by hand."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import panel as pn
import panel_material_ui as pmui
from jaxtyping import Bool, Float, Int

from transpector.components import theme
from transpector.components.base import Pane, visible
from transpector.components.parts.layer_curve import LayerCurve
from transpector.components.parts.lens_table import LensTable
from transpector.components.parts.notice import Notice
from transpector.components.parts.sweep_form import select
from transpector.components.parts.touched import positions_of
from transpector.state.errors import TranspectorError
from transpector.state.interventions import Skip

N_TOKENS = 5
COLOURS = {
    "Probability": "probability",
    "Entropy": "entropy",
    "KL to the output": "divergence",
    "Chosen token: probability": "chosen",
    "Chosen token: rank": "rank",
}
LAYERS_RUN = "Layers outside are skipped: an intervention like any other"

Window = tuple[int, int, int, int]
"""The first row and that after the last, and the same of columns."""


@dataclass
class _Known:
    """What has been read of one run; the arrays are [layer+1, pos, …]."""

    run: Any
    chosen: int | None
    key: str
    known: Bool[np.ndarray, "layer pos"]
    token_ids: Int[np.ndarray, "layer pos k"]
    probabilities: Float[np.ndarray, "layer pos k"]
    numbers: dict[str, Float[np.ndarray, "layer pos"]] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Any, chosen: int | None, key: str) -> "_Known":
        shape = run.model.spec.n_layers + 1, run.n_pos
        blank = {name: np.zeros(shape, np.float32) for name in ("entropy", "divergence", "chosen", "rank")}
        several = (*shape, N_TOKENS)
        known = cls(
            run,
            chosen,
            key,
            np.zeros(shape, bool),
            np.zeros(several, np.int64),
            np.zeros(several, np.float32),
        )
        known.numbers = blank
        return known

    def read(self, window: Window) -> None:
        """Learn what is not known yet of a window; on the model's worker."""
        from transpector.state.lens import lens  # brings torch, which the first paint does not wait for

        r0, r1, c0, c1 = window
        missing = ~self.known[r0:r1, c0:c1]
        if not missing.any():
            return
        rows, columns = np.flatnonzero(missing.any(1)) + r0, np.flatnonzero(missing.any(0)) + c0
        found = lens(self.run, layers=rows, positions=columns, k=N_TOKENS, token=self.chosen)
        at = np.ix_(rows, columns)
        n = found.token_ids.shape[-1]
        self.token_ids[at] = np.pad(found.token_ids, ((0, 0), (0, 0), (0, N_TOKENS - n)))
        self.probabilities[at] = np.pad(found.probabilities, ((0, 0), (0, 0), (0, N_TOKENS - n)))
        self.numbers["entropy"][at], self.numbers["divergence"][at] = found.entropy, found.divergence
        if self.chosen is not None:
            self.numbers["chosen"][at] = found.chosen_probability
            self.numbers["rank"][at] = found.chosen_rank
        self.known[at] = True

    def cells(self, window: Window) -> dict[str, Any]:
        """A window as the table takes it."""
        r0, r1, c0, c1 = window
        return {
            "key": self.key,
            "row": r0,
            "column": c0,
            "cells": [[self._cell(row, column) for column in range(c0, c1)] for row in range(r0, r1)],
        }

    def _cell(self, row: int, column: int) -> dict[str, Any]:
        cell = {name: float(numbers[row, column]) for name, numbers in self.numbers.items()}
        if self.chosen is None:
            cell |= {"chosen": None, "rank": None}
        pieces = self.run.model.pieces(self.token_ids[row, column].tolist())
        return cell | {
            "pieces": visible(pieces),
            "probabilities": self.probabilities[row, column].tolist(),
        }


class LensPane(Pane):
    """The table, the chosen token through the layers, and the layers of inference."""

    reads: ClassVar = ("run", "baseline", "position", "metric")

    def __init__(self, session: Any, **params: Any):
        super().__init__(session, **params)
        dark = self.param.dark
        self._window: Window | None = None  # what is in view, as the page said last
        self._known: _Known | None = None
        self._n_runs = 0
        self._row = -1  # the selected row; −1 for that of the output
        self.table = LensTable(self._told, dark=dark, visible=False)
        self.colour = select("Colour", COLOURS, 192, "What the colour of a cell tells")
        self.token = pmui.TextInput(
            label="Chosen token",
            placeholder="the likeliest at the end",
            description="One token, with its space: ' Paris'; empty for the metric's answer, or what is predicted",
            width=152,
            size="small",
            margin=0,
        )
        self.from_b = pmui.Switch(
            label="From text B",
            value=False,
            size="small",
            margin=0,
            description="What is dragged onto another cell is read from the run on text B, in place of this one",
        )
        self.layers = pmui.IntRangeSlider(
            label="Layers run",
            start=0,
            end=1,
            value=(0, 1),
            width=192,
            size="small",
            margin=(0, theme.UNIT),
            description=LAYERS_RUN,
        )
        self._trouble = Notice(dark=dark, tone="warning")
        self._heading = Notice(dark=dark, tone="heading", margin=(theme.UNIT, 0, 0, 0))
        self.probability = LayerCurve("probability", "probability", dark=dark)
        self.rank = LayerCurve("rank", "rank", log=True, dark=dark)
        self._taking = False
        self.colour.param.watch(lambda event: self.table.param.update(colour=COLOURS[event.new]), "value")
        self.token.param.watch(lambda event: self.refresh(), "value_input")
        self.layers.param.watch(lambda event: self._taking or self._cut(event.new), "value_throttled")
        watch = session.param.watch
        self._watchers = [
            watch(lambda *events: self._mark(), ["interventions", "selection", "position"]),
            watch(lambda event: self._offer(), ["model", "interventions", "text_b"]),
        ]
        self._layout = self._laid_out()
        self._offer()
        self.refresh()

    def close(self) -> None:
        """Stop watching the session."""
        super().close()
        for watcher in self._watchers:
            self.session.param.unwatch(watcher)
        self._known = None

    # What is computed

    def measure(self, run: Any, baseline: Any, position: int, metric: Any) -> dict[str, Any]:
        at = min(position, run.n_pos - 1) % run.n_pos
        chosen, trouble = self._chosen(run, at, metric)
        known = self._known
        if known is None or known.run is not run or known.chosen != chosen:
            self._n_runs += 1
            known = _Known.of(run, chosen, str(self._n_runs))
        n_rows = run.model.spec.n_layers + 1
        r0, r1, c0, c1 = self._window or (0, 0, 0, 0)
        window = min(r0, n_rows), min(r1, n_rows), min(c0, run.n_pos), min(c1, run.n_pos)
        known.read(window)
        column = (0, n_rows, at, at + 1)
        known.read(column)
        before = known
        if baseline is not run:
            before = _Known.of(baseline, chosen, "")
            before.read(column)
        return {
            "known": known,
            "cells": known.cells(window),
            "pieces": visible(run.tokens),
            "curves": {
                name: (known.numbers[name][:, at], before.numbers[name][:, at]) for name in ("chosen", "rank")
            },
            "chosen": visible(run.model.pieces([chosen]))[0] if chosen is not None else "",
            "position": at,
            "trouble": trouble,
        }

    def _chosen(self, run: Any, position: int, metric: Any) -> tuple[int | None, str]:
        """The token whose way through the layers is shown, and what is wrong with the one that was typed."""
        trouble = ""
        if self.token.value_input:
            try:
                return run.model.text.token_id(self.token.value_input), ""
            except TranspectorError as error:
                trouble = str(error)
        elif metric.kind != "loss" and metric.answer:
            try:
                return run.model.text.token_id(metric.answer), ""
            except TranspectorError:  # the metric says so itself
                pass
        return int(run.logits[position].argmax()), trouble

    def show(self, numbers: dict[str, Any]) -> None:
        known = self._known = numbers["known"]
        n_layers = known.run.model.spec.n_layers
        rows = [*(f"L{layer}" for layer in range(n_layers)), "out"]
        self._trouble.text = numbers["trouble"]
        self.table.param.update(
            rows=rows,
            pieces=numbers["pieces"],
            d_vocab=known.run.model.spec.d_vocab,
            chosen=numbers["chosen"],
            cells=numbers["cells"],
            visible=True,
        )
        self._heading.text = (
            f"{numbers['chosen']} through the layers, after position {numbers['position']} "
            f"({numbers['pieces'][numbers['position']]})"
        )
        named = [*(f"before layer {layer}" for layer in range(n_layers)), "the output"]
        marked = self._selected_row()
        now, before = numbers["curves"]["chosen"]
        self.probability.show(now, before, named, marked)
        now, before = numbers["curves"]["rank"]
        self.rank.show(now + 1, before + 1, named, marked)
        self._mark()

    def refuse(self, reason: str) -> None:
        self._known = None
        self._trouble.text, self._heading.text = reason, ""
        self.table.visible = self.probability.figure.visible = self.rank.figure.visible = False

    # What the page says

    def _told(self, message: dict[str, Any]) -> None:
        if message["do"] == "view":
            (r0, r1), (c0, c1) = message["rows"], message["columns"]
            self._window = int(r0), int(r1), int(c0), int(c1)
            self.refresh()
        elif message["do"] == "select":
            self._select(int(message["row"]), int(message["column"]))
        elif message["do"] == "drop":
            self._patch(message["source"], message["target"])

    def _select(self, row: int, column: int) -> None:
        self._row = row
        is_last = row >= self.session.model.spec.n_layers
        selection = self.session.selection if is_last else [f"L{row}.resid_pre"]
        self.session.param.update(selection=selection, position=column)
        self._mark()

    def _patch(self, source: list[int], target: list[int]) -> None:
        """What a cell that is dropped on another stands for."""
        from transpector.state.graph import drawn, graph  # brings torch

        session, run = self.session, self.session.run
        parts = graph(run.model)
        text = session.text_b if self.from_b.value else None
        try:
            for row, _ in (source, target):
                if row >= run.model.spec.n_layers:
                    raise TranspectorError(
                        "The output is no activation that can be patched. Take the stream before the last layer."
                    )
            one, other = (parts[f"L{row}.resid_pre"].at(int(column)) for row, column in (source, target))
            session.add(drawn(run.model, one, other, run.n_pos, text, run.question.bos))
        except TranspectorError as error:
            self._trouble.text = str(error)
            return
        self._trouble.text = ""

    def _cut(self, layers: tuple[int, int]) -> None:
        """Skip what lies outside, in place of what was skipped at the ends before."""
        n_layers = self.session.model.spec.n_layers
        first, last = int(layers[0]), int(layers[1])
        kept = [i for i in self.session.interventions if not _is_end(i, n_layers)]
        ends = [Skip(0, first - 1)] if first else []
        ends += [Skip(last + 1, n_layers - 1)] if last < n_layers - 1 else []
        self.session.interventions = [*kept, *ends]

    # What is marked

    def _offer(self) -> None:
        session = self.session
        self.from_b.disabled = not session.text_b
        if session.model is None:
            return
        n_layers = session.model.spec.n_layers
        ends = [i for i in session.interventions if i.enabled and _is_end(i, n_layers)]
        first = max([i.last + 1 for i in ends if i.first == 0], default=0)
        last = min([i.first - 1 for i in ends if i.last == n_layers - 1], default=n_layers - 1)
        parts = ("attn_out", "mlp_out") if session.model.spec.d_mlp else ("attn_out",)
        health = session.model.health
        unable = [health.abilities[kind].reason for kind in parts if not health.can_write(kind)]
        self._taking = True
        try:
            self.layers.param.update(
                start=0,
                end=max(1, n_layers - 1),
                value=(min(first, last), max(first, last)),
                disabled=n_layers < 2 or bool(unable),
                description=f"Layers can't be skipped here: {unable[0]}" if unable else LAYERS_RUN,
            )
        finally:
            self._taking = False

    def _selected_row(self) -> int | None:
        site = next((site for site in self.session.sites if site.kind == "resid_pre"), None)
        if site is not None:
            return site.layer
        return self._row if self._row >= 0 else None

    def _mark(self) -> None:
        session, run = self.session, self.session.run
        if run is None or not self.in_view:
            return
        marks = []
        for verb, site in session.changes:
            if site.kind == "resid_pre" and site.layer < run.model.spec.n_layers:
                columns = positions_of(site, run.n_pos)
                if columns:
                    marks.append(
                        {
                            "row": site.layer,
                            "columns": [columns[0], columns[-1] + 1],
                            "state": theme.STATES[verb],
                        }
                    )
        row = self._selected_row()
        at = min(session.position, run.n_pos - 1) % run.n_pos
        self.table.param.update(marks=marks, selected=(run.model.spec.n_layers if row is None else row, at))

    def _laid_out(self) -> pn.Column:
        gap = {"gap": f"{theme.UNIT}px"}
        wide = {"sizing_mode": "stretch_width"}
        return pn.Column(
            pn.FlexBox(
                self.colour,
                self.token,
                self.layers,
                self.from_b,
                align_items="center",
                gap=f"{theme.UNIT}px",
                **wide,
            ),
            self._trouble,
            self.table,
            self._heading,
            pn.Row(
                *(
                    pn.Column(curve, styles={"flex": "1 1 0", "min-width": "0"}, **wide)
                    for curve in (self.probability, self.rank)
                ),
                styles={"gap": f"{2 * theme.UNIT}px"},
                **wide,
            ),
            styles=gap,
            **wide,
        )

    def __panel__(self) -> Any:
        return self._layout


def _is_end(intervention: Any, n_layers: int) -> bool:
    """Whether layers are skipped at the beginning or at the end of the model."""
    return isinstance(intervention, Skip) and (intervention.first == 0 or intervention.last == n_layers - 1)
