"""The dashboard as a page, without a browser."""

import panel as pn
from panel.util import edit_readonly

from transpector.dashboard import Dashboard
from transpector.state.session import Session


def test_a_page_is_busy_with_its_own_session_only():
    """Panel's own sign that something is busy is the process's: following it, each page writes to all others."""
    session = Session()
    board = Dashboard(session)
    page = board.page()
    with edit_readonly(pn.state):
        pn.state.busy = True
        try:
            assert not page.busy
        finally:
            pn.state.busy = False
    session.loading = ("a model", None)
    assert page.busy
    session.loading = ("", None)
    assert not page.busy
