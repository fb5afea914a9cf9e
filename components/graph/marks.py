"""Marks: what interventions and notes do to the look of the diagram, as style rules."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from transpector.components import theme
from transpector.components.graph.drawing import Drawing
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
