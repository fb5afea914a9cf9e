"""Dashboard: which panes there are, and where; a page when served, a plain layout in a notebook."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import panel as pn
import panel_material_ui as pmui
import param
from panel.util import edit_readonly
from panel.viewable import Viewer

from transpector.components import theme
from transpector.components.causal_map import CausalMap
from transpector.components.contact_sheet import AttentionSheet
from transpector.components.continuation import Continuation
from transpector.components.contributions import ContributionsPane
from transpector.components.guide import Guide
from transpector.components.heads import HeadFinder
from transpector.components.inspector import Inspector
from transpector.components.intervene import Intervene
from transpector.components.keyboard import Keyboard
from transpector.components.lens import LensPane
from transpector.components.loss import TokenLoss
from transpector.components.metric_readout import MetricReadout
from transpector.components.model_selector import ModelSelector
from transpector.components.neurons import NeuronsPane
from transpector.components.next_tokens import NextTokens
from transpector.components.parts.notice import Notice
from transpector.components.patch_table import PatchTable
from transpector.components.run_state import RunState
from transpector.components.search import TokenSearch
from transpector.components.selected_head import SelectedHead
from transpector.components.stream import StreamPane
from transpector.components.text_input import TextInput
from transpector.components.token_strip import TextStrip
from transpector.components.weights import WeightsPane
from transpector.state.session import Session

ASSETS = Path(__file__).parent / "assets"


class Dashboard(Viewer):
    """Every view of one session. ``dark`` follows the page's switch; in a notebook it may be set."""

    session = param.ClassSelector(class_=Session, doc="The question and its answer.")
    dark = param.Boolean(default=False, doc="Whether the page is dark.")
    tab = param.Selector(
        default="Attention",
        objects=[
            "Attention",
            "Graph",
            "Lens",
            "Stream",
            "Contributions",
            "Causal map",
            "Heads",
            "Weights",
            "Neurons",
            "Search",
            "Generate",
        ],
        doc="Which tab of the middle is open.",
    )

    def __init__(self, session: Session, **params: Any):
        super().__init__(session=session, **params)
        session.inbox.schedule = scheduler()
        # Bokeh loses what another thread schedules while it is still setting up the page's session.
        pn.state.onload(session.inbox.drain)
        dark = self.param.dark
        self.selector = ModelSelector(session, dark=dark)
        self.run_state = RunState(session, self.selector.open, dark=dark)
        self.text = TextInput(session, dark=dark)
        self.metric = MetricReadout(session, dark=dark)
        self.table = PatchTable(session, dark=dark)
        self.form = Intervene(session, dark=dark)
        self.strip = TextStrip(session, dark=dark)
        self.sheet = AttentionSheet(session, dark=dark)
        self.head = SelectedHead(session, dark=dark)
        self.loss = TokenLoss(session, dark=dark)
        self.next_tokens = NextTokens(session, dark=dark)
        self.late: dict[str, Any] = {}
        """What a tab shows, once it has been opened: until then it would only keep the page waiting."""
        self.part: Any = None
        self.inspector = Inspector(session, dark=dark)
        self._beside = pn.Column(
            pn.Column(self.inspector, sizing_mode="stretch_width"), sizing_mode="stretch_width"
        )
        self.error = Notice(dark=dark, tone="error")
        self.note = Notice(dark=dark, tone="warning")
        self.guide = Guide(session, dark=dark)
        self.keyboard = Keyboard(session, {"n": self._write_note}, self._step, dark=dark)
        self._head_title, self._next_title = self._heading(""), self._heading("")
        # After the inspectors themselves: what changes while it is being shown is lost on a button.
        session.param.watch(self._inspect, "selection", precedence=1)
        session.param.watch(self._tell, ["error", "note", "run", "head", "position"])
        self.tabs = pmui.TabMenu(
            items=list(self.param.tab.objects), active=0, margin=0, sizing_mode="stretch_width", sx=_TABS
        )
        self.tabs.param.watch(
            lambda event: self.param.update(tab=self.param.tab.objects[event.new]), "active"
        )
        self._contents = {
            name: self._attention() if name == "Attention" else pn.Column(sizing_mode="stretch_width")
            for name in self.param.tab.objects
        }
        self._open()
        self._tell()

    @param.depends("tab", watch=True)
    def _open(self) -> None:
        """Show one tab; what is in another waits, so as not to slow this one down."""
        is_attention = self.tab == "Attention"
        for pane in (self.sheet, self.head, self.loss, self.next_tokens):
            pane.in_view = is_attention
        if not is_attention and self.tab not in self.late:
            self.late[self.tab] = _MAKES[self.tab](self.session, dark=self.param.dark)
            self._contents[self.tab].append(self.late[self.tab])
        for name, pane in self.late.items():
            pane.in_view = self.tab == name
        self._inspect()
        for name, content in self._contents.items():
            content.visible = name == self.tab
        self.tabs.active = self.param.tab.objects.index(self.tab)

    def _write_note(self) -> None:
        self.tab = "Graph"
        self.late["Graph"].bar.note.focus()

    def _step(self, key: str) -> None:
        if "Graph" in self.late:
            self.late["Graph"].step(key)

    def _inspect(self, *events: Any) -> None:
        """Beside the graph is whatever part is selected there; elsewhere, the head."""
        is_part = self.tab in _SELECTS_PARTS and self.session.selection != [
            "L{}H{}.z".format(*self.session.head)
        ]
        if is_part and self.part is None:
            from transpector.components.graph.part import PartInspector

            self.part = PartInspector(self.session, dark=self.param.dark)
            self._beside.append(pn.Column(self.part, sizing_mode="stretch_width"))
        self.inspector.in_view = self._beside[0].visible = not is_part
        if self.part is not None:
            self.part.in_view = self._beside[1].visible = is_part

    def close(self) -> None:
        """Let go of the model, for good."""
        for pane in filter(None, (*self.late.values(), self.part)):
            pane.close()
        self.session.close()

    def _heading(self, text: str, hint: str = "") -> Notice:
        return Notice(text=text, hint=hint, tone="heading", dark=self.param.dark)

    def _tell(self, *events: Any) -> None:
        session = self.session
        self.error.text = session.error
        self.note.text = " ".join(filter(None, (session.note, *(session.run.notes if session.run else ()))))
        self._head_title.text = "L{}H{}: what each token attends to".format(*session.head)
        where = "the last token" if session.position == -1 else f"position {session.position}"
        self._next_title.text = f"Next token after {where}"

    def _left(self) -> list[Any]:
        return [
            pn.Column(
                self.text,
                pmui.Divider(sizing_mode="stretch_width", margin=0),
                self.metric,
                pmui.Divider(sizing_mode="stretch_width", margin=0),
                self._heading("Interventions"),
                self.table,
                self.form,
                sizing_mode="stretch_width",
                margin=(theme.UNIT, 2 * theme.UNIT),
                styles={"gap": f"{2 * theme.UNIT}px"},
            )
        ]

    def _attention(self) -> pn.Row:
        def column(share: int, *panes: Any) -> pn.Column:
            styles = {"flex": f"{share} 1 0", "min-width": "0", "gap": f"{theme.UNIT}px"}
            return pn.Column(*panes, sizing_mode="stretch_width", styles=styles)

        return pn.Row(
            column(
                3,
                pn.Row(
                    self._heading("Attention of every head", "Click a head, or use the arrow keys"),
                    self.sheet.colour,
                    sizing_mode="stretch_width",
                    align="center",
                ),
                self.sheet,
                self._heading("Loss per token", "The line is now, grey the baseline"),
                pn.Column(self.loss, height=208, sizing_mode="stretch_width"),
            ),
            column(
                2,
                self._head_title,
                pn.Column(self.head, height=360, sizing_mode="stretch_width"),
                self._next_title,
                self.next_tokens,
            ),
            sizing_mode="stretch_width",
            styles={"gap": f"{3 * theme.UNIT}px"},
        )

    def _middle(self) -> list[Any]:
        return [
            pn.Column(
                self.error,
                self.note,
                self.guide,
                self.strip,
                self.tabs,
                *self._contents.values(),
                sizing_mode="stretch_width",
                margin=(theme.UNIT, 2 * theme.UNIT),
                styles={"gap": f"{2 * theme.UNIT}px"},
            ),
            self.selector,
            self.keyboard,
        ]

    def _right(self) -> list[Any]:
        return [pn.Column(self._beside, sizing_mode="stretch_width", margin=(theme.UNIT, 2 * theme.UNIT))]

    def page(self) -> pmui.Page:
        """The dashboard as a whole page, with its own switch between light and dark."""
        self.keyboard.listener.everywhere = True
        page = pmui.Page(
            title="Transpector",
            favicon=str(ASSETS / "favicon.svg"),
            theme_config=theme.theme_config(),
            header=[self.run_state],
            sidebar=self._left(),
            sidebar_width=296,
            main=[self.keyboard.listener, *self._middle()],
            contextbar=self._right(),
            contextbar_open=True,
            contextbar_variant="persistent",
            contextbar_width=296,
            dark_theme=self.dark,
        )
        page.param.watch(lambda event: self.param.update(dark=event.new), "dark_theme")
        with edit_readonly(page):
            # Left alone it follows whatever any page of this process does: those would write to this one's document
            # without its lock, which fails, and would never let go of it.
            page.busy = self.run_state.param.busy
        return page

    def __panel__(self) -> Any:
        """The dashboard as a plain layout, for a notebook cell."""
        return pn.Column(
            self.keyboard.listener,  # in the same column as all the rest, whose keys it hears
            self.run_state,
            pn.Row(
                pn.Column(*self._left(), width=296),
                pn.Column(*self._middle(), sizing_mode="stretch_width"),
                pn.Column(*self._right(), width=280),
                sizing_mode="stretch_width",
            ),
            sizing_mode="stretch_width",
            styles={"background": theme.ground(self.dark).paper},
        )


def _model_graph(session: Session, **params: Any) -> Any:
    from transpector.components.graph.pane import ModelGraph  # brings a library that nothing else needs

    return ModelGraph(session, **params)


_SELECTS_PARTS = ("Graph", "Lens", "Stream", "Contributions", "Neurons", "Search")
"""Tabs in which more than heads can be selected."""

_MAKES: dict[str, Callable[..., Any]] = {
    "Graph": _model_graph,
    "Lens": LensPane,
    "Stream": StreamPane,
    "Contributions": ContributionsPane,
    "Causal map": CausalMap,
    "Heads": HeadFinder,
    "Weights": WeightsPane,
    "Neurons": NeuronsPane,
    "Search": TokenSearch,
    "Generate": Continuation,
}
"""What each tab shows but the first, which is there at once."""

# As quiet as the rest of the page.
_TABS = {
    "minHeight": 32,
    "boxShadow": "inset 0 -1px 0 var(--mui-palette-divider, rgba(128, 128, 128, .25))",
    "& .MuiTab-root": {
        "minHeight": 32,
        "minWidth": 0,
        "padding": "4px 9px",
        "textTransform": "none",
        "fontSize": 13,
    },
}


def scheduler() -> Callable[[Callable[[], None]], None] | None:
    """How a session has something done on the thread of this page, or of this notebook; None where there is no loop."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None
    document = pn.state.curdoc
    if document is None or document.session_context is None:
        document = None

    def on_page(function: Callable[[], None]) -> None:
        # First to its thread: a callback that another one adds while changes are being held is lost with some luck.
        with contextlib.suppress(RuntimeError):  # its loop has ended, and the page with it
            loop.call_soon_threadsafe(function if document is None else lambda: _add(document, function))

    return on_page


def _add(document: Any, function: Callable[[], None]) -> None:
    """Have a function called under the lock of a page's document, unless the page has gone."""
    if not document.session_context.destroyed:
        document.add_next_tick_callback(function)
