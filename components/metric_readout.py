"""Metric readout: the app's one number, for the baseline, now, and the difference."""

from dataclasses import replace
from typing import Any, ClassVar

import panel as pn
import panel_material_ui as pmui

from transpector.components import theme
from transpector.components.base import Pane, figures
from transpector.components.parts.notice import Notice
from transpector.state.errors import TranspectorError
from transpector.state.metric import Metric

KINDS = {"Mean loss": "loss", "Log-probability": "log_prob", "Logit difference": "logit_diff"}


class MetricReadout(Pane):
    """Choose the metric and read it: the baseline in grey, now in the accent."""

    reads: ClassVar = ("run", "baseline", "metric")

    def __init__(self, session: Any, **params: Any):
        super().__init__(session, **params)
        labels = {kind: label for label, kind in KINDS.items()}
        self._kind = pmui.Select(
            label="Metric",
            options=list(KINDS),
            value=labels[session.metric.kind],
            size="small",
            margin=0,
            sizing_mode="stretch_width",
        )
        self._answer = _token("Answer", session.metric.answer)
        self._distractor = _token("Distractor", session.metric.distractor)
        self._position = pmui.IntInput(
            label="After position",
            value=session.metric.position,
            size="small",
            margin=0,
            sizing_mode="stretch_width",
            description="-1 is the last token",
        )
        gap = {"gap": f"{theme.UNIT}px"}
        self._tokens = pn.Row(sizing_mode="stretch_width", styles=gap)
        self._fields = pn.Column(sizing_mode="stretch_width", styles=gap)
        self._numbers = {
            name: Notice(dark=self.param.dark, tone=tone)
            for name, tone in (("baseline", "quiet"), ("now", "big"), ("difference", "quiet"))
        }
        self._trouble = Notice(dark=self.param.dark, tone="warning")
        for widget, name in (
            (self._kind, "value"),
            (self._answer, "value_input"),
            (self._distractor, "value_input"),
            (self._position, "value"),
        ):
            widget.param.watch(self._choose, name)
        self._arrange()

    def _choose(self, *events: Any) -> None:
        self._arrange()
        changes = {"kind": KINDS[self._kind.value], "position": self._position.value}
        for event in events:  # as it is typed
            if event.name == "value_input":
                changes["answer" if event.obj is self._answer else "distractor"] = event.new
        self.session.metric = replace(self.session.metric, **changes)

    def _arrange(self) -> None:
        kind = KINDS[self._kind.value]
        self._tokens[:] = [self._answer, self._distractor] if kind == "logit_diff" else [self._answer]
        self._fields[:] = [] if kind == "loss" else [self._tokens, self._position]

    def measure(
        self, run: Any, baseline: Any, metric: Metric
    ) -> tuple[Metric, float | None, float | None, str]:
        try:
            return metric, metric.of(baseline), metric.of(run), ""
        except TranspectorError as error:
            return metric, None, None, str(error)

    def show(self, numbers: tuple[Metric, float | None, float | None, str]) -> None:
        metric, before, now, trouble = numbers
        self._trouble.text = trouble
        difference = None if now is None else now - before
        self._numbers["now"].param.update(
            text="" if trouble else f"{figures(now)} {metric.unit}", hint=metric.label
        )
        self._numbers["baseline"].text = "" if trouble else f"baseline {figures(before)}"
        self._numbers["difference"].text = "" if trouble else f"difference {figures(difference, signed=True)}"

    def __panel__(self) -> Any:
        return pn.Column(
            self._kind,
            self._fields,
            pn.Row(
                self._numbers["now"],
                pn.Column(
                    self._numbers["baseline"], self._numbers["difference"], sizing_mode="stretch_width"
                ),
                sizing_mode="stretch_width",
                align="center",
            ),
            self._trouble,
            sizing_mode="stretch_width",
            styles={"gap": f"{theme.UNIT}px"},
        )


def _token(label: str, value: str) -> pmui.TextInput:
    return pmui.TextInput(
        label=label,
        value=value,
        size="small",
        margin=0,
        sizing_mode="stretch_width",
        placeholder="one token",
        description="One token, with its space: ' Paris'",
    )
