"""Site actions: buttons that change the sites at hand."""

from collections.abc import Callable, Mapping
from typing import Any

import panel_material_ui as pmui

from transpector.components import theme
from transpector.components.base import notify
from transpector.state.errors import TranspectorError
from transpector.state.interventions import Ablate, Freeze, Intervention, Patch
from transpector.state.sites import Site

Make = Callable[[Site], Intervention]

_LOOKS = {
    "Zero": (theme.ICONS["ablated"], "Set it to zero"),
    "Mean": ("functions", "Set it to its mean over the positions of the baseline"),
    "Freeze": (
        theme.ICONS["frozen"],
        "Hold the value it has now, while the text or other interventions change",
    ),
    "Patch": (theme.ICONS["patched"], "Write into it what it holds on text B"),
    "Scale": ("tune", "Multiply it by 2; slide the factor in the table"),
    "Set": ("edit", "Write a number into it"),
}


class SiteActions:
    """Four buttons on one session, and ``more``; ``sites`` says what they change when they are pressed."""

    def __init__(
        self,
        session: Any,
        sites: Callable[[], list[Site]],
        icons_only: bool = False,
        more: Mapping[str, Make] | None = None,
    ):
        self.session, self._sites, self._icons_only = session, sites, icons_only
        self.makes: dict[str, Make] = {
            "Zero": Ablate,
            "Mean": lambda site: Ablate(site, "mean"),
            "Freeze": Freeze,
            "Patch": lambda site: Patch(site, site, self.session.text_b),
            **(more or {}),
        }
        """What each button makes of a site."""
        self.buttons = [self._button(label) for label in self.makes]
        session.param.watch(self.offer, ["model", "text_b"])
        self.offer()

    def offer(self, *events: Any) -> None:
        """Grey out what can't be done now, with the reason."""
        session = self.session
        no_model = session.model is None
        unable = no_model or not self._able()
        for button in self.buttons:
            button.disabled = unable
        patch = self.buttons[list(self.makes).index("Patch")]
        patch.param.update(
            disabled=unable or not session.text_b,
            description=_LOOKS["Patch"][1] if session.text_b else "Type a text B first",
        )

    def do(self, label: str) -> None:
        """Intervene on every site at hand, in one step that one undo takes back."""
        try:
            self.session.add(*map(self.makes[label], self._sites()))
        except TranspectorError as error:
            notify(str(error))

    def _able(self) -> bool:
        sites = self._sites()
        return bool(sites) and all(self.session.model.health.can_write(site.kind) for site in sites)

    def _button(self, label: str) -> Any:
        icon, says = _LOOKS[label]
        look = {"label": label, "icon": icon, "description": says, "size": "small", "margin": 0}
        button = pmui.IconButton(**look) if self._icons_only else pmui.Button(variant="outlined", **look)
        button.on_click(lambda event: self.do(label))
        return button
