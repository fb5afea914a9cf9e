"""Continuation: the text continued token by token, under the interventions, with the baseline's beside it."""

import time
from typing import Any

import panel as pn
import panel_material_ui as pmui
import param
from panel.viewable import Viewer

from transpector.components import theme
from transpector.components.base import visible
from transpector.components.parts.notice import Notice
from transpector.components.parts.sweep_form import button
from transpector.components.parts.token_flow import TokenFlow
from transpector.state.errors import TranspectorError
from transpector.state.session import Session

PAUSE = 0.1  # s between two pictures of a continuation in the making
N_CONTEXT = 12  # tokens of the prompt that are shown before it

_INTRODUCTION = (
    "Continue the text, token by token, with the interventions in force for every new token, and without them beside it. "
    "What is generated can then be inspected like any text."
)
_STALE = "This continues the text and interventions before; generate again."
_BUG = "Something went wrong inside Transpector ({}). The log has the details."
_ENDS = {"length": "", "end of text": "end of text", "context": "the model's context is full", "": ""}


class Continuation(Viewer):
    """Choose how tokens are drawn, generate, stop, and inspect what came of it."""

    session = param.ClassSelector(class_=Session, doc="The question and its answer.")
    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")
    in_view = param.Boolean(default=True, allow_refs=True, doc="Whether its tab is open.")

    def __init__(self, session: Session, **params: Any):
        super().__init__(session=session, **params)
        self.now, self.before = _Side("now", self), _Side("baseline", self)
        self._told, self._posted = 0.0, False
        small = {"size": "small", "margin": 0}
        self.n_tokens = pmui.IntInput(
            label="New tokens", value=32, start=1, end=4096, width=104, description="At most so many", **small
        )
        self.temperature = pmui.FloatInput(
            label="Temperature",
            value=0.0,
            start=0.0,
            end=100.0,
            step=0.1,
            width=112,
            description="0 takes the likeliest token each time; 1 draws from the model's own probabilities",
            **small,
        )
        self.top_k = pmui.IntInput(
            label="Top-k",
            value=0,
            start=0,
            width=88,
            description="Draw from the k likeliest; 0 draws from all",
            **small,
        )
        self.seed = pmui.IntInput(
            label="Seed",
            value=0,
            start=0,
            width=88,
            description="The same seed draws the same tokens",
            **small,
        )
        # No label by the pointer: it would lie on the way to the other button.
        self.begin = button("Generate", "play_arrow", "", "contained")
        self.stop = button("Stop", "stop", "Stop here; what there is stays", "outlined")
        self.follow = pmui.Switch(
            label="Again at every change",
            value=False,
            description="Generate anew whenever the text or an intervention changes, as while a strength is being set",
            **small,
        )
        self.says = Notice(dark=self.param.dark)
        self.trouble = Notice(dark=self.param.dark, tone="warning")
        self.stale = Notice(dark=self.param.dark)
        self._intro = Notice(text=_INTRODUCTION, dark=self.param.dark)
        self.begin.on_click(lambda event: self.generate())
        self.stop.on_click(lambda event: self.halt())
        self._watchers = [
            session.param.watch(self._clear, "model"),
            session.param.watch(self._age, "run"),
        ]
        self.param.watch(self._age, "in_view")
        self._layout = self._laid_out()
        self._tell()

    def close(self) -> None:
        """Stop watching the session, and give up what is under way."""
        for watcher in self._watchers:
            self.session.param.unwatch(watcher)
        self._clear()

    @property
    def sides(self) -> tuple["_Side", ...]:
        """Now, and the baseline."""
        return (self.now, self.before)

    @property
    def busy(self) -> bool:
        """Whether more is to come."""
        return any(side.generation is not None and not side.generation.is_over for side in self.sides)

    def generate(self) -> None:
        """Begin anew; the baseline too if there are interventions to tell it from."""
        from transpector.state.generation import generate  # brings torch, which is here once a model is

        self.halt()
        changed = any(i.enabled for i in self.session.interventions)
        drawn = {
            "temperature": self.temperature.value or 0.0,
            "top_k": self.top_k.value or None,
            "seed": self.seed.value or 0,
        }
        try:
            self.now.generation = generate(self.session, self.n_tokens.value or 1, **drawn)
            self.before.generation = (
                generate(self.session, self.n_tokens.value or 1, baseline=True, **drawn) if changed else None
            )
        except TranspectorError as error:
            self.trouble.text = str(error)
            return
        self.trouble.text = self.stale.text = ""
        for side in self.sides:
            side.begin()
        self._tell()

    def halt(self) -> None:
        """Stop both; what there is stays."""
        for side in self.sides:
            if side.generation is not None:
                side.generation.cancel()

    def hear(self) -> None:
        """On the worker's thread, for every token: the page is told now and then, and at the end."""
        if not self.busy or not (self._posted or time.monotonic() - self._told < PAUSE):
            self._posted = True
            self.session.inbox.post(self._tell)

    def _tell(self) -> None:
        self._posted = False
        with pn.io.hold():
            parted = self._parted()
            for side in self.sides:
                side.tell(parted)
            generation = self.now.generation
            self._intro.visible = generation is None
            self.stop.disabled = not self.busy
            errors = [side.generation.error for side in self.sides if side.generation is not None]
            error = next(filter(None, errors), None)
            if error is not None:
                expected = isinstance(error, TranspectorError)
                self.trouble.text = str(error) if expected else _BUG.format(type(error).__name__)
            self.says.text = "" if generation is None else self._said()
        self._told = time.monotonic()

    def _said(self) -> str:
        sides = [side.generation for side in self.sides if side.generation is not None]
        done, total = sum(each.done for each in sides), sum(each.total for each in sides)
        pace = done / max(1e-3, max(each.elapsed for each in sides))
        if self.busy:
            left = f" · {(total - done) / pace:.0f} s left" if done else ""
            return f"{done} of {total} tokens{left}"
        cancelled = any(each.state == "cancelled" for each in sides)
        return f"{'Stopped after' if cancelled else ''} {done} tokens, {pace:.1f} a second".strip()

    def _parted(self) -> int:
        """The first new token in which the two continuations differ; −1 while there is none."""
        if self.before.generation is None or self.now.generation is None:
            return -1
        pairs = zip(self.now.generation.new_ids, self.before.generation.new_ids, strict=False)
        return next((at for at, (one, other) in enumerate(pairs) if one != other), -1)

    def _clear(self, *events: Any) -> None:
        """Forget what another model said."""
        self.halt()
        for side in self.sides:
            side.generation = None
        self.stale.text = self.trouble.text = ""
        self._tell()

    def _age(self, *events: Any) -> None:
        """Say so when what is on the page continues something else, or begin anew if that is wanted."""
        run, generation = self.session.run, self.now.generation
        if not self.in_view or run is None or generation is None:
            return
        if generation.question == run.question or generation.token_ids == run.question.token_ids:
            self.stale.text = ""
        elif self.follow.value:
            self.generate()
        else:
            self.stale.text = _STALE

    def _laid_out(self) -> pn.Column:
        gap = {"gap": f"{theme.UNIT}px"}
        wide = {"sizing_mode": "stretch_width"}
        return pn.Column(
            pn.FlexBox(
                self.n_tokens,
                self.temperature,
                self.top_k,
                self.seed,
                self.begin,
                self.stop,
                self.follow,
                align_items="center",
                gap=f"{theme.UNIT}px",
                **wide,
            ),
            self.trouble,
            self.stale,
            self.says,
            self._intro,
            pn.Row(
                self.now.layout,
                self.before.layout,
                styles={"gap": f"{3 * theme.UNIT}px"},
                **wide,
            ),
            styles=gap,
            **wide,
        )

    def __panel__(self) -> Any:
        return self._layout


class _Side:
    """One of the two continuations, as it is shown."""

    def __init__(self, name: str, pane: Continuation):
        self.generation: Any = None
        self._pane, self._name = pane, name
        dark = pane.param.dark
        self._title = Notice(tone="heading", dark=dark)
        self.flow = TokenFlow(label=f"Continuation, {name}", dark=dark)
        self.inspect = button(
            "Inspect", "search", "Read this text, with what was generated, in every view", "text"
        )
        self.inspect.on_click(self._inspect)
        self.layout = pn.Column(
            pn.Row(self._title, self.inspect, sizing_mode="stretch_width", align="center"),
            self.flow,
            sizing_mode="stretch_width",
            styles={"flex": "1 1 0", "min-width": "0"},
            visible=False,
        )

    def begin(self) -> None:
        generation = self.generation
        if generation is None:
            return
        prompt = generation.question.token_ids
        tail = "".join(generation.model.pieces(prompt[-N_CONTEXT:]))
        self.flow.param.update(
            context=("…" if len(prompt) > N_CONTEXT else "") + tail, first=len(prompt), tokens=[]
        )
        generation.watch(self._pane.hear)

    def tell(self, parted: int) -> None:
        generation = self.generation
        self.layout.visible = generation is not None
        if generation is None:
            return
        n_changes = len(generation.question.interventions)
        with_changes = f"With {n_changes} intervention{'s' * (n_changes != 1)}"
        self._title.text = with_changes if n_changes else "Baseline, without interventions"
        n = min(generation.done, len(generation.probabilities))  # they come in on another thread
        self.flow.param.update(
            tokens=list(zip(visible(generation.tokens[:n]), generation.probabilities[:n], strict=True)),
            parted=parted if self._name == "now" else -1,
            end=_ENDS[generation.ended] if generation.is_over else "",
            busy=not generation.is_over,
        )
        self.inspect.disabled = not generation.done

    def _inspect(self, event: Any) -> None:
        self._pane.session.token_ids = list(self.generation.token_ids)
