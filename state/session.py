"""Session: one user's question, and its newest answer."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import param

from transpector.state.errors import Cancelled, InterventionError, TranspectorError
from transpector.state.history import History
from transpector.state.interventions import Freeze, Intervention, Question, active
from transpector.state.metric import Metric
from transpector.state.store import STORE, Loading
from transpector.state.worker import BACKGROUND, INTERACTIVE

if TYPE_CHECKING:
    from concurrent.futures import Future

    from transpector.state.models import Model

_log = logging.getLogger(__name__)

TYPING_PAUSE = 0.15  # s without a keystroke before a text is run
PROGRESS_PAUSE = 0.1  # s between two reports of progress

_QUESTION = ["model", "text", "token_ids", "bos", "interventions", "metric"]


class Session(param.Parameterized):
    """The question (model, text, interventions, …) and the newest answer (run, baseline), one of each a user.

    Setting a part of the question starts a run on the model's worker; the newest question wins, and the last good
    answer stays until then. ``wait`` blocks until it is there. The parameters of the answer are to be read.

    ``schedule`` is given a function whenever a parameter is to change, and calls it on the thread where that may
    happen: a page's event loop. By default that is the thread at hand.
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
    interventions = param.List(
        default=[], item_type=Intervention, doc="Changes to the forward pass, in order."
    )
    metric = param.ClassSelector(
        class_=Metric, default=Metric(), doc="The number by which interventions are judged."
    )
    text_b = param.String(doc="A second text, to patch from.")
    head = param.NumericTuple(default=(0, 0), length=2, doc="The selected (layer, head).")
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
    error = param.String(doc="What is wrong with the question, and the remedy; empty if nothing.")
    note = param.String(doc="What was done unasked, such as switching off what does not fit a new model.")
    can_undo = param.Boolean(doc="Whether a change of interventions can be taken back.")
    can_redo = param.Boolean(doc="Whether one that was taken back can be made again.")

    def __init__(self, model: Any = None, text: str = "", *, schedule: Callable | None = None, **params: Any):
        self.schedule = schedule or (lambda function: function())
        self._inbox: deque[Callable[[], None]] = deque()
        self._arrived = threading.Condition()
        self._draining = threading.RLock()
        self._stop = threading.Event()  # set once the question under way is no longer the newest
        self._asked: tuple | None = None
        self._unanswered = False
        self._failure: BaseException | None = None
        self._loading: Loading | None = None
        self._listener: Callable[[str, float | None], None] | None = None
        self._history = History()
        super().__init__(text=text, **params)
        if self.interventions:
            self._history.push(self.interventions)
        self.param.watch(self._question_changed, _QUESTION)
        if isinstance(model, str):
            self.load(model)
        elif model is not None:
            self.model = _as_model(model)

    # What arrives from other threads

    def _post(self, function: Callable[[], None]) -> None:
        """Have a function called where parameters may be set, after those posted before it."""
        with self._arrived:
            self._inbox.append(function)
            self._arrived.notify_all()
        self.schedule(self._drain)

    def _drain(self) -> None:
        with self._draining:
            while self._inbox:
                self._inbox.popleft()()
                with self._arrived:
                    self._arrived.notify_all()

    def wait(self, timeout: float | None = None) -> "Session":
        """Block until the newest question is answered; raises what went wrong, or TimeoutError after ``timeout`` s."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._waiting:
            with self._arrived:
                if self._waiting and not self._inbox:
                    left = None if deadline is None else deadline - time.monotonic()
                    if (left is not None and left <= 0) or not self._arrived.wait(left):
                        raise TimeoutError(
                            f"No answer after {timeout:g} s ({self.loading[0] or self.state})."
                        )
            # The thread that should have drained may be the one that waits here.
            self._drain()
        if self._failure is not None:
            raise self._failure
        return self

    @property
    def _waiting(self) -> bool:
        return self._unanswered or self._loading is not None

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
                self._post(lambda: self._tell(loading, stage, fraction))

        loading = STORE.request(name, device, dtype, advance)
        self._loading, self._listener = loading, advance
        loading.model.add_done_callback(lambda future: self._post(lambda: self._loaded(loading, future)))

    def _tell(self, loading: Loading, stage: str, fraction: float | None) -> None:
        if self._loading is loading:
            self.loading = (f"{loading.name}: {stage}", fraction)

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
        if loading is not None:
            loading.leave(self._listener)
        self.loading = ("", None)

    def cancel(self) -> None:
        """Stop what is under way, a load or else a run; the last good answer stays."""
        if self._loading is not None:
            self._leave_loading()
        else:
            self._stop.set()
            self._asked, self._unanswered = None, False
            self._rest()
        with self._arrived:
            self._arrived.notify_all()

    def _rest(self) -> None:
        self.param.update(state="empty" if self.run is None else "idle", progress=("", None))

    # The question

    def _question_changed(self, *events: param.parameterized.Event) -> None:
        changed = {event.name for event in events}
        if "text" in changed and "token_ids" not in changed:
            self.token_ids = None
        switched = [event for event in events if event.name == "model" and event.old is not None]
        if switched:
            self._fit_to_model(switched[0].old)
        if "interventions" in changed:
            self._bind()
        self._ask()

    def _fit_to_model(self, old: "Model") -> None:
        """Switch off what the new model has no place for, and select a head that it has."""
        spec = self.model.spec
        head = tuple(
            min(at, size - 1) for at, size in zip(self.head, (spec.n_layers, spec.n_heads), strict=True)
        )
        fitting = [i if self._fits(i) else replace(i, enabled=False) for i in self.interventions]
        lost = sum(new is not old for new, old in zip(fitting, self.interventions, strict=True))
        note = f"Switched off {lost} of the interventions: they do not fit {self.model.name}." if lost else ""
        # Ids mean nothing to another tokenizer; their text may.
        ids, text = self.token_ids, self.text
        if ids is not None and not text:
            text = "".join(old.pieces(ids))
        self.param.update(head=head, position=-1, interventions=fitting, token_ids=None, text=text, note=note)

    def _fits(self, intervention: Intervention) -> bool:
        try:
            if isinstance(intervention, Freeze) and intervention.held:
                raise InterventionError("It holds a value of another model.")
            for site in filter(None, (intervention.site, intervention.source_site)):
                site.check(self.model.spec)
        except TranspectorError:
            return False
        return self.model.health.can_write(intervention.site.kind)

    def _bind(self) -> None:
        bound = [self._bound(i) for i in self.interventions]
        if any(new is not old for new, old in zip(bound, self.interventions, strict=True)):
            self.interventions = bound
            return
        self._history.push(bound)
        self.param.update(can_undo=self._history.can_undo, can_redo=self._history.can_redo)

    def _bound(self, intervention: Intervention) -> Intervention:
        """A freeze holds the value of the run at hand: the question as it stood before the freeze was set."""
        if not isinstance(intervention, Freeze) or intervention.held or self.model is None:
            return intervention
        try:
            return replace(intervention, held=Question(self._ids(), self._history.now, self._bos))
        except TranspectorError:
            return intervention  # the text is at fault, and the run will say so

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
    def _bos(self) -> bool:
        return self.model.text.adds_bos if self.bos is None else self.bos

    def _ids(self) -> tuple[int, ...]:
        if self.token_ids is not None:
            return tuple(self.model.checked(self.token_ids))
        return tuple(self.model.tokenize(self.text, self._bos))

    # The answer

    def _ask(self) -> None:
        if self.model is None:
            return
        ids = None if self.token_ids is None else tuple(self.token_ids)
        asked = (self.model, self.text, ids, self.bos, tuple(self.interventions), self.metric)
        if asked == self._asked:
            return
        typed = self._asked is not None and (self._asked[0], *self._asked[2:]) == (asked[0], *asked[2:])
        self._asked = asked
        self._stop.set()
        self._stop = stop = threading.Event()
        self._unanswered, self._failure = True, None
        self.state = "queued"
        self.model.worker.submit(lambda: self._answer(asked, stop), delay=TYPING_PAUSE if typed else 0.0)

    def _answer(self, asked: tuple, stop: threading.Event) -> None:
        """Find the newest answer; on the model's worker."""
        model, *_, interventions, metric = asked
        if stop.is_set():
            return
        told = time.monotonic()

        def progress(layer: int) -> None:
            nonlocal told
            if time.monotonic() - told > PROGRESS_PAUSE:
                told = time.monotonic()
                self._post(
                    lambda: self._running(
                        stop, f"layer {layer + 1}/{model.spec.n_layers}", layer / model.spec.n_layers
                    )
                )

        try:
            ids = self._ids()
            baseline = model.answer(Question(ids, (), self._bos), cancelled=stop.is_set, progress=progress)
            question = Question(ids, interventions, self._bos)
            run = model.answer(question, cancelled=stop.is_set, progress=progress)
            run.loss  # noqa: B018 - computed here, not on the thread that shows it
        except Cancelled:
            return
        except Exception as error:  # noqa: BLE001 - told to the user, and raised by wait
            failure = error
            self._post(lambda: stop.is_set() or self._unanswerable(failure))
            return
        self._post(lambda: stop.is_set() or self._publish(run, baseline))
        if run.interventions:
            self._measure_effects(model, question, metric, interventions, stop)

    def _running(self, stop: threading.Event, what: str, fraction: float) -> None:
        if not stop.is_set() and self._unanswered:
            self.param.update(state="running", progress=(what, fraction))

    def _publish(self, run: Any, baseline: Any) -> None:
        self._unanswered = False
        effects = self.effects if run.interventions else {}
        self.param.update(
            run=run, baseline=baseline, state="idle", progress=("", None), error="", effects=effects
        )

    def _unanswerable(self, failure: BaseException) -> None:
        self._unanswered = False
        self._rest()
        self._failed(failure)

    def _failed(self, failure: BaseException) -> None:
        self._failure = failure
        if isinstance(failure, TranspectorError):
            error = str(failure)
        else:
            _log.error("A run failed.", exc_info=failure)
            error = f"Something went wrong inside Transpector ({type(failure).__name__}: {failure}). The log has the details."
        self.error = error

    def _measure_effects(
        self, model: "Model", question: Question, metric: Metric, interventions: tuple, stop: threading.Event
    ) -> None:
        """What the metric loses without each intervention; behind everybody's runs, one job each."""
        effects: dict[int, float] = {}

        def measure(place: int) -> None:
            if stop.is_set():
                return
            others = active(i for at, i in enumerate(interventions) if at != place)
            try:
                run = model.answer(question, cancelled=stop.is_set)
                without = model.answer(replace(question, interventions=others), cancelled=stop.is_set)
                effects[place] = metric.of(run) - metric.of(without)
            except (Cancelled, TranspectorError):
                return
            self._post(lambda: stop.is_set() or self.param.update(effects=dict(effects)))

        for place, intervention in enumerate(interventions):
            if intervention.enabled:
                model.worker.submit(lambda place=place: measure(place), priority=BACKGROUND)

    def measure(self, function: Callable[..., Any], *args: Any) -> "Future[Any]":
        """Have a derived number computed on the model's worker."""
        return self.model.worker.submit(lambda: function(*args), priority=INTERACTIVE)


def _as_model(model: Any) -> "Model":
    from transpector.state.models import Model, load_model

    return model if isinstance(model, Model) else load_model(model)
