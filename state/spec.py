"""What a model is and whether it fits, known before it is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transpector.state import checkpoint, conversion, gguf
from transpector.state.catalogue import Entry
from transpector.state.errors import ModelError
from transpector.state.registry import is_causal

DTYPES = ("float32", "bfloat16", "float16")

_ITEM_SIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
_CONTROL_GROUP = Path("/sys/fs/cgroup")
_MARGIN_TOKENS = 256  # the length of text whose activations the margin covers

# How configurations and GGUF headers name the same dimension, in the order in which they are tried.
_NAMES = {
    "n_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "block_count"),
    "n_heads": (
        "num_attention_heads",
        "n_head",
        "n_heads",
        "num_heads",
        "attention_heads",
        "attention.head_count",
    ),
    "n_kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "attention.head_count_kv"),
    "d_model": ("hidden_size", "n_embd", "d_model", "embedding_length"),
    "d_head": ("head_dim", "attention.key_length"),
    "d_mlp": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff", "feed_forward_length"),
    "d_vocab": ("vocab_size",),
    "n_ctx": (
        "max_position_embeddings",
        "n_positions",
        "max_sequence_length",
        "max_seq_len",
        "seq_length",
        "n_ctx",
        "context_length",
    ),
}


@dataclass(frozen=True)
class ModelSpec:
    """A model's dimensions, and the memory it takes on a device in a dtype, in bytes.

    A dimension is 0 where the model has none or its configuration doesn't say. `bytes_needed` holds the
    weights, the activations of a short text, and what a GGUF takes while it is converted.
    """

    name: str
    architecture: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int
    n_params: int
    dtype: str
    device: str
    bytes_needed: int
    bytes_free: int

    @property
    def fits(self) -> bool:
        """Whether the device has the memory that the model needs."""
        return self.bytes_needed <= self.bytes_free


def describe(entry: Entry, device: str = "cpu", dtype: str = "float32") -> ModelSpec:
    """What `entry` is, from its configuration and the headers of its weights; nothing is loaded.

    For a model that isn't on this computer it asks the hub, and without a network it says so within 5 s.

    Raises:
        ModelError: the model can't be found or read, is no causal language model, or there is no such device.
    """
    if dtype not in DTYPES:
        raise ModelError(f"There is no dtype {dtype!r}. Choose one of {', '.join(DTYPES)}.")
    if device != "cpu" and device not in devices():
        raise ModelError(f"There is no device {device!r} here. Choose one of {', '.join(devices())}.")
    path = entry.path
    if path is None:
        from transpector.state import hub

        listing = hub.look_up(entry.name)
        config = checkpoint.read_config(listing.directory)
        return describe_config(entry.name, config, listing.n_params, device, dtype)
    if not path.exists():
        raise ModelError(f"{entry.name} is no longer at {path}. Choose another model.")
    if path.suffix.lower() == ".gguf" and path.is_file():
        done = conversion.converted(path, dtype)
        if done is None:
            header = gguf.read_header(path)
            sizes = {key: value for key, value in _gguf_config(header).items() if value is not None}
            # Measured: the file, the largest tensor in float32 and copies come on top of the weights.
            more = header.n_params * _ITEM_SIZE[dtype] // 2
            return describe_config(entry.name, sizes, header.n_params, device, dtype, more)
        path = done
    checkpoint.require_weights(entry.name, path)
    config = checkpoint.read_config(path)
    return describe_config(entry.name, config, checkpoint.count_parameters(path, config), device, dtype)


def describe_config(
    name: str, config: dict[str, Any], n_params: int, device: str, dtype: str, more: int = 0
) -> ModelSpec:
    """The same from a configuration at hand; `more` bytes are needed on top of weights and activations.

    Raises:
        ModelError: the configuration says no causal language model, or weights that are quantised.
    """
    _require_causal(name, config)
    sizes = _sizes(config)
    per_token = sizes["n_layers"] * (
        6 * sizes["d_model"] + sizes["d_mlp"] + sizes["n_heads"] * min(_MARGIN_TOKENS, sizes["n_ctx"])
    )
    activations = 4 * _MARGIN_TOKENS * (per_token + 2 * sizes["d_vocab"])
    architecture = next(iter(config.get("architectures") or []), config.get("model_type") or "unknown")
    return ModelSpec(
        name=name,
        architecture=architecture,
        **sizes,
        n_params=n_params,
        dtype=dtype,
        device=device,
        bytes_needed=n_params * _ITEM_SIZE[dtype] + activations + more,
        bytes_free=free_memory(device),
    )


def _require_causal(name: str, config: dict[str, Any]) -> None:
    """Refuse what doesn't read text from left to right, and what is stored quantised.

    Raises:
        ModelError: it is either.
    """
    classes = config.get("architectures") or []
    kind = next(iter(classes), config.get("model_type"))
    if config.get("is_encoder_decoder"):
        raise ModelError(
            f"{name} is an encoder-decoder ({kind}). Choose a model that only decodes, such as gpt2."
        )
    if is_causal(classes) is False and not any(
        c.endswith(("Model", "ForConditionalGeneration")) for c in classes
    ):
        raise ModelError(
            f"{name} is not a causal language model ({kind}). "
            "Choose one that predicts the next token, such as gpt2."
        )
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else "unknown"
        raise ModelError(
            f"{name} has its weights quantised ({method}), which can't be opened here. "
            "Choose the original model, or the same as GGUF."
        )


def devices() -> list[str]:
    """Where a model can run: "cpu", then "cuda:0" and on, or "mps"."""
    import torch

    found = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return [*found, "mps"] if torch.backends.mps.is_available() else found


def free_memory(device: str) -> int:
    """The bytes that a model could take on `device` now."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    import psutil

    free = psutil.virtual_memory().available
    # In a container the machine's memory isn't ours.
    try:
        limit = int((_CONTROL_GROUP / "memory.max").read_text())
        used = int((_CONTROL_GROUP / "memory.current").read_text())
        about = dict(line.split() for line in (_CONTROL_GROUP / "memory.stat").read_text().splitlines())
        return max(0, min(free, limit - used + int(about.get("inactive_file", 0))))
    except (OSError, ValueError):
        return free


def _gguf_config(header: gguf.Header) -> dict[str, Any]:
    names = [name for names in _NAMES.values() for name in names]
    config = {name: header[name] for name in names}
    config["vocab_size"] = header["vocab_size"] or header.metadata.get("tokenizer.ggml.tokens")
    return config | {"model_type": header.architecture}


def _sizes(config: dict[str, Any]) -> dict[str, int]:
    # The text half of a model that also sees or hears keeps its sizes one floor down.
    config = {**config, **(config.get("text_config") or {})}
    sizes = {size: _first(config, names) for size, names in _NAMES.items()}
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        sizes["n_kv_heads"] = 1
    sizes["n_kv_heads"] = sizes["n_kv_heads"] or sizes["n_heads"]
    if sizes["n_heads"]:
        sizes["d_head"] = sizes["d_head"] or sizes["d_model"] // sizes["n_heads"]
    sizes["d_mlp"] = sizes["d_mlp"] or int(config.get("expansion_ratio") or 4) * sizes["d_model"]
    return sizes


def _first(config: dict[str, Any], names: tuple[str, ...]) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, list):  # one a layer
            value = max((one for one in value if isinstance(one, int)), default=None)
        if isinstance(value, int):
            return int(value)
    return 0
