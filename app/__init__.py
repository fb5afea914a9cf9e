"""Transpector looks inside transformer language models: see every head, ablate, freeze and patch any activation."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public names, each imported when it is first asked for (PEP 562): `import transpector` alone costs nothing.
_HOME = {
    "Ablate": "state.interventions",
    "Cancelled": "state.errors",
    "Dashboard": "dashboard",
    "Difference": "state.steering",
    "Freeze": "state.interventions",
    "Generation": "state.generation",
    "Graph": "state.graph",
    "Intervention": "state.interventions",
    "InterventionError": "state.errors",
    "Message": "state.chat",
    "Metric": "state.metric",
    "Model": "state.models",
    "ModelError": "state.errors",
    "Note": "state.notes",
    "Patch": "state.interventions",
    "Question": "state.interventions",
    "Run": "state.run",
    "Session": "state.session",
    "Site": "state.sites",
    "SiteError": "state.errors",
    "Skip": "state.interventions",
    "Steer": "state.steering",
    "Sweep": "state.sweep",
    "TextError": "state.errors",
    "TokenVector": "state.steering",
    "TranspectorError": "state.errors",
    "Vector": "state.steering",
    "contributions": "state.contributions",
    "cosines": "state.stream",
    "from_json": "state.notation",
    "from_text": "state.grid",
    "generate": "state.generation",
    "gradients": "state.stream",
    "graph": "state.graph",
    "inspect": "notebook",
    "lens": "state.lens",
    "load_model": "state.models",
    "promoted": "state.direct",
    "stream": "state.stream",
    "sweep": "state.sweep",
    "to_json": "state.notation",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'transpector' has no attribute {name!r}")
    return getattr(import_module(f"transpector.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
