"""Flow: a drawing on the page, in panel-reactflow; the one module that knows that library."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import param
from panel.viewable import Viewer
from panel_reactflow import ReactFlow

from transpector.components.graph.drawing import LAYER, STREAM, STRIP, TURN, Box, Drawing
from transpector.components.graph.style import stylesheet

HEIGHT = 560  # px

# Wires and lines name no port, or the library would take a line along one for a duplicate and refuse it in silence.
_PORTS = {"inputs": [{"id": "in"}], "outputs": [{"id": "out"}]}
_NO_PORTS: dict[str, list] = {"inputs": [], "outputs": []}


@dataclass(frozen=True)
class Line:
    """A line that the user drew: the patch of a place in the session's interventions."""

    id: str
    source: str
    target: str
    label: str
    enabled: bool


class Flow(Viewer):
    """Shows a drawing and the lines on it; says what is drawn and erased.

    ``refuses`` is asked for the reason why there can be no line between two boxes, None if there can.
    """

    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")

    def __init__(
        self,
        refuses: Callable[[str, str], str | None],
        drew: Callable[[str, str], None],
        erased: Callable[[list[str]], None],
        **params: Any,
    ):
        super().__init__(**params)
        self._refuses, self._drew, self._erased = refuses, drew, erased
        self._drawing: Drawing | None = None
        self._lines: tuple[Line, ...] = ()
        self._labels: Mapping[str, str] = {}
        self.flow = ReactFlow(
            # Nobody edits what a node holds; without one, the library makes an editor for each of them.
            default_node_editor=_NO_EDITOR,
            default_edge_editor=_NO_EDITOR,
            editor_mode="side",
            popup_trigger="none",
            default_edge_options={"selectable": False, "focusable": False},
            show_minimap=True,
            min_zoom=0.05,
            max_zoom=3,
            color_mode="dark" if self.dark else "light",
            sizing_mode="stretch_width",
            height=HEIGHT,
        )
        self.flow.add_connection_validator(lambda line: self._refuses(line["source"], line["target"]))
        self.flow.on("edge_added", self._added)
        self.flow.on("edge_deleted", self._deleted)
        self._restyle()

    @param.depends("dark", watch=True)
    def _restyle(self) -> None:
        self.flow.param.update(
            color_mode="dark" if self.dark else "light", stylesheets=[stylesheet(self.dark)]
        )

    def show(self, drawing: Drawing, lines: tuple[Line, ...], labels: Mapping[str, str]) -> None:
        """Show a drawing, the lines on it, and what is written on some boxes in place of their labels."""
        if drawing is not self._drawing:
            kinds = {box.kind for box in drawing.boxes}
            self.flow.param.update(
                node_types={kind: _type(kind) for kind in sorted(kinds)},
                nodes=[_node(box, drawing, labels) for box in drawing.boxes],
            )
        elif labels != self._labels:
            for id in labels.keys() & {box.id for box in drawing.boxes}:
                self.flow.patch_node_props(id, {"label": labels[id]})
        self._labels = labels
        if drawing is not self._drawing or lines != self._lines:
            self.flow.edges = [*_wires(drawing), *(_line(line) for line in lines)]
        self._drawing, self._lines = drawing, lines

    def look_at(self, bounds: tuple[float, float, float, float], size: tuple[float, float]) -> None:
        """Bring a rectangle of the drawing into sight; ``size`` is the picture's own, px."""
        left, top, width, height = bounds
        zoom = max(0.05, min(1.5, 0.94 * size[0] / width, 0.94 * size[1] / height))
        x = size[0] / 2 - zoom * (left + width / 2)
        y = size[1] / 2 - zoom * (top + height / 2)
        self.flow.viewport = {"x": x, "y": y, "zoom": zoom}

    def _added(self, said: dict[str, Any]) -> None:
        edge = said["edge"]
        self._redraw()  # what is to be seen is what the session says
        self._drew(edge["source"], edge["target"])

    def _deleted(self, said: dict[str, Any]) -> None:
        ids = [*said.get("edge_ids", ()), said.get("edge_id")]
        self._redraw()
        self._erased([id for id in ids if id])

    def _redraw(self) -> None:
        if self._drawing is not None:
            self.flow.edges = [*_wires(self._drawing), *(_line(line) for line in self._lines)]

    def __panel__(self) -> Any:
        return self.flow


_NO_EDITOR = lambda *args, **rest: None  # noqa: E731


def _type(kind: str) -> dict[str, Any]:
    return {"type": kind, "label": "", "schema": None, **(_NO_PORTS if kind in (LAYER, STRIP) else _PORTS)}


def _node(box: Box, drawing: Drawing, labels: Mapping[str, str]) -> dict[str, Any]:
    x, y = box.x, box.y
    if box.parent is not None:
        x, y = x - drawing[box.parent].x, y - drawing[box.parent].y
    node: dict[str, Any] = {
        "id": box.id,
        "type": box.kind,
        "label": labels.get(box.id, box.label),
        "position": {"x": x, "y": y},
        "style": {"width": box.width, "height": box.height},
        "data": {},
        "deletable": False,
    }
    if box.parent is not None:
        node |= {"parentId": box.parent, "extent": "parent"}
    if box.kind in (TURN, STRIP):
        node |= {"selectable": False, "draggable": False, "focusable": False}
    if box.kind == TURN:
        node["style"] |= {"--turn": f"{box.turn}px", "pointerEvents": "none"}
    return node


def _wires(drawing: Drawing) -> list[dict[str, Any]]:
    return [
        {
            "id": wire.id,
            "source": wire.source,
            "target": wire.target,
            "type": _shape(drawing[wire.source], drawing[wire.target]) if wire.kind == STREAM else "bezier",
            "className": wire.kind,
            "deletable": False,
            "data": {},
        }
        for wire in drawing.wires
    ]


def _shape(source: Box, target: Box) -> str:
    if TURN in (source.kind, target.kind):
        return "straight" if source.kind != "mlp_out" else "bezier"
    level = abs(source.y + source.height / 2 - target.y - target.height / 2) < 1
    return "straight" if level else "bezier"


def _line(line: Line) -> dict[str, Any]:
    return {
        "id": line.id,
        "source": line.source,
        "target": line.target,
        "type": "bezier",
        "label": line.label,
        "className": "patch" if line.enabled else "patch off",
        "animated": line.enabled,
        "deletable": True,
        "selectable": True,
        "focusable": True,
        "zIndex": 10,
        "data": {},
    }
