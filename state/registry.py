"""The names of the models that TransformerLens has on record, and the short names still typed for them."""

import functools
import importlib.util
import json
from pathlib import Path
from typing import NamedTuple

# The endings of architectures that read text from left to right and predict the next token.
_CAUSAL = ("ForCausalLM", "LMHeadModel")

# Names without an author that the hub still answers to, and where their models moved.
_MOVED = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "openai-gpt": "openai-community/openai-gpt",
    "distilgpt2": "distilbert/distilgpt2",
}


class Known(NamedTuple):
    """A hub model on record; `verified`: TransformerLens compared its numbers with Hugging Face's."""

    name: str
    architecture: str | None
    verified: bool
    key: str  # the name in lower case


def is_causal(architectures: list[str] | None) -> bool | None:
    """Whether a configuration's class names say that it predicts the next token; None if they say nothing."""
    if not architectures:
        return None
    return any(name.endswith(_CAUSAL) for name in architectures)


@functools.cache
def known_models() -> tuple[Known, ...]:
    """The causal language models on record, read from the registry's file: importing it imports torch."""
    try:
        rows = json.loads(_file("supported_models.json").read_bytes())["models"]
        models = [_known(row["model_id"], row["architecture_id"], row.get("status") == 1) for row in rows]
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        # The file is not TransformerLens's public face; this is, and costs the import.
        from transformer_lens.model_bridge import TransformerBridge

        models = [_known(name, None, False) for name in TransformerBridge.list_supported_models()]
    return tuple(model for model in models if is_causal([model.architecture or "ForCausalLM"]))


def _known(name: str, architecture: str | None, verified: bool) -> Known:
    return Known(name, architecture, verified, name.lower())


def full_name(name: str) -> str:
    """The id that a short name such as "gpt2" or "pythia-70m" stands for, or `name` itself."""
    official = _aliases().get(name.lower(), name)
    return _MOVED.get(official.lower(), official)


@functools.cache
def official_names() -> frozenset[str]:
    """The ids that were thought worth a short name: what people most often look for."""
    return frozenset(_aliases().values()) | frozenset(_MOVED.values())


@functools.cache
def _aliases() -> dict[str, str]:
    try:
        aliases = json.loads(_file("model_aliases.json").read_bytes())["aliases"]
        return {alias.lower(): official for official, names in aliases.items() for alias in names}
    except (OSError, ValueError, LookupError, AttributeError):
        return {}


def _file(name: str) -> Path:
    spec = importlib.util.find_spec("transformer_lens")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        return Path(folder) / "tools" / "model_registry" / "data" / name
    raise FileNotFoundError(name)
