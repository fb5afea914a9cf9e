"""Text input: the text that the model reads, and a second one to patch from."""

from typing import Any, ClassVar

import numpy as np
import panel as pn
import panel_material_ui as pmui

from transpector.components import theme
from transpector.components.base import Pane
from transpector.components.parts.notice import Notice
from transpector.state.errors import TranspectorError

N_REPEATED = 24  # tokens of the random span that is then repeated


class TextInput(Pane):
    """The text, run as it is typed; BOS switch, token count, and repeated random tokens at a click."""

    reads: ClassVar = ("run", "text_b")

    def __init__(self, session: Any, **params: Any):
        super().__init__(session, **params)
        self._area = _area("Text", session.text, "Type a text: the model reads it as you type.")
        self._area_b = _area(
            "Text B, to patch from", session.text_b, "A second text, best of as many tokens."
        )
        self._bos = pmui.Switch(
            label="BOS",
            value=False,
            size="small",
            margin=(0, 0, 0, 4),
            description="Begin with the model's BOS token",
        )
        self._repeat = pmui.Button(
            label="Repeated random tokens",
            icon="repeat",
            variant="outlined",
            size="small",
            margin=0,
            description=f"Insert {N_REPEATED} random tokens twice: a head that finds the first copy makes the second one easy (induction)",
        )
        self._count = Notice(dark=self.param.dark)
        self._count_b = Notice(dark=self.param.dark)
        self._taking = False
        self._shown = session.text
        self._area.param.watch(self._typed, "value_input")
        self._area_b.param.watch(lambda event: session.param.update(text_b=event.new), "value_input")
        self._bos.param.watch(lambda event: self._taking or session.param.update(bos=event.new), "value")
        self._repeat.on_click(self._insert_repeated)
        session.param.watch(self._take, ["text", "token_ids", "bos", "model"])
        self._take()

    def _typed(self, event: Any) -> None:
        if not self._taking and event.new != self._shown:
            self._shown = event.new
            self.session.text = event.new

    def _take(self, *events: Any) -> None:
        """Show what the session has been given elsewhere."""
        session = self.session
        self._taking = True
        try:
            if session.token_ids is not None and session.model is not None:
                text = "".join(session.model.pieces(session.token_ids))
            else:
                text = session.text
            if text != self._shown:
                self._shown = self._area.value = text
            if session.model is not None:
                has_bos = session.model.text.bos_id is not None
                self._bos.param.update(
                    value=has_bos and (session.model.text.adds_bos if session.bos is None else session.bos),
                    disabled=not has_bos or session.token_ids is not None,
                )
        finally:
            self._taking = False

    def _insert_repeated(self, event: Any) -> None:
        model = self.session.model
        if model is None:
            return
        n = min(N_REPEATED, (model.spec.n_ctx or 2 * N_REPEATED + 1) // 2)
        ids = np.random.default_rng().choice(model.text.plain_ids(), n).tolist()
        bos = [] if model.text.bos_id is None else [model.text.bos_id]
        self.session.token_ids = [*bos, *ids, *ids]

    def measure(self, run: Any, text_b: str) -> tuple[int, int, int, str]:
        trouble, n_b = "", 0
        if text_b:
            try:
                n_b = len(run.model.tokenize(text_b, run.question.bos))
            except TranspectorError as error:
                trouble = str(error)
        return run.n_pos, run.model.spec.n_ctx, n_b, trouble

    def show(self, numbers: tuple[int, int, int, str]) -> None:
        n_pos, n_ctx, n_b, trouble = numbers
        self._count.text = f"{n_pos:,} of {n_ctx:,} tokens" if n_ctx else f"{n_pos:,} tokens"
        differs = "" if n_b in (0, n_pos) else f", text has {n_pos}: patch single positions"
        self._count_b.text = trouble or (f"{n_b:,} tokens{differs}" if n_b else "")

    def __panel__(self) -> Any:
        return pn.Column(
            self._area,
            pn.Row(self._count, self._bos, sizing_mode="stretch_width", align="center"),
            self._repeat,
            self._area_b,
            self._count_b,
            sizing_mode="stretch_width",
            styles={"gap": f"{theme.UNIT}px"},
        )


def _area(label: str, text: str, placeholder: str) -> pmui.TextAreaInput:
    return pmui.TextAreaInput(
        label=label,
        value=text,
        placeholder=placeholder,
        auto_grow=True,
        rows=2,
        max_rows=6,
        max_length=200_000,
        size="small",
        margin=0,
        sizing_mode="stretch_width",
    )
