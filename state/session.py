"""Session: one user's question, and its newest answer."""

import logging
import re
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import param

from transpector.state.chat import Message, has_template, rendered
from transpector.state.effects import log_failure, measure_effects
from transpector.state.errors import Cancelled, InterventionError, ModelError, TranspectorError
from transpector.state.history import History
from transpector.state.inbox import Inbox
from transpector.state.interventions import Freeze, Intervention, Question
from transpector.state.metric import Metric
from transpector.state.notes import Note, noted
from transpector.state.sites import Site
from transpector.state.store import STORE, Loading

if TYPE_CHECKING:
    from concurrent.futures import Future

    from transpector.state.models import Model
    from transpector.state.task import Task

_log = logging.getLogger(__name__)

TYPING_PAUSE = 0.15  # s without a keystroke before a text is run
PROGRESS_PAUSE = 0.1  # s between two reports of progress

_HEAD = re.compile(r"L(\d+)H(\d+)\.[zq]")
_QUESTION = ["model", "text", "token_ids", "bos", "interventions", "metric"]


class Session(param.Parameterized):
    """The question (model, text, interventions, …) and the newest answer (run, baseline), one of each a user.

    Setting a part of the question starts a run on the model's worker; the newest question wins, and the last good
    answer stays until then. ``wait`` blocks until it is there. The parameters of the answer are to be read.

    A session belongs to one thread, for parameters can't be set from two. ``schedule`` is given a function whenever
    one is to change, and has it called on that thread: a page's event loop. Without it they change in ``wait``.
    """

    model = param.Parameter(doc="The Model; a name, a path or a TransformerBridge when the session is made.")
    text = param.String(doc="The text that the model reads.")
    token_ids = param.List(
        default=None,
        allow_None=True,
        doc="Ids to read as they are, in place of the text; setting a text clears them.",
    )
    bos = param.Boolean(
        default=None,
        allow_None=True,
        doc="Begin with the BOS token; None does as the model's tokenizer does.",
    )
    messages = param.List(
        default=[],
        item_type=Message,
        doc="A chat, which the model's template makes the text of; another text clears it.",
    )
    interventions = param.List(
        default=[], item_type=Intervention, doc="Changes to the forward pass, in order."
    )
    metric = param.ClassSelector(
        class_=Metric, default=Metric(), doc="The number by which interventions are judged."
    )
    text_b = param.String(doc="A second text, to patch from.")
    head = param.NumericTuple(default=(0, 0), length=2, doc="The selected (layer, head).")
    selection = param.List(
        default=["L0H0.z"],
        item_type=str,
        doc="The selected parts of the model's graph, by id, or neurons, or dimensions of the residual stream; a head "
        "among them is ``head``.",
    )
    heads_by = param.String(
        doc="What heads are coloured by: a name of ``scores.SCORES``, contributions, similar, drawn, or nothing."
    )
    scored_on = param.Selector(
        default="text",
        objects=["text", "random"],
        doc="What heads are scored on: this text, or random tokens written twice.",
    )
    drawn = param.List(
        default=[],
        item_type=tuple,
        doc="Cells (query, key) of a pattern drawn by hand, on a grid over the text; heads like it are looked for.",
    )
    notes = param.List(default=[], item_type=Note, doc="Remarks on parts of models.")
    position = param.Integer(default=-1, doc="The selected position; negative ones count from the end.")

    run = param.Parameter(doc="The newest Run.")
    baseline = param.Parameter(doc="The Run on the same text without interventions.")
    effects = param.Dict(
        default={}, doc="By place in ``interventions``: the metric with it − without it, the others in force."
    )
    state = param.Selector(
        default="empty", objects=["empty", "queued", "running", "idle"], doc="How far the newest question is."
    )
    progress = param.Tuple(
        default=("", None), length=2, doc="Of a run under way: what it does, and the fraction or None."
    )
    loading = param.Tuple(
        default=("", None), length=2, doc="Of a model under way: name and stage, and the fraction or None."
    )
    recalled = param.Boolean(doc="Whether the newest run had been kept from before, and no pass was needed.")
    error = param.String(doc="What is wrong with the question, and the remedy; empty if nothing.")
    note = param.String(doc="What was done unasked, such as switching off what does not fit a new model.")
    can_undo = param.Boolean(doc="Whether a change of interventions can be taken back.")
    can_redo = param.Boolean(doc="Whether one that was taken back can be made again.")

    def __init__(self, model: Any = None, text: str = "", *, schedule: Callable | None = None, **params: Any):
        self.inbox = Inbox(schedule)
        # One event a question, set once it is no longer the newest.
        self._stop = self._answered = threading.Event()
        self._asked: tuple | None = None
        self._failure: BaseException | None = None
        self._loading: Loading | None = None
        self._listener: Callable[[str, float | None], None] | None = None
        self._history = History()
        self._rendered = ""  # what the template made of the messages
        self.tasks: weakref.WeakSet[Task] = weakref.WeakSet()
        """Causal maps and continuations that were begun on this session; they end with it, or with its model."""
        super().__init__(text=text, **params)
        self.param.watch(self._question_changed, _QUESTION)
        self.param.watch(lambda event: self._render(), "messages")
        self.param.watch(self._select_head, "head")
        self.param.watch(self._select_part, "selection")
        if isinstance(model, str):
            self.load(model)
        elif model is not None:
            self.adopt(model)

    def wait(self, timeout: float | None = None) -> "Session":
        """Block until the newest question is answered; raises what went wrong, or TimeoutError after ``timeout`` s."""
        if not self.inbox.wait_for(lambda: not self._waiting, timeout):
            raise TimeoutError(f"No answer after {timeout:g} s ({self.loading[0] or self.state}).")
        if self._failure is not None:
            raise self._failure
        return self

    @property
    def _waiting(self) -> bool:
        return self._answered is not self._stop or self._loading is not None

    def close(self) -> None:
        """Stop for good and let go of the model; nothing is run or reported any more."""
        self.inbox.close()
        with param.parameterized.discard_events(
            self
        ):  # who watches may be gone already, as a page that was closed
            self.cancel()
            self._stop.set()
            self._let_go(self.model)
            self.param.update(model=None, run=None, baseline=None, effects={})

    # The model

    def load(self, name: str, device: str = "cpu", dtype: str = "float32") -> None:
        """Load a model by name or path in the background, then read the text with it; ``cancel`` stops it."""
        self._leave_loading()
        self._failure = None
        self.param.update(loading=(name, None), error="", note="")
        told = 0.0

        def advance(stage: str, fraction: float | None) -> None:
            nonlocal told
            if time.monotonic() - told > PROGRESS_PAUSE:
                told = time.monotonic()
                self.inbox.post(lambda: self._tell(advance, f"{name}: {stage}", fraction))

        # It may be called before the request returns.
        self._listener = advance
        self._loading = loading = STORE.request(name, device, dtype, advance)
        loading.model.add_done_callback(lambda future: self.inbox.post(lambda: self._loaded(loading, future)))

    def adopt(self, model: Any) -> None:
        """Take a Model as it is, or a TransformerBridge, which is tested here and now."""
        from transpector.state.models import Model, load_model

        self.model = model if isinstance(model, Model) else load_model(model)

    def _tell(self, listener: Callable, what: str, fraction: float | None) -> None:
        if self._listener is listener:
            self.loading = (what, fraction)

    def _loaded(self, loading: Loading, future: "Future[Model]") -> None:
        if self._loading is not loading:
            return
        self._leave_loading()
        if future.exception() is not None:
            self._failed(future.exception())
        elif future.result() is self.model:
            self._asked = None
            self._ask()
        else:
            self.model = future.result()

    def _leave_loading(self) -> None:
        loading, self._loading = self._loading, None
        listener, self._listener = self._listener, None
        if loading is not None:
            loading.leave(listener)
        self.loading = ("", None)

    def cancel(self) -> None:
        """Stop what is under way, a load or else a run; the last good answer stays."""
        if self._loading is not None:
            self._leave_loading()
        else:
            self._stop.set()
            self._asked, self._answered = None, self._stop
            self._rest()
        self.inbox.notify()

    def _rest(self) -> None:
        self.param.update(state="empty" if self.run is None else "idle", progress=("", None))

    # The question

    def _question_changed(self, *events: param.parameterized.Event) -> None:
        changed = {event.name for event in events}
        if "text" in changed and "token_ids" not in changed:
            self.token_ids = None
        if changed & {"text", "token_ids"} and (self.text != self._rendered or self.token_ids):
            self._leave_chat()
        if "model" in changed:
            self._leave_loading()
            old = next(event.old for event in events if event.name == "model")
            self._let_go(old)
            if old is not None and self.model is not None:
                self._fit_to_model(old)
            self._render()
        self._bind()
        self._ask()

    def _render(self) -> None:
        """Have the model's template write the messages; what it refuses is said, and the text stays."""
        if not self.messages or self.model is None:
            return
        tokens = self.model.text
        if not has_template(tokens):
            self._leave_chat()  # of another model; as a text it can still be read
            return
        try:
            self._rendered = rendered(tokens, self.messages)
        except TranspectorError as error:
            self.error = str(error)
            return
        begins = tokens.bos_id is not None and self._rendered.startswith(tokens.pieces([tokens.bos_id])[0])
        bos = False if begins else self.bos  # a template that writes it wants no second one
        self.param.update(text=self._rendered, token_ids=None, bos=bos, error="")

    def _leave_chat(self) -> None:
        if self.messages:
            self.param.update(messages=[], bos=None)

    def _let_go(self, model: "Model | None") -> None:
        for task in list(self.tasks):
            task.cancel()
        self.tasks.clear()
        if model is not None:
            model.release(self)

    def _fit_to_model(self, old: "Model") -> None:
        """Switch off what the new model has no place for, and select a head that it has."""
        spec = self.model.spec
        head = tuple(
            min(at, size - 1) for at, size in zip(self.head, (spec.n_layers, spec.n_heads), strict=True)
        )

        def fit(intervention: Intervention) -> Intervention:
            fits = not intervention.enabled or self._fits(intervention)
            return intervention if fits else replace(intervention, enabled=False)

        self._history.rewrite(fit)  # undo must not bring back what does not fit either
        fitting = [fit(i) for i in self.interventions]
        lost = sum(new is not old for new, old in zip(fitting, self.interventions, strict=True))
        note = f"Switched off {lost} of the interventions: they do not fit {self.model.name}." if lost else ""
        # Ids mean nothing to another tokenizer; their text may.
        ids, text = self.token_ids, self.text
        if ids is not None and not text:
            text = old.text.decode(ids)
        self.param.update(
            head=head,
            selection=["L{}H{}.z".format(*head)],
            position=-1,
            interventions=fitting,
            token_ids=None,
            text=text,
            note=note,
        )

    def _fits(self, intervention: Intervention) -> bool:
        try:
            if isinstance(intervention, Freeze) and intervention.held:
                raise InterventionError("It holds a value of another model.")
            written = [write.site for write in intervention.writes(self.model.spec)]
            for site in filter(None, (*written, intervention.source_site)):
                site.check(self.model.spec)
            intervention.check_model(self.model)
        except TranspectorError:
            return False
        return all(self.model.health.can_write(site.kind) for site in written)

    def _bind(self) -> None:
        bound = [self._bound(i) if _is_unbound(i) else i for i in self.interventions]
        if any(new is not old for new, old in zip(bound, self.interventions, strict=True)):
            self.interventions = bound
        elif not any(map(_is_unbound, bound)):
            self._history.push(bound)
            self.param.update(can_undo=self._history.can_undo, can_redo=self._history.can_redo)

    def _bound(self, freeze: Freeze) -> Freeze:
        """A freeze holds the value of the run at hand: the question as it stood before the freeze was set."""
        if self.model is None:
            return freeze
        try:
            text = _read(self.model, self.text, self.token_ids, self.bos)
        except TranspectorError:  # the run will say so; what can be seen is the last good run
            if self.run is None or self.run.model is not self.model:
                return freeze
            return replace(freeze, held=self.run.question)
        return replace(freeze, held=replace(text, interventions=self._history.now))

    def undo(self) -> None:
        """Take back the last change of interventions."""
        self.interventions = list(self._history.step(-1))

    def redo(self) -> None:
        """Make the change again that was taken back last."""
        self.interventions = list(self._history.step(1))

    def add(self, *interventions: Intervention) -> None:
        """Append interventions."""
        self.interventions = [*self.interventions, *interventions]

    @property
    def sites(self) -> list[Site]:
        """The sites of the selected parts, of those that have one; a neuron or a dimension, which is no part, is one itself."""
        if self.model is None:
            return []
        from transpector.state.graph import graph  # brings torch, which is here only once a model is

        parts = graph(self.model)
        found = (parts[id].site if id in parts else self._unit(id) for id in self.selection)
        return [site for site in found if site is not None]

    def _unit(self, id: str) -> Site | None:
        try:
            site = Site.parse(id)
            site.check(self.model.spec)
        except TranspectorError:  # a part of another model, or a layer that is folded
            return None
        return site if site.is_scalar else None

    @property
    def changes(self) -> list[tuple[str, Site]]:
        """What is done at which site, by verb, of the interventions that are switched on; in order."""
        if self.model is None:
            return []
        writes = ((i.verb, i.writes(self.model.spec)) for i in self.interventions if i.enabled)
        return [(verb, write.site) for verb, some in writes for write in some]

    def annotate(self, node: str, text: str) -> None:
        """Put a note on a part of the model's graph, in place of the one before; an empty text takes it away."""
        if self.model is None:
            raise ModelError("There is no model. Load one first.")
        self.notes = noted(self.notes, Note(self.model.name, node, text.strip()))

    def _select_head(self, event: param.parameterized.Event) -> None:
        if _head_of(self.selection) != event.new:
            self.selection = ["L{}H{}.z".format(*event.new)]

    def _select_part(self, event: param.parameterized.Event) -> None:
        self.head = _head_of(event.new) or self.head

    @property
    def question(self) -> Question:
        """The question as it stands; raises TextError if the model can't read it."""
        if self.model is None:
            raise ModelError("There is no model. Load one first.")
        text = _read(self.model, self.text, self.token_ids, self.bos)
        return replace(text, interventions=self.interventions)

    # The answer

    def _ask(self) -> None:
        if self.model is None:
            return
        if self.inbox.schedule is None:
            self.inbox.drain()  # what is out of date would otherwise wait for ``wait``
        ids = None if self.token_ids is None else tuple(self.token_ids)
        asked = (self.model, self.text, ids, self.bos, tuple(self.interventions), self.metric)
        if asked == self._asked:
            return
        typed = self._asked is not None and (self._asked[0], *self._asked[2:]) == (asked[0], *asked[2:])
        self._asked = asked
        self._stop.set()
        self._stop = stop = threading.Event()
        self._failure = None
        self.state = "queued"
        answer = self.model.worker.submit(
            lambda: self._answer(asked, stop), delay=TYPING_PAUSE if typed else 0.0
        )
        answer.add_done_callback(log_failure)

    def _answer(self, asked: tuple, stop: threading.Event) -> None:
        """Find the newest answer; on the model's worker."""
        model, *text, interventions, metric = asked
        if stop.is_set():
            return
        told = time.monotonic()

        def progress(layer: int) -> None:
            nonlocal told
            if time.monotonic() - told > PROGRESS_PAUSE:
                told = time.monotonic()
                self.inbox.post(
                    lambda: self._running(
                        stop, f"layer {layer + 1}/{model.spec.n_layers}", layer / model.spec.n_layers
                    )
                )

        try:
            before = _read(model, *text)
            baseline = model.answer(before, cancelled=stop.is_set, progress=progress)
            question = replace(before, interventions=interventions)
            recalled = model.recall(question) is not None
            run = model.answer(question, cancelled=stop.is_set, progress=progress)
            # Before it is out: whoever waits for it may then use the model himself.
            for shown in (baseline, run):
                shown.loss  # noqa: B018 - with the logits, and not computed where it is shown
            model.hold(self, before, question)
        except Cancelled:
            return
        except Exception as error:  # noqa: BLE001 - told to the user, and raised by wait
            failure = error
            self.inbox.post(lambda: stop.is_set() or self._unanswerable(failure, stop))
            return

        def tell(effects: dict[int, float]) -> None:
            self.inbox.post(lambda: stop.is_set() or self.param.update(effects=effects))

        def publish() -> None:
            self._publish(run, baseline, recalled, stop)
            # Not before the answer is shown: the worker would be busy again.
            if run.interventions:
                measure_effects(model, question, metric, interventions, stop, tell)

        self.inbox.post(lambda: stop.is_set() or publish())

    def _running(self, stop: threading.Event, what: str, fraction: float) -> None:
        if not stop.is_set() and self._answered is not stop:
            self.param.update(state="running", progress=(what, fraction))

    def _publish(self, run: Any, baseline: Any, recalled: bool, stop: threading.Event) -> None:
        try:
            # Effects are those of the question before; they follow.
            self.param.update(
                run=run,
                baseline=baseline,
                recalled=recalled,
                state="idle",
                progress=("", None),
                error="",
                effects={},
            )
        finally:  # also if a watcher fails
            self._answered = stop

    def _unanswerable(self, failure: BaseException, stop: threading.Event) -> None:
        try:
            self._rest()
            self._failed(failure)
        finally:
            self._answered = stop

    def _failed(self, failure: BaseException) -> None:
        self._failure = failure
        if isinstance(failure, TranspectorError):
            error = str(failure)
        else:
            _log.error("A run failed.", exc_info=failure)
            error = f"Something went wrong inside Transpector ({type(failure).__name__}: {failure}). The log has the details."
        self.error = error


def _read(model: "Model", text: str, token_ids: Sequence[int] | None, bos: bool | None) -> Question:
    """What is asked about a text without interventions; raises TextError if the model can't read it."""
    bos = model.text.adds_bos if bos is None else bos
    return Question(model.tokenize(text, bos) if token_ids is None else model.checked(token_ids), (), bos)


def _head_of(selection: Sequence[str]) -> tuple[int, int] | None:
    """The first head among selected parts."""
    found = (_HEAD.fullmatch(id) for id in selection)
    return next(((int(match[1]), int(match[2])) for match in found if match), None)


def _is_unbound(intervention: Intervention) -> bool:
    return isinstance(intervention, Freeze) and intervention.held is None
