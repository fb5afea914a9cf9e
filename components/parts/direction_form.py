"""Direction form: where the vector comes from that steering adds."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import panel as pn
import panel_material_ui as pmui
import param
from panel.viewable import Viewer

from transpector.components import theme
from transpector.components.parts.notice import Notice
from transpector.state.errors import InterventionError
from transpector.state.steering import Difference, Direction, TokenVector, Vector

LAST, MEAN, UNEMBED, EMBED, SAVED = SORTS = (
    "Two texts, last tokens",
    "Two texts, means",
    "Token: unembedding",
    "Token: embedding",
    "Saved vector (.npy)",
)
MAX_BYTES = 4_000_000
_SAYS = {
    LAST: "What the site holds at the end of one text, less what it holds at the end of the other",
    MEAN: "The same of the means over the texts, without their first tokens",
    UNEMBED: "The direction that reads the token's logit",
    EMBED: "What the token puts into the residual stream",
    SAVED: "Numbers that numpy saved, as many as the site holds at a position",
}


class DirectionForm(Viewer):
    """Choose a direction; ``entered`` is called on Enter. ``direction`` says which, or what is missing."""

    dark = param.Boolean(default=False, allow_refs=True, doc="Whether the page is dark.")

    def __init__(self, entered: Callable[[], None], **params: Any):
        super().__init__(**params)
        narrow = {"size": "small", "margin": 0, "sizing_mode": "stretch_width"}
        self.sort = pmui.Select(
            label="Direction", options=list(SORTS), value=LAST, description=_SAYS[LAST], **narrow
        )
        self.toward = pmui.TextInput(label="Towards", placeholder="I love this", **narrow)
        self.away = pmui.TextInput(label="Away from", placeholder="I hate this", **narrow)
        self.token = pmui.TextInput(
            label="Token",
            placeholder="one token",
            description="One token, with its space: ' Paris'",
            **narrow,
        )
        self.file = pn.widgets.FileInput(accept=".npy", margin=0, sizing_mode="stretch_width")
        self._says = Notice(text=_SAYS[LAST], dark=self.param.dark)
        for field in (self.toward, self.away, self.token):
            field.param.watch(lambda event: entered(), "enter_pressed")
        self.sort.param.watch(self._arrange, "value")
        self._layout = pn.Column(
            self.sort,
            self._says,
            self.toward,
            self.away,
            self.token,
            self.file,
            sizing_mode="stretch_width",
            styles={"gap": f"{theme.UNIT + 4}px"},
        )
        self._arrange()

    def _arrange(self, *events: Any) -> None:
        sort = self.sort.value
        self._says.text = _SAYS[sort]
        self.toward.visible = self.away.visible = sort in (LAST, MEAN)
        self.token.visible = sort in (UNEMBED, EMBED)
        self.file.visible = sort == SAVED

    def direction(self) -> Direction:
        """The direction that is chosen; raises InterventionError with what is missing."""
        sort = self.sort.value
        if sort in (LAST, MEAN):
            texts = self.toward.value_input, self.away.value_input  # Enter is heard of before the value is
            if not all(texts):
                raise InterventionError(
                    "A difference wants two texts: one to steer towards, one to steer away from."
                )
            return Difference(*texts, "last" if sort == LAST else "mean")
        if sort == SAVED:
            return self._saved()
        if not self.token.value_input:
            raise InterventionError(
                "Type the token whose vector is to be added, such as ' Paris' with its space."
            )
        return TokenVector(self.token.value_input, "unembed" if sort == UNEMBED else "embed")

    def _saved(self) -> Vector:
        raw, name = self.file.value, self.file.filename
        if not raw:
            raise InterventionError("Choose a .npy file, as numpy.save writes it.")
        if len(raw) > MAX_BYTES:
            raise InterventionError(
                f"{name} has {len(raw) / 1e6:.0f} MB; a direction has few numbers. Choose another."
            )
        try:
            values = np.load(io.BytesIO(raw), allow_pickle=False)
            return Vector(tuple(np.asarray(values, np.float32).ravel().tolist()), str(name))
        except (ValueError, TypeError, EOFError, OSError) as error:
            raise InterventionError(f"{name} holds no vector: {error}. Save one with numpy.save.") from error

    def __panel__(self) -> Any:
        return self._layout
