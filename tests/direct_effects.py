"""What each part of a model adds to its logits, by hand from a Hugging Face model's weights, in float64.

Like `reference`, from whose activations it starts, it calls no module, and TransformerLens is not involved.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from reference import Write, forward


@dataclass(frozen=True)
class Layout:
    """Where an architecture keeps the weights through which its parts reach the logits."""

    block: str
    w_o: str
    w_out: str
    final: str
    positions: tuple[str, int] | None = None  # and the offset of the first
    centred: bool = True
    offset: float = 0.0  # of norm weights
    post_norms: tuple[str, str] | None = None


LAYOUTS = {
    "gpt2": Layout(
        "transformer.h", "attn.c_proj", "mlp.c_proj", "transformer.ln_f", ("transformer.wpe.weight", 0)
    ),
    "llama": Layout("model.layers", "self_attn.o_proj", "mlp.down_proj", "model.norm", centred=False),
    "gpt_neox": Layout(
        "gpt_neox.layers", "attention.dense", "mlp.dense_4h_to_h", "gpt_neox.final_layer_norm"
    ),
    "opt": Layout(
        "model.decoder.layers",
        "self_attn.out_proj",
        "fc2",
        "model.decoder.final_layer_norm",
        ("model.decoder.embed_positions.weight", 2),
    ),
    "gemma2": Layout(
        "model.layers",
        "self_attn.o_proj",
        "mlp.down_proj",
        "model.norm",
        centred=False,
        offset=1.0,
        post_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
    ),
    "gptj": Layout("transformer.h", "attn.out_proj", "mlp.fc_out", "transformer.ln_f"),
    "bloom": Layout("transformer.h", "self_attention.dense", "mlp.dense_4h_to_h", "transformer.ln_f"),
}


class DirectEffects:
    """One pass, and what its parts add at one position to the residual stream and to the logits."""

    def __init__(self, hf_model: PreTrainedModel, ids: list[int], position: int, write: Write | None = None):
        self.config, self.layout = hf_model.config, LAYOUTS[hf_model.config.model_type]
        self.position = position % len(ids)
        with torch.no_grad():
            self.reference = forward(hf_model, ids, write)
            self.weights = hf_model.state_dict()
            unembedding = hf_model.get_output_embeddings()
            self.w_u = unembedding.weight.double()  # [d_vocab, d_model]
            self.b_u = torch.zeros(len(self.w_u)) if unembedding.bias is None else unembedding.bias.double()
        self.gamma = self.layout.offset + self._weight(f"{self.layout.final}.weight")
        self.beta = self.weights.get(f"{self.layout.final}.bias", torch.zeros(self.w_u.shape[1])).double()
        resid = self._centred(self.stream("resid_post", self.n_layers - 1))
        self.scale = (resid.square().mean() + self._epsilon).sqrt()

    @property
    def n_layers(self) -> int:
        return self.config.num_hidden_layers

    @property
    def n_heads(self) -> int:
        return self.config.num_attention_heads

    def stream(self, kind: str, layer: int | None) -> Tensor:
        """An activation at the position, heads end to end."""
        return self.reference.activations[kind, layer][self.position].double().flatten()

    def heads(self, layer: int) -> Tensor:
        """What each head adds to the stream, [head, d_model]."""
        z = self.stream("z", layer).view(self.n_heads, -1, 1)
        weight = self._projection(layer, self.layout.w_o)
        return self._post_normed((z * weight.view(self.n_heads, z.shape[1], -1)).sum(1), layer, 0)

    def neurons(self, layer: int) -> Tensor:
        """What each neuron adds to the stream, [d_mlp, d_model]."""
        post = self.stream("mlp_post", layer)[:, None]
        return self._post_normed(post * self._projection(layer, self.layout.w_out), layer, 1)

    def bias(self, layer: int, half: int = 0) -> Tensor:
        """What the output bias of attention (half 0) or of the MLP (1) adds; no model with post norms has one."""
        name = (self.layout.w_o, self.layout.w_out)[half]
        found = self.weights.get(f"{self.layout.block}.{layer}.{name}.bias")
        return torch.zeros(self.w_u.shape[1]).double() if found is None else found.double()

    def positions(self) -> Tensor | None:
        """What learned positions add."""
        if self.layout.positions is None:
            return None
        name, first = self.layout.positions
        return self._weight(name)[first + self.position]

    def logits(self, part: Tensor) -> Tensor:
        """What parts of the last residual [..., d_model] add to every token's logit, [..., d_vocab]."""
        return (self._centred(part) * self.gamma / self.scale) @ self.w_u.T

    def constant(self) -> Tensor:
        """What the biases of the final norm and of the unembedding add to every token's logit."""
        return self.w_u @ self.beta + self.b_u

    def logits_before_the_cap(self) -> Tensor:
        logits, cap = (
            self.reference.logits[self.position].double(),
            getattr(self.config, "final_logit_softcapping", None),
        )
        return logits if cap is None else cap * torch.atanh(logits / cap)

    @property
    def _epsilon(self) -> float:
        names = ("layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps")
        return next((getattr(self.config, name) for name in names if hasattr(self.config, name)), 1e-5)

    def _weight(self, name: str) -> Tensor:
        return self.weights[name].double()

    def _projection(self, layer: int, name: str) -> Tensor:
        weight = self._weight(f"{self.layout.block}.{layer}.{name}.weight")
        return weight if self.config.model_type == "gpt2" else weight.T  # GPT-2 stores [d_in, d_out]

    def _centred(self, part: Tensor) -> Tensor:
        return part - part.mean(-1, keepdim=True) if self.layout.centred else part

    def _post_normed(self, shares: Tensor, layer: int, half: int) -> Tensor:
        if self.layout.post_norms is None:
            return shares
        whole = shares.sum(0)  # no model with post norms has a bias here
        gamma = self.layout.offset + self._weight(
            f"{self.layout.block}.{layer}.{self.layout.post_norms[half]}.weight"
        )
        return shares * gamma / (whole.square().mean() + self._epsilon).sqrt()
