"""Notebook: the dashboard in a cell."""

from typing import Any

import panel as pn

from transpector.dashboard import Dashboard
from transpector.state.session import Session


def inspect(model: Any = "builtin", text: str = "", **question: Any) -> Dashboard:
    """The dashboard on a model and a text; ``.session`` is what a notebook and the page share.

    ``model`` is a Model, a TransformerBridge, or what ``load_model`` takes; ``question`` further parameters of the
    Session. Works without internet.
    """
    pn.extension(inline=True)  # else a notebook fetches its scripts, and without internet shows nothing
    session = Session(text=text, **question)
    dashboard = Dashboard(session)
    if isinstance(model, str):
        session.load(model)
    else:
        from transpector.state.models import Model, load_model

        session.model = model if isinstance(model, Model) else load_model(model)
    return dashboard
