"""How a graph is laid out: everything has its place, nothing overlaps, and what is left out is bridged."""

from itertools import combinations

import pytest

import random_models
import transpector as tp
from transpector.components.graph import marks
from transpector.components.graph.drawing import CARD, GROUPS, LAYER, STREAM, STRIP, TURN, View, card_of
from transpector.components.graph.layout import lay_out

TOKENS = [f"t{position}" for position in range(9)]


@pytest.fixture(params=(*random_models.KINDS, "attention_only"))
def graph(request, random_lm):
    only = request.param == "attention_only"
    return tp.graph(request.getfixturevalue(request.param) if only else random_lm(request.param))


def overlap(a, b):
    return a.x < b.x + b.width and b.x < a.x + a.width and a.y < b.y + b.height and b.y < a.y + a.height


@pytest.mark.parametrize("unfolded", [(), (1,), (0, 1, 2)])
def test_every_part_has_a_place_of_its_own(graph, unfolded):
    drawing = lay_out(graph, View(frozenset(unfolded), frozenset(unfolded)), TOKENS)
    assert len({box.id for box in drawing.boxes}) == len(drawing.boxes)
    for node in graph.nodes:
        home = drawing.home[node.id]
        assert home == (node.id if node.layer in (None, *unfolded) else card_of(node.layer))
        assert home in drawing
    solid = [box for box in drawing.boxes if box.kind not in (LAYER, STRIP, TURN)]
    for a, b in combinations(solid, 2):
        assert not overlap(a, b), (a, b)
    for box in drawing.boxes:
        if box.parent is not None:
            frame = drawing[box.parent]
            assert frame.x <= box.x and box.x + box.width <= frame.x + frame.width
            assert frame.y <= box.y and box.y + box.height <= frame.y + frame.height
    frames = [box for box in drawing.boxes if box.kind in (LAYER, CARD)]
    for a, b in combinations(frames, 2):
        assert not overlap(a, b), (a, b)


@pytest.mark.parametrize("unfolded", [(), (1,), (0, 1, 2)])
def test_wires_are_the_edges_and_the_stream_is_whole(graph, unfolded):
    drawing = lay_out(graph, View(frozenset(unfolded)))
    turns = {box.id for box in drawing.boxes if box.kind == TURN}
    after = {}
    for wire in drawing.wires:
        after.setdefault(wire.source, set()).add(wire.target)
    through = lambda at: set().union(*({t} if t not in turns else through(t) for t in after.get(at, ())))  # noqa: E731
    wanted = {(drawing.home[e.source], drawing.home[e.target]) for e in graph.edges}
    for source, target in wanted:
        if source != target:
            assert target in through(source), (source, target)
    # From the embedding to the output along the stream alone.
    at, ways = {"embed"}, {}
    for wire in drawing.wires:
        if wire.kind == STREAM:
            ways.setdefault(wire.source, set()).add(wire.target)
    while at and "unembed" not in at:
        at = set().union(*(ways.get(each, ()) for each in at))
    assert "unembed" in at


def test_what_is_left_out_is_bridged(random_lm):
    graph = tp.graph(random_lm("llama"))
    view = View(frozenset({0, 1, 2}), layers=(1, 1), without=frozenset({"Norms", "q k v"}))
    drawing = lay_out(graph, view)
    assert not {box.id for box in drawing.boxes} & {
        "L0",
        "L0.resid_pre",
        "L2.resid_pre",
        "L1.ln1",
        "L1H0.q",
        "ln_final",
    }
    turns = {box.id for box in drawing.boxes if box.kind == TURN}
    direct = {(wire.source, wire.target) for wire in drawing.wires}
    for head in range(4):
        assert ("L1.resid_pre", f"L1H{head}.z") in direct
    assert any(
        source == "embed" and (target in turns or target == "L1.resid_pre") for source, target in direct
    )
    for group in GROUPS:
        assert lay_out(graph, View(frozenset({1}), without=frozenset({group}))).wires


def test_positions_are_drawn_of_the_layers_asked_for(random_lm):
    drawing = lay_out(tp.graph(random_lm("gpt2")), View(frozenset({0, 1}), frozenset({1})), TOKENS)
    found = [box for box in drawing.boxes if box.kind == "position"]
    assert [box.id for box in found] == [f"L1.resid_pre@{position}" for position in range(9)]
    assert [box.label.split() for box in found][3] == ["3", "t3"]


def test_marks_say_what_is_done_to_what_a_box_shows(random_lm):
    session = tp.Session(model=random_lm("llama"))
    graph = tp.graph(session.model)
    drawing = lay_out(graph, View(frozenset({1}), frozenset({1})), TOKENS)
    session.interventions = [
        tp.Ablate("L1H2.pattern"),
        tp.Ablate("L2.mlp_out"),
        tp.Patch("L1H2.z", source="L0H0.z"),
        tp.Freeze("L1.v"),
        tp.Ablate("L1.resid_pre@4"),
        tp.Ablate("L1N5.mlp_post"),
        tp.Ablate("L0H1.z", enabled=False),
        tp.Skip(0, 0),
        tp.Steer("embed", [0.0] * 48),
    ]
    assert marks.states(graph, drawing, session.changes) == {
        "L0": ["ablated"],
        "embed": ["steered"],
        "L1H2.z": ["ablated", "patched"],
        "L2": ["ablated"],
        "L1H0.v": ["frozen"],
        "L1H1.v": ["frozen"],
        "L1.resid_pre": ["ablated"],
        "L1.resid_pre@4": ["ablated"],
        "L1.mlp_post": ["ablated"],
    }
