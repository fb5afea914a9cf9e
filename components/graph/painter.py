"""Painter: the pictures that one run puts on the parts of the graph; made on the model's worker."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transpector.components import theme
from transpector.components.base import figures, visible
from transpector.components.graph import pictures
from transpector.components.graph.drawing import View, card_of

CARD_SIDE, HEAD_SIDE = 24, 32  # px of a thumbnail, at most: on a folded layer, and of a head on its own
N_TOKENS = 5
STRIP, BARS = (156, 52), (156, 20)  # px on a card: of the thumbnails, and of the norms beneath


@dataclass(frozen=True)
class Pictures:
    """What one run looks like in one view of the graph: style rules, and what the output says."""

    css: str = ""
    output: str = "output"


def paint(shown: Any, run: Any, baseline: Any, graph: Any, view: View, dark: bool) -> Pictures:
    """Paint the parts that are in sight with what they are in one run, and the output with what it is in ``run``."""
    from transpector.state import measure  # brings torch, which the first paint does not wait for

    c = theme.ground(dark)
    colour = theme.tint(c.accent if shown is run else c.patched, dark)
    rules = _cards(measure, shown, view, colour, dark)
    ends = [node for node in graph.layer(None) if node.site is not None]
    rules += _norms(measure.part_norms(shown, ends), colour)
    for layer in sorted(view.unfolded):
        rules += _layer(measure, shown, graph.layer(layer), colour, dark)
    return Pictures("\n".join(rules), _output(run, baseline))


def _cards(measure: Any, run: Any, view: View, colour: str, dark: bool) -> list[str]:
    from transpector.state.stream import norms  # brings torch

    patterns, _, _ = measure.thumbnails(run, CARD_SIDE)
    lengths = {str(layer): values for layer, values in enumerate(norms(run)[:-1])}
    n_rows, size = _strip_of(patterns.shape[1])
    place = {"sizes": (size, "{}px {}px".format(*BARS)), "places": ("10px 34px", "10px 91px")}
    return [
        pictures.rule(
            card_of(int(layer)),
            pictures.strip(patterns[int(layer)], dark, n_rows),
            pictures.bars(values, colour),
            **place,
        )
        for layer, values in pictures.heights(lengths).items()
        if int(layer) not in view.unfolded
    ]


def _layer(measure: Any, run: Any, nodes: Sequence[Any], colour: str, dark: bool) -> list[str]:
    heads = [node for node in nodes if node.kind == "z"]
    others = [node for node in nodes if node.kind != "z"]
    patterns = measure.thumbnails_of(run, nodes[0].layer, HEAD_SIDE) if heads else ()
    place = {"sizes": ["32px 32px"], "places": ["3px 2px"]}
    rules = [pictures.rule(n.id, pictures.thumbnail(patterns[n.head], dark), **place) for n in heads]
    norms = measure.part_norms(run, others)
    for kind in dict.fromkeys(node.kind for node in others):  # heads of a kind on one scale
        rules += _norms({n.id: norms[n.id] for n in others if n.kind == kind and n.id in norms}, colour)
    return rules


def _norms(norms: Mapping[str, np.ndarray], colour: str) -> list[str]:
    rules = []
    for id, values in pictures.heights(norms).items():
        height = "100%" if id.endswith((".q", ".k", ".v")) else "calc(100% - 20px)"
        place = {"sizes": [f"calc(100% - 8px) {height}"], "places": ["4px 100%"]}
        rules.append(pictures.rule(id, pictures.bars(values, colour), **place))
    return rules


def _strip_of(n_heads: int) -> tuple[int, str]:
    """In how many rows a card's thumbnails are as large as can be, and the size of their picture in CSS."""
    width, height = STRIP
    rows = max(range(1, 5), key=lambda rows: min(width / -(-n_heads // rows), height / rows))
    columns = -(-n_heads // rows)
    scale = min(width / columns, height / rows)
    return rows, f"{columns * scale:.0f}px {rows * scale:.0f}px"


def _output(run: Any, baseline: Any) -> str:
    """The loss, and the next tokens."""
    lines = ["output"]
    if len(run.loss):
        now, before = (figures(float(np.mean(each.loss))) for each in (run, baseline))
        lines.append(f"loss {now}" + (f"  (baseline {before})" if run.interventions else ""))
    for piece, probability in run.next_tokens(-1, N_TOKENS):
        lines.append(f"{probability:.2f}  {visible([piece])[0][:14]}")
    return "\n".join(lines)
