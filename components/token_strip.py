"""The token strip: the text as boxes, coloured by the attention from or to one token, or by the metric's gradient."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import param
from panel.custom import JSComponent

from transpector.components import theme
from transpector.components.base import Pane, visible
from transpector.components.parts import gradient
from transpector.state.errors import SiteError


class TokenStrip(JSComponent):
    """The text, token by token; the one under the pointer shows what it attends to, a click holds it.

    The pieces are drawn as they come: marks for spaces, line ends and bytes are the caller's. A leading `·`
    and every `⏎` and `⇥` are drawn quietly, and a line ends after a `⏎`.
    """

    pieces = param.List(default=[], item_type=str, doc="The tokens, as they are to be shown.")
    ids = param.List(default=[], item_type=int, doc="The tokens' ids in the vocabulary; may be empty.")
    patterns = param.Bytes(
        default=b"",
        doc="""
        uint8 [scope, query, key], 255 × probability; the scopes are the selected head, the mean over its
        layer, and the mean over all heads.""",
    )
    head = param.String(
        default="", doc="The selected head's name, such as L5H1, for the button of the scope."
    )
    scope = param.Selector(
        default="head",
        objects=["head", "layer", "all", "saliency"],
        doc="Which of the three patterns gives the colours, or else ``saliency``.",
    )
    saliency = param.Bytes(
        default=b"", doc="float32 [pos], from zero; the largest has the last colour. Empty until it is known."
    )
    saliency_of = param.String(default="metric", doc="What the saliency is the gradient of.")
    saliency_unit = param.String(doc="Its unit.")
    unable = param.String(doc="Why there is no saliency; empty if nothing is in the way of it.")
    direction = param.Selector(
        default="from",
        objects=["from", "to"],
        doc="""
        `from`: what the token attends to; `to`: which tokens attend to it.""",
    )
    position = param.Integer(
        default=None,
        allow_None=True,
        doc="""
        The selected position; None for none. Both ways: a click or an arrow sets it, Escape clears it.""",
    )
    lines = param.Integer(
        default=6, bounds=(1, None), doc="How many lines of tokens to show before scrolling."
    )
    dark = param.Boolean(default=False, doc="Whether the page is dark.")
    palette = param.Bytes(
        default=theme.sequential_bytes(), constant=True, doc="uint8 [ground, entry, channel]: the two scales."
    )

    _esm = Path(__file__).parent / "token_strip.js"
    _constants = theme.constants()

    def __init__(self, **params):
        params.setdefault("sizing_mode", "stretch_width")
        super().__init__(**params)


class TextStrip(Pane):
    """The newest run's text, coloured by the selected head's attention; a click selects a position."""

    reads: ClassVar = ("run", "head")

    def __init__(self, session: Any, **params: Any):
        super().__init__(session, **params)
        self.strip = TokenStrip(dark=self.param.dark, lines=3)
        self.strip.param.watch(self._select, "position")
        session.param.watch(self._follow, "position")
        self.saliency = Saliency(session, self.strip)

    def measure(self, run: Any, head: tuple[int, int]) -> dict[str, Any]:
        from transpector.state.measure import (
            strip_patterns,
        )  # brings torch, which the first paint does not wait for

        return {
            "pieces": visible(run.tokens),
            "ids": run.token_ids.tolist(),
            "patterns": strip_patterns(run, *head).tobytes(),
            "head": "L{}H{}".format(*head),
            "run": run,
        }

    def show(self, numbers: dict[str, Any]) -> None:
        if numbers.pop("run") is not self.saliency.run:
            numbers["saliency"] = b""  # of another text, it may be
        held = self.strip.position
        if held is not None and held >= len(numbers["pieces"]):
            numbers |= {"position": None}
        self.strip.param.update(**numbers)

    def _select(self, event: Any) -> None:
        self.session.position = -1 if event.new is None else event.new

    def _follow(self, event: Any) -> None:
        if event.new != -1 and event.new != self.strip.position:
            self.strip.position = event.new
        elif event.new == -1:
            self.strip.position = None

    def __panel__(self) -> Any:
        return self.strip


class Saliency(Pane):
    """The norm of the metric's gradient at what each token puts into the stream, while a strip is coloured by it."""

    reads: ClassVar = ("run", "metric")

    def __init__(self, session: Any, strip: TokenStrip, **params: Any):
        super().__init__(session, in_view=strip.scope == "saliency", **params)
        self.strip, self.run = strip, None
        strip.param.watch(self._open, "scope")
        session.param.watch(lambda *events: self._offer(), ["run", "metric"])
        session.param.watch(lambda event: self._rest(), "state")

    def measure(self, run: Any, metric: Any) -> dict[str, Any]:
        reason = _unsalient(run, metric)
        if reason:
            raise SiteError(reason)
        found = gradient.measured(self.session, run, metric)
        return {"run": run, "metric": metric, "saliency": found.saliency}

    def show(self, numbers: dict[str, Any]) -> None:
        self.run, metric = numbers["run"], numbers["metric"]
        self.strip.param.update(
            saliency=numbers["saliency"].astype(np.float32).tobytes(),
            saliency_of=metric.label,
            saliency_unit=f"{metric.unit} per unit",
        )

    def refuse(self, reason: str) -> None:
        self.run = None
        self.strip.param.update(saliency=b"", unable=reason)

    def _open(self, event: Any) -> None:
        self.in_view = event.new == "saliency"

    def _offer(self) -> None:
        """Grey it out where there is none, with the reason; until it is known anew, there is none either."""
        session = self.session
        if session.run is not None:
            self.strip.unable = _unsalient(session.run, session.metric)
        if self.run is not session.run or not gradient.is_known(self.run, session.metric):
            self.run = None
            self.strip.saliency = b""

    def _rest(self) -> None:
        """Measure what was given up for a question that came between, and may have had no answer."""
        if self.session.state == "idle" and self.run is None and not self.strip.unable:
            self.refresh()


def _unsalient(run: Any, metric: Any) -> str:
    """Why tokens have no saliency."""
    ability = run.model.health.abilities["embed"]
    hidden = "" if ability.write else f"The embedding can't be reached here: {ability.reason}"
    return gradient.unable(run, metric) or hidden
