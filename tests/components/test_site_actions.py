"""The buttons that change the sites at hand, without a browser."""

import transpector as tp
from transpector.components.parts.site_actions import SiteActions

FOUR = ["Zero", "Mean", "Freeze", "Patch"]


def test_there_are_four_buttons_unless_more_are_asked_for(random_lm):
    session = tp.Session(model=random_lm("llama"), text="the city of Paris").wait()
    sites = [tp.Site("z", 1, 2), tp.Site("z", 1, 3)]
    actions = SiteActions(session, lambda: sites)
    assert [*actions.makes] == [button.label for button in actions.buttons] == FOUR
    actions = SiteActions(session, lambda: sites, more={"Scale": lambda site: tp.Scale(site, 2)})
    assert [button.label for button in actions.buttons] == [*FOUR, "Scale"]
    assert [button.disabled for button in actions.buttons] == [False, False, False, True, False]
    session.text_b = "the tree of Paris"
    assert not any(button.disabled for button in actions.buttons)
    actions.do("Scale")
    assert session.interventions == [tp.Scale(site, 2) for site in sites]
