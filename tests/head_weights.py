"""What the weights of heads and neurons make of tokens, by hand from a Hugging Face model's state.

Like `reference`, it calls no module, and TransformerLens is not involved: fused weights are split here once more, every
norm is written out, and every product of matrices is the plain one, d_model × d_model or as wide as the vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from direct_effects import LAYOUTS
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

import transpector as tp
from random_models import tokenizer
from transpector.state.catalogue import resolve
from transpector.state.circuits import Ranking
from transpector.state.conversion import converted


@dataclass(frozen=True)
class Inlets:
    """Where an architecture keeps the weights by which its heads and neurons read the residual stream."""

    ln1: str
    ln2: str
    w_in: str
    attention: str
    w_gate: str | None = None
    scores_shown: bool = True  # else what it is asked for are bare products
    embedding_norm: str | None = None


INLETS = {
    "gpt2": Inlets("ln_1", "ln_2", "mlp.c_fc", "attn.c_attn"),
    "llama": Inlets(
        "input_layernorm", "post_attention_layernorm", "mlp.up_proj", "self_attn.{}_proj", "mlp.gate_proj"
    ),
    "gpt_neox": Inlets(
        "input_layernorm", "post_attention_layernorm", "mlp.dense_h_to_4h", "attention.query_key_value"
    ),
    "gemma2": Inlets(
        "input_layernorm", "pre_feedforward_layernorm", "mlp.up_proj", "self_attn.{}_proj", "mlp.gate_proj"
    ),
    "opt": Inlets("self_attn_layer_norm", "final_layer_norm", "fc1", "self_attn.{}_proj", scores_shown=False),
    "gptj": Inlets("ln_1", "ln_1", "mlp.fc_in", "attn.{}_proj", scores_shown=False),
    "bloom": Inlets(
        "input_layernorm",
        "post_attention_layernorm",
        "mlp.dense_h_to_4h",
        "self_attention.query_key_value",
        embedding_norm="transformer.word_embeddings_layernorm",
    ),
}
# Qwen 3 is built like Llama, but for the norms of its queries and keys.
INLETS["qwen3"] = INLETS["llama"]
LAYOUT = LAYOUTS | {"qwen3": LAYOUTS["llama"]}


class HeadWeights:
    """The weights of one model, and what they make of tokens; in float64 unless that is too dear."""

    def __init__(self, hf_model: PreTrainedModel, dtype: torch.dtype = torch.float64):
        self.config, kind = hf_model.config, hf_model.config.model_type
        self.layout, self.inlets = LAYOUT[kind], INLETS[kind]
        self.state = {name: weight.to(dtype) for name, weight in hf_model.state_dict().items()}
        self.w_u = hf_model.get_output_embeddings().weight.detach().to(dtype).T  # [d_model, d_vocab]
        self.embedding = hf_model.get_input_embeddings().weight.detach().to(dtype)  # [d_vocab, d_model]
        if kind == "gemma2":
            self.embedding = self.embedding * self.config.hidden_size**0.5
        if self.inlets.embedding_norm is not None:
            self.embedding = self._norm(self.inlets.embedding_norm, self.embedding)

    @property
    def n_heads(self) -> int:
        return self.config.num_attention_heads

    # The residual stream into a layer

    def positions(self, n: int) -> Tensor:
        """What the first positions add to the stream, in a model that learned it."""
        name, first = self.layout.positions
        return self.state[name][first : first + n]

    def ln1(self, layer: int, x: Tensor) -> Tensor:
        return self._norm(self._name(layer, self.inlets.ln1), x)

    def ln2(self, layer: int, x: Tensor) -> Tensor:
        return self._norm(self._name(layer, self.inlets.ln2), x)

    def inputs(self, layer: int, head: int, of: str) -> tuple[Tensor, Tensor]:
        """W_Q, W_K or W_V (``of`` "q", "k", "v") and bias of a head: [d_model, d_head], [d_head]."""
        weights, biases = self._split(layer, "weight", of), self._split(layer, "bias", of)
        shared = head * len(weights) // self.n_heads
        bias = weights.new_zeros(weights.shape[1]) if biases is None else biases[shared, :, 0]
        return weights[shared].T, bias

    def reads(self, layer: int, head: int, of: str) -> Tensor:
        """The same weight as it reads the bare stream: what the norms multiply by, and subtract, counted in."""
        weight = self._gain(self._name(layer, self.inlets.ln1))[:, None] * self.inputs(layer, head, of)[0]
        after = self._name(layer, f"self_attn.{of}_norm")
        weight = weight * self._gain(after) if f"{after}.weight" in self.state else weight
        return weight - weight.mean(0) if self.layout.centred else weight

    def query_or_key(self, layer: int, head: int, of: str, x: Tensor) -> Tensor:
        """Queries or keys of a head at streams, before positions turn them."""
        weight, bias = self.inputs(layer, head, of)
        found = self.ln1(layer, x) @ weight + bias
        norm = self._name(layer, f"self_attn.{of}_norm")
        return found if f"{norm}.weight" not in self.state else self._norm(norm, found)

    def scores(self, layer: int, head: int, queries: Tensor, keys: Tensor) -> Tensor:
        """Scores of streams as queries with streams as keys, no distance apart: [query, key]."""
        q = self.query_or_key(layer, head, "q", queries)
        products = q @ self.query_or_key(layer, head, "k", keys).T
        if not self.inlets.scores_shown:
            return products
        scores = products * getattr(self.config, "query_pre_attn_scalar", q.shape[-1]) ** -0.5
        cap = getattr(self.config, "attn_logit_softcapping", None)
        return scores if cap is None else cap * torch.tanh(scores / cap)

    def neuron(self, layer: int, neuron: int, of: str) -> Tensor:
        """What a neuron's "in" or "gate" is given of every token's embedding, [d_vocab]."""
        name = self._name(layer, self.inlets.w_in if of == "in" else self.inlets.w_gate)
        bias = self.state.get(f"{name}.bias")
        row = self._matrix(name)[neuron]
        return self.ln2(layer, self.embedding) @ row + (0 if bias is None else bias[neuron])

    # Out of a layer into the residual stream, and on to the logits

    def writes(self, layer: int, head: int) -> Tensor:
        """W_O of a head as it counts in the stream, [d_head, d_model]."""
        weight = self._matrix(self._name(layer, self.layout.w_o)).T
        return weight.unflatten(0, (self.n_heads, -1))[head] * self._post_gain(layer, 0)

    def neuron_writes(self, layer: int) -> Tensor:
        """W_out as it counts in the stream, [d_mlp, d_model]."""
        return self._matrix(self._name(layer, self.layout.w_out)).T * self._post_gain(layer, 1)

    def logits(self, x: Tensor) -> Tensor:
        """Logits, about their mean, of what is added to the stream; the final norm's divisor is 1."""
        x = x - x.mean(-1, keepdim=True) if self.layout.centred else x
        logits = (x * self._gain(self.layout.final)) @ self.w_u
        return logits - logits.mean(-1, keepdim=True)

    # Circuits

    def ov_tokens(self, layer: int, head: int) -> Tensor:
        """What a head that attends to a token makes of the logits, [token, d_vocab]."""
        nothing = torch.zeros_like(self.embedding[:1])
        moved = self.ln1(layer, self.embedding) - self.ln1(layer, nothing)
        return self.logits(moved @ self.inputs(layer, head, "v")[0] @ self.writes(layer, head))

    def ov(self, layer: int, head: int) -> Tensor:
        """From stream to stream, [d_model, d_model]."""
        return self.reads(layer, head, "v") @ self.writes(layer, head)

    def qk(self, layer: int, head: int) -> Tensor:
        """From stream, of the query, to stream, of the key, [d_model, d_model]."""
        return self.reads(layer, head, "q") @ self.reads(layer, head, "k").T

    # How the weights lie in the state

    def _name(self, layer: int, what: str) -> str:
        return f"{self.layout.block}.{layer}.{what}"

    def _matrix(self, name: str) -> Tensor:
        """[d_out, d_in]"""
        weight = self.state[f"{name}.weight"]
        return weight.T if self.config.model_type == "gpt2" else weight  # which stores [d_in, d_out]

    def _split(self, layer: int, part: str, of: str) -> Tensor | None:
        """[head, d_head, d_model], or the bias [head, d_head, 1]; heads as many as there are."""
        name = self._name(layer, self.inlets.attention.format(of))
        if part == "weight":
            whole = self._matrix(name)
        elif f"{name}.bias" in self.state:
            whole = self.state[f"{name}.bias"][:, None]
        else:
            return None
        n = self.n_heads
        if "{}" in self.inlets.attention:
            n = n if of == "q" else getattr(self.config, "num_key_value_heads", n)
            return whole.unflatten(0, (n, -1))
        at = "qkv".index(of)
        if self.config.model_type == "gpt2":
            return whole.unflatten(0, (3, n, -1))[at]
        return whole.unflatten(0, (n, 3, -1))[:, at]

    def _gain(self, name: str) -> Tensor:
        return self.layout.offset + self.state[f"{name}.weight"]

    def _post_gain(self, layer: int, half: int) -> Tensor | float:
        norms = self.layout.post_norms
        return 1.0 if norms is None else self._gain(self._name(layer, norms[half]))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        epsilons = ("layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps")
        epsilon = next((getattr(self.config, each) for each in epsilons if hasattr(self.config, each)), 1e-5)
        x = x - x.mean(-1, keepdim=True) if self.layout.centred else x
        x = x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * self._gain(name)
        bias = self.state.get(f"{name}.bias")
        return x if bias is None else x + bias


def loaded_anew(lm: tp.Model) -> HeadWeights:
    """The weights of a real model that the product has loaded, from files of it read once more; float32."""
    path = converted(resolve(lm.name).path, "float32")
    return HeadWeights(AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager"), torch.float32)


def other_model(config: PreTrainedConfig, directory: Path) -> tuple[tp.Model, PreTrainedModel]:
    """A model of some other architecture whose every weight matters, loaded by the product, and as it is."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        hf_model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        for parameter in hf_model.parameters():
            parameter += 0.15 * torch.randn_like(parameter)
    hf_model.save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return tp.load_model(str(directory)), hf_model


def small(config: type[PreTrainedConfig], **more: Any) -> PreTrainedConfig:
    """A configuration of the size of `random_models`'s."""
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80}
    ids = {"vocab_size": 512, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    return config(**sizes, **ids, num_key_value_heads=2, max_position_embeddings=128, **more)


def expect_near(found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    """Equal but for so much of the largest."""
    found, expected = (torch.as_tensor(each).double() for each in (found, expected))
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def expect_ranked(lm: tp.Model, rankings: tuple[Ranking, Ranking], expected: Tensor) -> None:
    """The first ranking is from the top of ``expected`` [d_vocab], the other from its bottom, each value 1e-4 exact."""
    n, tolerance = lm.spec.d_vocab, 1e-4 * float(expected.abs().max())
    for ranking, largest in zip(rankings, (True, False), strict=True):
        best = expected.topk(len(ranking), largest=largest)
        values = torch.tensor([value for _, value in ranking]).double()
        assert (values - best.values).abs().max() <= tolerance
        # Of those that are all but equal any may come first.
        pieces = dict(zip(lm.pieces(range(n)), expected.tolist(), strict=True))
        assert len(pieces) == n
        assert all(abs(pieces[piece] - value) <= tolerance for piece, value in ranking)
