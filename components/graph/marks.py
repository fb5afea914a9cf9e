"""Marks: what interventions and notes do to the look of the diagram, as style rules."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from transpector.components import theme
from transpector.components.graph.drawing import Drawing, card_of
from transpector.components.graph.pictures import at
from transpector.state.sites import Site

if TYPE_CHECKING:
    from transpector.state.graph import Graph

SIGNS = {"ablated": "⊘", "frozen": "❄", "patched": "⇄", "steered": "➤"}
"""A character for each state, where an icon can't be had."""
NOTE = "✎"


def states(graph: "Graph", drawing: Drawing, changes: Iterable[tuple[str, Site]]) -> dict[str, list[str]]:
    """By box, the states of what it shows, in the order of the changes: what is done, by verb, at which site."""
    found: dict[str, list[str]] = {}
    for verb, site in changes:
        state, exact = theme.STATES[verb], str(site)
        boxes = {drawing.home[node.id] for node in graph.touched(site)}
        for box in (boxes | {exact}) if exact in drawing else boxes:
            if box is not None and state not in found.setdefault(box, []):
                found[box].append(state)
    return found


def rules(
    marked: Mapping[str, list[str]],
    notes: Iterable[str],
    unable: Iterable[str],
    drawing: Drawing,
    dark: bool,
) -> str:
    """The style of marked boxes, of those with a note, and of those that can't be changed in this model."""
    c = theme.ground(dark)
    out = []
    for id, of in marked.items():
        colour = getattr(c, of[-1])
        out.append(f"{at(id)} {{ border: 2px solid {colour} !important; }}")
        if "ablated" in of and drawing[id].kind != "card":
            out.append(f"{at(id)} .rf-node-label {{ text-decoration: line-through; color: {c.muted}; }}")
            out.append(f"{at(id)} .rf-node-content {{ opacity: .45; }}")
    noted = set(notes)
    for id in {*marked, *noted}:
        signs = "".join(SIGNS[state] for state in marked.get(id, ())) + (NOTE if id in noted else "")
        colour = getattr(c, marked[id][-1]) if id in marked else c.accent
        out.append(
            f'{at(id)}::after {{ content: "{signs}"; position: absolute; top: -9px; right: -9px; min-width: 18px; '
            f"padding: 0 3px; box-sizing: border-box; text-align: center; font: 12px/18px {theme.SANS}; border-radius: 9px; "
            f"background: {colour}; color: {c.paper}; pointer-events: none; }}"
        )
    out += [f"{at(id)} {{ border-style: dotted; color: {c.muted}; }}" for id in unable]
    return "\n".join(out)


def coloured(values: Float[np.ndarray, "layer head"], top: float, drawing: Drawing, dark: bool) -> str:
    """The style of heads that have a number each: a strip of its colour at a head, all of a layer's on its card."""
    scale = theme.palette("diverging", dark)
    known = np.nan_to_num(values / (top or 1.0)).clip(-1, 1)
    colours = [[scale[at] for at in row] for row in (128 + 127 * known).round().astype(int)]
    strip = "position: absolute; border-radius: 2px; pointer-events: none; height: 5px"
    out = []
    for layer, of_layer in enumerate(colours):
        if card_of(layer) in drawing:
            width = 100 / len(of_layer)
            stops = ", ".join(
                f"{colour} {head * width:.2f}% {(head + 1) * width:.2f}%"
                for head, colour in enumerate(of_layer)
            )
            out.append(
                f'{at(card_of(layer))}::before {{ content: ""; {strip}; left: 10px; right: 10px; top: 28px; '
                f"background: linear-gradient(to right, {stops}); }}"
            )
        for head, colour in enumerate(of_layer):
            if (id := f"L{layer}H{head}.z") in drawing:
                out.append(
                    f'{at(id)}::before {{ content: ""; {strip}; left: 4px; right: 4px; bottom: 2px; background: {colour}; }}'
                )
    return "\n".join(out)
