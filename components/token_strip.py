"""The token strip: the text as boxes, coloured by the attention from or to one token, or by a number of each token."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import param
from jaxtyping import Float
from panel.custom import JSComponent

from transpector.components import theme
from transpector.components.base import Pane, figures, visible
from transpector.components.parts import gradient
from transpector.components.parts.unit import name_of, unit_of
from transpector.state.errors import SiteError

_DIVERGING = np.stack([theme.diverging(False), theme.diverging(True)]).tobytes()


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
        objects=["head", "layer", "all", "activation", "saliency"],
        doc="What gives the colours: one of the three patterns, or else ``numbers`` of that name.",
    )
    numbers = param.Dict(
        default={},
        doc="""
        By scope, a number for each token: ``values``, float32 [pos], empty until they are known; ``top``, that
        of the strongest colour; ``beyond``, what there is to say of larger ones; ``signed``, whether the colours
        are about zero; ``unit``; ``says``, what it is; of the button ``name`` and ``hint``; ``unable``, why
        there is none, empty if nothing is in the way.""",
    )
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
        default=theme.sequential_bytes() + _DIVERGING,
        constant=True,
        doc="uint8 [scale, ground, entry, channel]: the two scales from zero, then the two about zero.",
    )

    _esm = Path(__file__).parent / "token_strip.js"
    _constants = theme.constants()

    def __init__(self, **params):
        params.setdefault("sizing_mode", "stretch_width")
        super().__init__(**params)


class TextStrip(Pane):
    """The newest run's text, coloured by what is selected; a click selects a position."""

    reads: ClassVar = ("run", "head")

    def __init__(self, session: Any, **params: Any):
        super().__init__(session, **params)
        self.strip = TokenStrip(dark=self.param.dark, lines=3)
        self.strip.param.watch(self._select, "position")
        self._follows = session.param.watch(self._follow, "position")
        self.numbers = (Activation(session, self.strip), Saliency(session, self.strip))

    def close(self) -> None:
        """Stop watching the session."""
        super().close()
        self.session.param.unwatch(self._follows)
        for each in self.numbers:
            each.close()

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
        run = numbers.pop("run")
        for each in self.numbers:
            each.leave(run)
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


class TokenNumbers(Pane):
    """A number for each token, measured while a strip is coloured by it; ``measure`` gives the run and what is told."""

    scope: ClassVar[str]

    def __init__(self, session: Any, strip: TokenStrip, **params: Any):
        super().__init__(session, in_view=strip.scope == self.scope, **params)
        self.strip, self.run = strip, None
        self.tell(values=b"", top=0.0, beyond="", signed=False, unit="", says="")
        self.tell(name=self.scope, hint="", unable="")
        strip.param.watch(self._open, "scope")
        self._offers = session.param.watch(lambda *events: self.offer(), list(self.reads))
        self.offer()

    def close(self) -> None:
        """Stop watching the session."""
        super().close()
        self.session.param.unwatch(self._offers)
        self.run = None

    def offer(self) -> None:
        """Say what there is to choose, or grey it out with the reason."""
        raise NotImplementedError

    def show(self, numbers: tuple[Any, Float[np.ndarray, " pos"], dict[str, Any]]) -> None:
        self.run, values, told = numbers
        self.tell(values=values.astype(np.float32).tobytes(), **told)

    def refuse(self, reason: str) -> None:
        self.forget()
        self.tell(unable=reason)

    def forget(self) -> None:
        """Show none until they are measured anew."""
        self.run = None
        self.tell(values=b"")

    def leave(self, run: Any) -> None:
        """Forget those of another text than this run's."""
        if self.run is not None and self.run.question.token_ids != run.question.token_ids:
            self.forget()

    def tell(self, **told: Any) -> None:
        """Change what the strip is told of these."""
        known = self.strip.numbers.get(self.scope, {})
        if any(name not in known or known[name] != value for name, value in told.items()):
            self.strip.numbers = {**self.strip.numbers, self.scope: {**known, **told}}

    def _open(self, event: Any) -> None:
        self.in_view = event.new == self.scope


class Activation(TokenNumbers):
    """The activation of the selected neuron or dimension; to select one shows it."""

    reads: ClassVar = ("run", "selection")
    scope = "activation"

    def __init__(self, session: Any, strip: TokenStrip, **params: Any):
        self._unit: Any = None
        super().__init__(session, strip, **params)

    def measure(self, run: Any, selection: list[str]) -> tuple[Any, np.ndarray, dict[str, Any]]:
        unit = unit_of(selection, run.model.spec)
        if unit is None:
            raise SiteError(_SELECT_ONE)
        values = run.activation(unit)
        # The first token's may be a hundred times the others'.
        top = float(np.abs(values[1:]).max(initial=0) or np.abs(values[0]))
        first = float(values[0])
        beyond = f"first token {figures(first, signed=True)}" if abs(first) > top else ""
        says = f"activation of {name_of(unit)}"
        return run, values, {"top": top, "beyond": beyond, "signed": True, "says": says}

    def offer(self) -> None:
        model, before = self.session.model, self._unit
        unit = None if model is None else unit_of(self.session.selection, model.spec)
        self._unit = unit
        if unit != before:
            self.forget()
        unable = _SELECT_ONE
        if unit is not None:
            ability = model.health.abilities[unit.kind]
            unable = "" if ability.read else f"{unit.kind} can't be read here: {ability.reason}"
        name = "neuron" if unit is None else name_of(unit)
        self.tell(name=name, hint=f"Colour each token by the activation of {name}", unable=unable)
        if unit != before and not unable:
            self.strip.scope = self.scope
        elif unable and self.strip.scope == self.scope:
            self.strip.scope = "head"


class Saliency(TokenNumbers):
    """The norm of the metric's gradient at what each token puts into the stream."""

    reads: ClassVar = ("run", "metric")
    scope = "saliency"

    def __init__(self, session: Any, strip: TokenStrip, **params: Any):
        super().__init__(session, strip, **params)
        self._rests = session.param.watch(lambda event: self._rest(), "state")

    def close(self) -> None:
        """Stop watching the session."""
        super().close()
        self.session.param.unwatch(self._rests)

    def measure(self, run: Any, metric: Any) -> tuple[Any, np.ndarray, dict[str, Any]]:
        reason = _unsalient(run, metric)
        if reason:
            raise SiteError(reason)
        values = gradient.measured(self.session, run, metric).saliency
        says = f"norm of the gradient of the {metric.label}"
        return run, values, {"top": float(values.max()), "unit": f"{metric.unit} per unit", "says": says}

    def offer(self) -> None:
        """Grey it out where there is none, with the reason; until it is known anew, there is none either."""
        session = self.session
        self.tell(
            hint=f"Colour each token by the gradient of the {session.metric.label} with respect to it",
            unable="" if session.run is None else _unsalient(session.run, session.metric),
        )
        is_new = self.run is not session.run
        if is_new or (self.run is not None and not gradient.is_known(self.run, session.metric)):
            self.forget()

    def _rest(self) -> None:
        """Measure what was given up for a question that came between, and may have had no answer."""
        if self.session.state == "idle" and self.run is None and not self.strip.numbers[self.scope]["unable"]:
            self.refresh()


_SELECT_ONE = "Select one neuron, or one dimension of the stream, in the Neurons tab: each token then takes the colour of its activation."


def _unsalient(run: Any, metric: Any) -> str:
    """Why tokens have no saliency."""
    ability = run.model.health.abilities["embed"]
    hidden = "" if ability.write else f"The embedding can't be reached here: {ability.reason}"
    return gradient.unable(run, metric) or hidden
