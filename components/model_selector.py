"""Model selector: find a model, see what it is and whether it fits, load it."""

import asyncio
from typing import Any

import panel as pn
import panel_material_ui as pmui
import param
from panel.viewable import Viewer

from transpector.components import theme
from transpector.components.parts.fact_table import FactTable
from transpector.components.parts.notice import Notice
from transpector.state.errors import TranspectorError

N_FOUND = 30  # models offered for what is typed
DTYPES = ("float32", "bfloat16", "float16")
SOURCES = {
    "builtin": "in the box",
    "wheel": "on this computer",
    "cache": "on this computer",
    "directory": "on this computer",
    "gguf": "on this computer",
    "hub": "on the hub",
}


class ModelName(pmui.AutocompleteInput):
    """A name to be typed; what is found on this computer and in the library's registry is offered as it is."""

    value = param.String(
        default="builtin",
        allow_None=True,
        doc="The name, kept though there are no options that it could be one of.",
    )

    _restrict = False
    _esm_base = "Autocomplete.jsx"

    def _handle_msg(self, message: dict) -> None:
        if message.get("type") == "search":
            self._searching = asyncio.ensure_future(self._find(message["id"], str(message.get("query", ""))))

    async def _find(self, query_id: int, query: str) -> None:
        from transpector.state.catalogue import search

        found = await asyncio.to_thread(search, query, N_FOUND)
        self._send_msg(
            {"type": "search_response", "id": query_id, "options": [entry.name for entry in found]}
        )


class ModelSelector(Viewer):
    """A dialog over the page; nothing in it blocks the page or another user."""

    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")

    def __init__(self, session: Any, **params: Any):
        super().__init__(**params)
        self.session = session
        wide = {"size": "small", "margin": 0, "sizing_mode": "stretch_width"}
        self.model = ModelName(
            label="Model",
            placeholder="builtin, a Hugging Face id, a directory, or a .gguf file",
            value="builtin",
            restrict=False,
            min_characters=0,
            lazy_search=True,
            **wide,
        )
        self.device = pmui.Select(label="Device", options=["cpu"], value="cpu", **wide)
        self.dtype = pmui.Select(label="Precision", options=list(DTYPES), value=DTYPES[0], **wide)
        # As high as it gets: a button that moves up while it is being pressed is not pressed.
        self.facts = FactTable(dark=self.param.dark, min_height=188)
        self.trouble = Notice(dark=self.param.dark, tone="warning")
        self.loading = Notice(dark=self.param.dark)
        self.load = pmui.Button(label="Load", variant="contained", size="small", margin=0)
        self.cancel = pmui.Button(label="Cancel", variant="text", size="small", margin=0, visible=False)
        self._below = self._column()
        self.dialog = pmui.Dialog(
            self._column(self.model, self._below, margin=(theme.UNIT, 0)),
            title="Model",
            width_option="sm",
            show_close_button=True,
            close_on_click=True,  # beside it, or Escape
        )
        self._asked = 0
        for widget in (self.model, self.device, self.dtype):
            widget.param.watch(self._describe, "value")
        self.model.param.watch(self._typed, "value_input")
        self.load.on_click(self._load)
        self.cancel.on_click(lambda event: session.cancel())
        session.param.watch(self._tell, ["loading", "error", "model"])

    def _facts_and_buttons(self) -> list[Any]:
        return [
            pn.Row(self.device, self.dtype, sizing_mode="stretch_width", styles={"gap": f"{theme.UNIT}px"}),
            self.facts,
            self.trouble,
            self.loading,
            pn.Row(self.load, self.cancel, styles={"gap": f"{theme.UNIT}px"}),
        ]

    def _column(self, *parts: Any, **options: Any) -> pn.Column:
        styles = {"gap": f"{2 * theme.UNIT}px"}
        return pn.Column(*parts, sizing_mode="stretch_width", styles=styles, **options)

    def open(self) -> None:
        """Show the dialog, with the models on this computer to choose from."""
        if not self._below:  # before, it would only keep a page waiting that opens
            self._below[:] = self._facts_and_buttons()
        self.dialog.open = True
        self._filling = asyncio.ensure_future(self._fill())

    async def _fill(self) -> None:
        from transpector.state.spec import devices

        if self.session.model is not None:
            self.model.value = self.session.model.name
        self.device.options = await asyncio.to_thread(devices)
        await self._describe()

    async def _describe(self, *events: Any) -> None:
        """Look a model up before it is loaded: its shape, and its memory against what is free."""
        from transpector.state.catalogue import resolve
        from transpector.state.spec import describe

        self._asked += 1
        asked = self._asked
        name, device, dtype = self.model.value, self.device.value, self.dtype.value
        try:
            entry = await asyncio.to_thread(resolve, name)
            spec = await asyncio.to_thread(describe, entry, device, dtype)
        except TranspectorError as error:
            if asked == self._asked:
                self.facts.rows = []
                self.trouble.text = str(error)
                self.load.disabled = True
            return
        if asked != self._asked:
            return
        self.trouble.text = (
            "" if spec.fits else "It does not fit. Choose another precision or a smaller model."
        )
        self.load.disabled = not spec.fits
        self.facts.rows = [
            ["where", SOURCES[entry.source]],
            ["architecture", spec.architecture],
            [
                "layers × heads",
                f"{spec.n_layers} × {spec.n_heads}"
                + (f" ({spec.n_kv_heads} key-value heads)" if spec.n_kv_heads != spec.n_heads else ""),
            ],
            ["d_model · d_head · d_mlp", f"{spec.d_model:,} · {spec.d_head:,} · {spec.d_mlp:,}"],
            ["vocabulary", f"{spec.d_vocab:,}"],
            ["context", f"{spec.n_ctx:,} tokens"],
            ["parameters", f"{spec.n_params / 1e6:,.1f} million"],
            ["memory", f"{_gigabytes(spec.bytes_needed)} needed, {_gigabytes(spec.bytes_free)} free"],
        ]

    def _typed(self, event: Any) -> None:
        """Forget what was said of another name; a name is looked up once Enter or a choice makes it the value."""
        if event.new != self.model.value:
            self._asked += 1
            self.facts.rows, self.trouble.text = [], ""
            self.load.disabled = bool(self.session.loading[0])

    def _load(self, event: Any) -> None:
        name, device, dtype = self.model.value_input, self.device.value, self.dtype.value
        model = self.session.model
        if model is not None and (name, device, dtype) == (model.name, model.spec.device, model.spec.dtype):
            self.dialog.open = False
        else:
            self.session.load(name, device, dtype)

    def _tell(self, *events: Any) -> None:
        what, fraction = self.session.loading
        self.cancel.visible = bool(what)
        self.load.disabled = bool(what)
        percent = "" if fraction is None else f" ({fraction:.0%})"
        self.loading.text = f"Loading {what}{percent}" if what else ""
        if self.session.error and self.dialog.open:
            self.trouble.text = self.session.error
        if any(event.name == "model" for event in events):
            self.dialog.open = False

    def __panel__(self) -> Any:
        return self.dialog


def _gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:,.2f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:,.1f} MB"
