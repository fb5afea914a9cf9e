"""The contact sheet: the attention pattern of every head of every layer, in one canvas."""

from pathlib import Path
from typing import Any, ClassVar

import param
from panel.custom import JSComponent

from transpector.components import theme
from transpector.components.base import Pane, visible
from transpector.components.parts.effect_figure import palette as effect_palette
from transpector.components.parts.head_colours import HeadColours, HeadNumbers, choice
from transpector.components.parts.touched import heads_of


class ContactSheet(JSComponent):
    """Every layer × head as a thumbnail; a click or the arrow keys select one.

    Cells grow with the width, up to 120 px, as far as `max_height` (560 px unless given) allows; a model with
    many layers is laid out in several blocks of layers side by side, as many as make the cells largest.
    """

    thumbnails = param.Bytes(
        default=b"",
        doc="""
        uint8 [layer, head, row, col], 255 × probability; rows: query, columns: key.""",
    )
    maxima = param.Bytes(
        default=b"",
        doc="""
        float32 [layer, head], each head's largest probability; the top of the scale "head".""",
    )
    shape = param.NumericTuple(
        default=(0, 0, 0), length=3, doc="Layers, heads, and the side of a thumbnail in pixels."
    )
    pooled = param.Integer(
        default=1, bounds=(1, None), doc="How many positions a thumbnail's pixel spans, each way."
    )
    pieces = param.List(
        default=[],
        doc="""
        The text's tokens as they are to be shown, for the label by the pointer. Optional.""",
    )
    scale = param.Selector(
        default="global",
        objects=["global", "head"],
        doc="""
        What the strongest colour means: probability 1 (`global`), or each head's own maximum (`head`).""",
    )
    selected = param.NumericTuple(
        default=None, length=2, allow_None=True, doc="The selected (layer, head); None for none. Both ways."
    )
    scores = param.Bytes(
        default=b"",
        doc="""
        float32 [layer, head]: a number for each head, drawn as a strip below its thumbnail. Optional.""",
    )
    scores_top = param.Number(
        default=0.0, doc="The magnitude that has the strongest colour; 0 for the largest of `scores`."
    )
    scores_label = param.String(
        doc="What the scores are, and their unit; without scores, why there are none."
    )
    marks = param.List(
        default=[],
        item_type=dict,
        doc="""
        Heads to mark: `{"layer": 5, "head": 1, "state": "ablated"}`; or frozen, patched, steered.""",
    )
    busy = param.Boolean(default=False, doc="Whether a newer run is under way: dims the picture a little.")
    dark = param.Boolean(default=False, doc="Whether the page is dark.")
    palette = param.Bytes(
        default=theme.sequential_bytes(), constant=True, doc="uint8 [ground, entry, channel]: the two scales."
    )

    _esm = Path(__file__).parent / "contact_sheet.js"
    _constants: ClassVar = {
        **theme.constants(),
        "signed": {"light": effect_palette(False), "dark": effect_palette(True)},
    }

    def __init__(self, **params):
        params.setdefault("sizing_mode", "stretch_width")
        params.setdefault("max_height", 560)
        super().__init__(**params)

    def _process_property_change(self, msg: dict) -> dict:
        if isinstance(msg.get("selected"), list):  # JSON knows no tuples
            msg["selected"] = tuple(msg["selected"])
        return super()._process_property_change(msg)


class AttentionSheet(Pane):
    """The contact sheet of the newest run, with the heads marked that interventions touch."""

    reads: ClassVar = ("run",)

    def __init__(self, session: Any, **params: Any):
        super().__init__(session, **params)
        self.sheet = ContactSheet(selected=session.head, dark=self.param.dark, max_height=352, visible=False)
        self.sheet.param.watch(self._select, "selected")
        session.param.watch(lambda event: self.sheet.param.update(selected=event.new), "head")
        session.param.watch(lambda event: self._mark(), "interventions")
        session.param.watch(lambda event: self.sheet.param.update(busy=event.new == "running"), "state")
        self.colour = choice(session)
        self.colours = HeadColours(session, self._paint, in_view=self.param.in_view)

    def measure(self, run: Any) -> dict[str, Any]:
        from transpector.state.measure import (
            thumbnails,
        )  # brings torch, which the first paint does not wait for

        pictures, maxima, pooled = thumbnails(run)
        return {
            "thumbnails": pictures.tobytes(),
            "maxima": maxima.tobytes(),
            "shape": pictures.shape[:3],
            "pooled": pooled,
            "pieces": visible(run.tokens),
        }

    def show(self, numbers: dict[str, Any]) -> None:
        self.sheet.param.update(visible=True, selected=self.session.head, marks=self._marks(), **numbers)

    def _paint(self, numbers: HeadNumbers | None, reason: str) -> None:
        if numbers is None:
            self.sheet.param.update(scores=b"", scores_label=reason)
        else:
            values, top, label = numbers
            self.sheet.param.update(
                scores=values.astype("float32").tobytes(), scores_top=top, scores_label=label
            )

    def _select(self, event: Any) -> None:
        if event.new is not None:
            self.session.head = event.new

    def _mark(self) -> None:
        self.sheet.marks = self._marks()

    def _marks(self) -> list[dict[str, Any]]:
        """A head is marked by what is done to it; what is done to a whole layer marks all its heads."""
        model = self.session.model
        marks = []
        for verb, site in self.session.changes:
            if site.layer is None or site.layer >= model.spec.n_layers:
                continue
            heads = range(model.spec.n_heads) if site.kind == "attn_out" else heads_of(site, model.spec)
            marks += [{"layer": site.layer, "head": head, "state": theme.STATES[verb]} for head in heads]
        return marks

    def __panel__(self) -> Any:
        return self.sheet
