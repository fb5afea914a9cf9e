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
    "HeadScores": "state.heads",
    "Intervention": "state.interventions",
    "InterventionError": "state.errors",
    "Message": "state.chat",
    "Metric": "state.metric",
    "Model": "state.models",
    "ModelError": "state.errors",
    "Neurons": "state.neurons",
    "Note": "state.notes",
    "Patch": "state.interventions",
    "Question": "state.interventions",
    "Run": "state.run",
    "Scale": "state.interventions",
    "Session": "state.session",
    "Set": "state.interventions",
    "Site": "state.sites",
    "SiteError": "state.errors",
    "Skip": "state.interventions",
    "Steer": "state.steering",
    "Sweep": "state.sweep",
    "TextError": "state.errors",
    "TokenVector": "state.steering",
    "TranspectorError": "state.errors",
    "Vector": "state.steering",
    "composition": "state.composition",
    "contributions": "state.contributions",
    "copied_tokens": "state.circuits",
    "copying": "state.circuits",
    "cosines": "state.stream",
    "dim_tokens": "state.neurons",
    "distance": "state.distance",
    "from_json": "state.notation",
    "from_text": "state.grid",
    "generate": "state.generation",
    "gradients": "state.stream",
    "graph": "state.graph",
    "head_scores": "state.heads",
    "heads_with_pattern": "state.heads",
    "inspect": "notebook",
    "lens": "state.lens",
    "load_model": "state.models",
    "neuron_tokens": "state.neurons",
    "neurons": "state.neurons",
    "ov_eigenvalues": "state.circuits",
    "ov_tokens": "state.circuits",
    "promoted": "state.direct",
    "qk_tokens": "state.circuits",
    "repeated_random": "state.heads",
    "similar_heads": "state.heads",
    "singular_values": "state.composition",
    "stream": "state.stream",
    "sweep": "state.sweep",
    "to_json": "state.notation",
    "writers": "state.writers",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'transpector' has no attribute {name!r}")
    return getattr(import_module(f"transpector.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
