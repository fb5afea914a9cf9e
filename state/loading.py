"""From an entry of the catalogue to a model in memory, with progress, cancellation and clear errors."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transpector.state import checkpoint, conversion
from transpector.state.catalogue import Entry
from transpector.state.conversion import Progress
from transpector.state.errors import Cancelled, ModelError
from transpector.state.spec import DTYPES, ModelSpec, describe, describe_config

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_weights(
    entry: Entry, device: str, dtype: str, progress: Progress, cancelled: Callable[[], bool]
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase", ModelSpec]:
    """Bring a model and its tokenizer into memory, with eager attention and in evaluation mode.

    Downloads what isn't here and converts GGUF, each once. Runs no code that comes with a model, and reads no
    pickles. The specification is that of the loaded model.

    Raises:
        ModelError: the model doesn't fit, is damaged or incomplete, or is of a kind that can't be loaded.
        Cancelled: `cancelled()` became true.
    """

    def stage(what: str, fraction: float | None = None) -> None:
        if cancelled():
            raise Cancelled(f"Loading {entry.name} was stopped.")
        progress(what, fraction)

    stage("looking at the model")
    spec = describe(entry, device, dtype)
    if not spec.fits:
        raise too_large(spec)
    path = entry.path
    if path is None:
        from transpector.state import hub

        listing = hub.look_up(entry.name)
        _read_config(entry.name, listing.directory)  # before gigabytes are fetched for nothing
        stage("downloading", 0.0)
        path = hub.download(listing, progress, cancelled)
    elif path.is_file():
        path = conversion.convert(path, dtype, progress, cancelled)
    stage("reading the tokenizer")
    config = _read_config(entry.name, path)
    tokenizer = _read_tokenizer(entry.name, path)
    stage("reading weights", 0.0)
    model = _read_model(entry.name, path, config, dtype, stage)
    stage("moving the weights", None)
    model = _move(model, device, spec)
    n_params = sum(parameter.numel() for parameter in model.parameters())
    return model, tokenizer, describe_config(entry.name, model.config.to_dict(), n_params, device, dtype)


def boot(hf_model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", name: str) -> "TransformerBridge":
    """Wrap a loaded model for hooks, in plain mode: its numbers stay Hugging Face's. Changes `hf_model`.

    Raises:
        ModelError: TransformerLens doesn't know the architecture.
    """
    from transformer_lens.model_bridge import TransformerBridge

    architecture = next(iter(hf_model.config.architectures or []), type(hf_model).__name__)
    try:
        # Without a tokenizer it would fetch one by name, so it is always passed.
        return TransformerBridge.boot_transformers(
            name, hf_model=hf_model, tokenizer=tokenizer, device=hf_model.device, dtype=hf_model.dtype
        )
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        NotImplementedError,
        TypeError,
        ValueError,
    ) as error:
        if "supported architecture" in str(error):
            raise ModelError(
                f"{name} is a {architecture}, which TransformerLens doesn't support. "
                "Choose a model of another architecture, such as GPT-2, Llama, Qwen, Gemma or Pythia."
            ) from error
        raise ModelError(
            f"TransformerLens couldn't take {name} ({architecture}) apart: {_first_line(error)}. "
            "Choose another model."
        ) from error


def too_large(spec: ModelSpec) -> ModelError:
    """The refusal of a model that its device has no room for."""
    smaller = "" if spec.dtype != DTYPES[0] else f"bfloat16 ({_gigabytes(spec.bytes_needed // 2)}), "
    return ModelError(
        f"{spec.name} needs {_gigabytes(spec.bytes_needed)} in {spec.dtype}, and {spec.device} has "
        f"{_gigabytes(spec.bytes_free)} free. Choose {smaller}a smaller model, or close something else."
    )


def _read_config(name: str, path: Path) -> "PreTrainedConfig":
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig
    from transformers.models.auto import modeling_auto

    raw = checkpoint.read_config(path)
    kind = next(iter(raw.get("architectures") or []), raw.get("model_type", "unknown"))
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (AttributeError, LookupError, OSError, StrictDataclassError, TypeError, ValueError) as error:
        if raw.get("auto_map"):
            raise _own_code(name, kind) from error
        if "model type" in str(error) or "model_type" in str(error):
            raise ModelError(
                f"{name} is of the architecture {kind}, which the installed transformers doesn't know. "
                "Upgrade transformers, or choose another model."
            ) from error
        raise ModelError(f"The configuration of {name} is unusable: {_first_line(error)}.") from error
    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    classes = config.architectures or []
    if config.is_encoder_decoder:
        raise ModelError(
            f"{name} is an encoder-decoder ({kind}). Choose a model that only decodes, such as gpt2."
        )
    if config.model_type not in causal:
        if raw.get("auto_map"):
            raise _own_code(name, kind)
        raise ModelError(f"{name} ({kind}) doesn't predict the next token. Choose a causal language model.")
    masked = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if not set(classes) & set(causal.values()) and config.model_type in masked:
        raise ModelError(f"{name} is an encoder ({kind}). Choose a causal language model, such as gpt2.")
    return config


def _own_code(name: str, kind: str) -> ModelError:
    return ModelError(
        f"{name} ({kind}) runs code of its own from its repository, which Transpector doesn't execute. "
        "Choose a model whose architecture is part of transformers."
    )


def _read_tokenizer(name: str, path: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    if not checkpoint.has_tokenizer(path):
        raise ModelError(
            f"{name} has no tokenizer files. "
            "Copy tokenizer.json and tokenizer_config.json from where the model came from."
        )
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise ModelError(
            f"The tokenizer of {name} can't be read: {_first_line(error)}. Copy its files again."
        ) from error


def _read_model(
    name: str, path: Path, config: "PreTrainedConfig", dtype: str, stage: Callable[[str, float | None], None]
) -> "PreTrainedModel":
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    from transpector.state import bars

    def advance(what: str, done: float, total: float | None) -> None:
        stage("reading weights", done / total if total else None)

    try:
        with bars.heard(advance):
            model, loaded = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                dtype=getattr(torch, dtype),
                attn_implementation="eager",
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ModelError(f"There isn't memory enough to load {name}. Choose a smaller model.") from error
    except SafetensorError as error:
        raise ModelError(
            f"The weights of {name} are damaged: {_first_line(error)}. Download them again."
        ) from error
    except (AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"{name} couldn't be loaded: {_first_line(error)}. Choose another model.") from error
    _require_complete(name, model, loaded)
    if not model.config.architectures:
        model.config.architectures = [type(model).__name__]
    return model.eval()


def _require_complete(name: str, model: "PreTrainedModel", loaded: dict[str, Any]) -> None:
    """Refuse a model of which a part would be random numbers."""
    absent = sorted(map(str, loaded["missing_keys"])) or sorted(map(str, loaded.get("mismatched_keys", ())))
    if absent:
        raise ModelError(
            f"The weights of {name} don't make a {type(model).__name__}: "
            f"{checkpoint.listed(absent)} missing or misshapen. Download it again, or choose another model."
        )


def _move(model: "PreTrainedModel", device: str, spec: ModelSpec) -> "PreTrainedModel":
    import torch

    try:
        return model.to(device)
    except torch.OutOfMemoryError as error:
        raise too_large(spec) from error


def _gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.3g} GB"


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200].rstrip(".")
