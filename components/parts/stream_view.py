"""Stream view: a number for each stream of a run, what it is called, and how it is read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from transpector.components.parts import gradient
from transpector.components.parts.scale import Kind

NORMS = ("ln1", "ln1_post", "ln2", "ln2_post")


@dataclass(frozen=True)
class StreamView:
    """``row`` and ``last`` are what a row is called, of a layer and of what comes after all; {} in ``unit`` and
    ``explained`` is the metric's.
    """

    source: str
    title: str
    quantity: str
    kind: Kind
    explained: str
    unit: str = ""
    row: str = "L{}.resid_pre"
    last: str = "the output"

    @property
    def of_gradient(self) -> bool:
        """Whether it takes the metric's gradient, which costs as much as three passes."""
        return self.source in ("gradient", "dot")


_LAST = "The last row is the stream after all layers."
VIEWS = {
    "Norm": StreamView(
        "norm",
        "Norm of the residual stream",
        "norm",
        "log",
        f"The length of the stream before each layer. {_LAST} The first token's is often a hundred times the others'.",
    ),
    "Cosine to the next layer": StreamView(
        "to_next",
        "Cosine of the stream before and after a layer",
        "cosine",
        "cosine",
        "How far each layer turns the stream: 1 where its direction stays.",
    ),
    "Cosine to the output": StreamView(
        "to_last",
        "Cosine of the stream with the last one",
        "cosine",
        "cosine",
        f"How much the stream points already where it will after all layers. {_LAST}",
    ),
    **{
        f"LayerNorm scale: {norm}": StreamView(
            norm,
            f"What {norm} divides by",
            "scale",
            "log",
            "What the norm divides its input by: the standard deviation, or the root mean square. The last row is the "
            "final norm's.",
            row=f"L{{}}.{norm}",
            last="ln_final",
        )
        for norm in NORMS
    },
    "Gradient norm": StreamView(
        "gradient",
        "Norm of the gradient",
        "gradient norm",
        "log",
        "How much the {} moves at most, to first order, for each unit that a stream is moved by.",
        unit="{} per unit",
    ),
    "Gradient × stream": StreamView(
        "dot",
        "Gradient × stream",
        "gradient × stream",
        "signed",
        "How much the {} would change, to first order, if a stream were doubled.",
        unit="{}",
    ),
}


def numbers(
    session: Any, run: Any, view: StreamView, metric: Any, slow: Callable[[], None]
) -> Float[np.ndarray, "row pos"]:
    """What the view shows of a run, NaN where there is none; on the model's worker.

    ``slow`` is called there if it takes its time; raises Cancelled as ``gradient.measured`` does.
    """
    from transpector.state import stream  # brings torch, which the first paint does not wait for

    if view.of_gradient:
        found = gradient.measured(session, run, metric, slow)
        return found.norms if view.source == "gradient" else found.dots
    if view.source == "to_next":
        return stream.cosines_to_next(run)
    if view.source == "to_last":
        return stream.cosines_to_last(run)
    if view.source == "norm":
        return stream.norms(run)
    told = stream.stream(run)
    final = np.full(run.n_pos, np.nan, np.float32) if told.final_scale is None else told.final_scale
    return np.concatenate([told.scales[view.source], final[None]])


def scales(run: Any) -> frozenset[str]:
    """The norms of a model that tell what they divide by, found out on a few tokens; on the model's worker."""
    from transpector.state.interventions import Question
    from transpector.state.stream import stream

    return frozenset(stream(run.model.answer(Question(run.question.token_ids[:4]))).scales)


def unable(run: Any, metric: Any, told: frozenset[str]) -> dict[str, str]:
    """The names of what can't be shown of a run, with the reasons; ``told`` are the norms that tell their scales."""
    ability, stack = run.model.health.abilities["resid_pre"], run.model.stack
    if not ability.read:
        return dict.fromkeys(VIEWS, f"The residual stream can't be read here: {ability.reason}")
    reasons, ungradient = {}, gradient.unable(run, metric)
    for name, view in VIEWS.items():
        if view.of_gradient and ungradient:
            reasons[name] = ungradient
        elif view.source in NORMS and view.source not in told:
            hooks = {f"blocks.{layer}.{view.source}.hook_scale" for layer in range(run.model.spec.n_layers)}
            reasons[name] = (
                f"{view.source} does not tell here what it divides by, position by position."
                if hooks & set(stack.names)
                else f"This model has no {view.source} that tells its scale."
            )
    return reasons
