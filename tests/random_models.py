"""Small random Hugging Face models, one for every shape of block that the product must get right."""

import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.pytorch_utils import Conv1D

D_VOCAB = 512
N_LAYERS = 3
N_POSITIONS = 128
_SHARED = {"vocab_size": D_VOCAB, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}


def _gpt2() -> PreTrainedConfig:
    """Learned positions, fused q, k, v."""
    return GPT2Config(n_embd=48, n_layer=N_LAYERS, n_head=4, n_positions=N_POSITIONS, **_SHARED)


def _llama() -> PreTrainedConfig:
    """Rotary positions, grouped key and value heads, gated MLP, untied unembedding."""
    return LlamaConfig(
        hidden_size=48,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=80,
        max_position_embeddings=N_POSITIONS,
        rms_norm_eps=1e-5,
        **_SHARED,
    )


def _gpt_neox() -> PreTrainedConfig:
    """Attention and MLP in parallel, half of each head rotary, fused q, k, v interleaved by head."""
    return GPTNeoXConfig(
        hidden_size=64,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=N_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
        use_parallel_residual=True,
        **_SHARED,
    )


def _gemma2() -> PreTrainedConfig:
    """Soft caps small enough to bite, a window shorter than the text, post norms, d_head * head > d_model."""
    return Gemma2Config(
        hidden_size=48,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=80,
        max_position_embeddings=N_POSITIONS,
        query_pre_attn_scalar=24,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=6.0,
        sliding_window=4,
        **_SHARED,
    )


def _opt() -> PreTrainedConfig:
    """Learned positions with an offset, biases everywhere, ReLU, MLP without a container module."""
    return OPTConfig(
        hidden_size=48,
        word_embed_proj_dim=48,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        ffn_dim=96,
        max_position_embeddings=N_POSITIONS,
        do_layer_norm_before=True,
        **_SHARED,
    )


def _gptj() -> PreTrainedConfig:
    """Parallel with one shared norm, rotary by adjacent pairs on part of each head."""
    return GPTJConfig(n_embd=64, n_layer=N_LAYERS, n_head=4, n_positions=N_POSITIONS, rotary_dim=8, **_SHARED)


def _bloom() -> PreTrainedConfig:
    """ALiBi (on a number of heads that is no power of two), a norm after the embedding."""
    return BloomConfig(hidden_size=48, n_layer=N_LAYERS, n_head=6, **_SHARED)


_CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "gpt2": _gpt2,
    "llama": _llama,
    "gpt_neox": _gpt_neox,
    "gemma2": _gemma2,
    "opt": _opt,
    "gptj": _gptj,
    "bloom": _bloom,
}
KINDS = tuple(_CONFIGS)


def random_model(kind: str, seed: int = 0) -> PreTrainedModel:
    """Builds the model of that kind: float32, eval, eager attention, the same weights for the same seed.

    Hugging Face's initialisation leaves attention uniform and logits near zero, so that a wrong formula
    passes. Here every score and logit has a spread of 1 to 5, and no norm weight or bias is trivial.
    """
    with torch.random.fork_rng():
        model = AutoModelForCausalLM.from_config(_CONFIGS[kind](), attn_implementation="eager")
    generator = torch.Generator().manual_seed(zlib.crc32(f"{kind} {seed}".encode()))

    def fill(parameter: torch.Tensor, mean: float, spread: float) -> None:
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(mean + spread * noise)

    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    d_model = model.config.hidden_size
    with torch.no_grad():
        for name, module in model.named_modules():
            weight = getattr(module, "weight", None)
            if isinstance(module, torch.nn.Embedding):
                # A tied embedding is also the unembedding: its columns set the size of the logits.
                fill(weight, 0.0, 3.0 / d_model**0.5 if tied else 0.5)
            elif isinstance(module, torch.nn.Linear | Conv1D):
                if not (tied and module is model.get_output_embeddings()):
                    d_in = weight.shape[0] if isinstance(module, Conv1D) else weight.shape[1]
                    fill(weight, 0.0, (3.0 if "lm_head" in name else 1.4) / d_in**0.5)
            elif weight is not None:  # a norm; Gemma's multiplies by one plus its weight
                fill(weight, 0.0 if "Gemma" in type(module).__name__ else 1.0, 0.3)
            if getattr(module, "bias", None) is not None:
                fill(module.bias, 0.0, 0.3)
    return model.eval()


_WORDS = """
the of and to in is that it was for on are as with his they at be this from have or by one had not
but what all were when we there can an your which their said if do will each about how up out them
then she many some so these would other into has more her two like him see time could no make than
first been its who now people my made over did down only way find use may water long little very
after words called just where most know Eiffel Tower city France Paris London Rome Germany Berlin
capital river book house tree music green yellow eleven blue black white street north south east
west thousand hundred
"""


def tokenizer() -> PreTrainedTokenizerFast:
    """Builds a byte-level tokenizer of D_VOCAB tokens that encodes any text; id 0 is <|endoftext|>."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=D_VOCAB,
        min_frequency=1,
        show_progress=False,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    bpe.train_from_iterator([" " + " ".join(_WORDS.split())], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def save(kind: str, directory: str | Path, seed: int = 0) -> Path:
    """Writes config, safetensors and tokenizer into `directory`, as a download from the hub would look."""
    random_model(kind, seed).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return Path(directory)
