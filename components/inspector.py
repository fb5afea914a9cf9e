"""Inspector: what the selected head does at the selected position, and what can be done to it."""

from typing import Any, ClassVar

import panel as pn
import panel_material_ui as pmui

from transpector.components import theme
from transpector.components.base import Pane, visible
from transpector.components.parts.notice import Notice
from transpector.components.parts.position_bars import PositionBars
from transpector.components.parts.promoted_tokens import PromotedTokens
from transpector.components.parts.site_actions import SiteActions
from transpector.state.sites import Site

N_TOKENS = 5
OF_A_HEAD = ("z", "pattern", "scores", "q", "k", "v")
OF_WHAT = "What the buttons below change"
OF_A_RESULT = "Direct effect on the logits, about their mean: the head's result through the final norm and the unembedding"


class Inspector(Pane):
    """The selected head: buttons that intervene on it, what it promotes and suppresses, how much it writes."""

    reads: ClassVar = ("run", "head", "position")

    def __init__(self, session: Any, **params: Any):
        super().__init__(session, **params)
        self._title = Notice(dark=self.param.dark, tone="big")
        self._of = pmui.Select(
            label="Of this head",
            description=OF_WHAT,  # there from the first: a select that gains one later breaks in the browser
            options=list(OF_A_HEAD),
            value="z",
            size="small",
            margin=0,
            sizing_mode="stretch_width",
        )
        self.actions = SiteActions(session, lambda: [self._site()])
        for button in self.actions.buttons:
            button.sizing_mode = "stretch_width"
        self._where = Notice(dark=self.param.dark, tone="heading")
        self._tokens = PromotedTokens(OF_A_RESULT, dark=self.param.dark)
        self._norm = PositionBars("norm", dark=self.param.dark)
        session.param.watch(self._offer, "model")
        self._offer()

    def _site(self) -> Site:
        layer, head = self.session.head
        kind = self._of.value
        if kind in ("k", "v"):  # several heads may read one key-value head
            spec = self.session.model.spec
            head = head * spec.n_kv_heads // spec.n_heads
        return Site(kind, layer, head)

    def _offer(self, *events: Any) -> None:
        """Grey out what this model can't do, with the reason."""
        model = self.session.model
        if model is not None:
            unable = [kind for kind in OF_A_HEAD if not model.health.can_write(kind)]
            self._of.param.update(
                disabled_options=unable,
                description="; ".join(
                    reason for reason in model.health.reasons if reason.split(":")[0] in unable
                )
                or OF_WHAT,
                value="z" if self._of.value in unable else self._of.value,
            )

    def measure(self, run: Any, head: tuple[int, int], position: int) -> dict[str, Any]:
        from transpector.state import direct  # brings torch, which the first paint does not wait for

        at = min(position, run.n_pos - 1)
        up, down = direct.promoted(run, Site("z", *head), at, N_TOKENS)
        norm = direct.result_norm(run, *head)
        pieces = visible(run.tokens)
        return {
            "title": "L{}H{}".format(*head),
            "where": f"at {pieces[at]}  (position {at % run.n_pos})",
            "up": up,
            "down": down,
            "norm": (norm, pieces),
        }

    def show(self, numbers: dict[str, Any]) -> None:
        self._title.text = numbers["title"]
        self._where.text = numbers["where"]
        self._tokens.show(numbers["up"], numbers["down"])
        self._norm.show(*numbers["norm"])

    def refuse(self, reason: str) -> None:
        self._title.text = "L{}H{}".format(*self.session.head)
        self._tokens.refuse(reason)
        self._norm.figure.visible = False

    def __panel__(self) -> Any:
        buttons = self.actions.buttons
        return pn.Column(
            self._title,
            self._of,
            pn.Row(*buttons[:2], sizing_mode="stretch_width", styles={"gap": f"{theme.UNIT}px"}),
            pn.Row(*buttons[2:], sizing_mode="stretch_width", styles={"gap": f"{theme.UNIT}px"}),
            self._where,
            self._tokens,
            Notice(
                text="norm of what it writes, by position",
                hint="‖z @ W_O‖",
                tone="heading",
                dark=self.param.dark,
            ),
            self._norm,
            sizing_mode="stretch_width",
            styles={"gap": f"{theme.UNIT}px"},
        )
