"""The forward pass by hand, in plain PyTorch: what every hooked run and every intervention is compared with.

It reads nothing of a Hugging Face model but its weights and its configuration: no module is called, no hook
is used, TransformerLens is not involved. Give it a model of its own: a `TransformerBridge` rewires the
model that it is booted from.

Conventions, chosen so that they agree with TransformerLens:

- One text, no batch axis. Everything is float32.
- `resid_pre + attn_out + mlp_out = resid_post` always holds, so `attn_out` and `mlp_out` are what is *added*
  to the residual stream (Gemma 2: after the post norms). Parallel blocks have no `resid_mid`.
- `embed` is what the tokens add to the residual stream, before positions: scaled in Gemma 2, after the
  embedding's own norm in Bloom.
- `q` and `k` are what the projections give, bias included: before rotary positions and before any scale.
- `scores` are what enters the softmax: scaled, soft-capped (Gemma 2), with the linear bias (Bloom), and
  -3.4e38, the most negative float32, wherever the query may not see the key.
- In a gated MLP `mlp_pre` is the gate before its activation, `mlp_post` is act(gate) * up; in both sorts
  `mlp_post` is what the output projection reads.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

Key = tuple[str, int | None]
Part = Callable[[Tensor], Tensor]  # a half of a block: what it adds to the residual stream it reads
Write = Mapping[Key, Callable[[Tensor], Tensor]]
HIDDEN = torch.finfo(torch.float32).min


@dataclass
class Reference:
    """What one pass computed; the activations are as the rest of the pass saw them, so after any write.

    Shapes: embed, resid_pre, resid_mid, resid_post, attn_out, mlp_out [pos, d_model];
    q, z [pos, head, d_head]; k, v [pos, kv_head, d_head]; scores, pattern [head, query, key];
    mlp_pre, mlp_post [pos, d_mlp].
    """

    logits: Tensor  # [pos, d_vocab]
    activations: dict[Key, Tensor]


def forward(
    hf_model: PreTrainedModel, token_ids: Sequence[int] | Tensor, write: Write | None = None
) -> Reference:
    """Computes the logits and every activation, replacing an activation by what `write` makes of it.

    Writes happen in the order of the pass, each on the value that the earlier ones caused. A write to
    `resid_mid` changes the skip path and what the MLP reads; one to `pattern` is taken as it is; after one to
    `scores` the mask is applied again, so that no query sees a key it could not see before.
    Weights are detached; a written tensor that requires a gradient receives one.

    Raises:
        KeyError: a key of `write` does not exist in this model.
        ValueError: a write changes the shape of its activation.
    """
    config, tape = hf_model.config, _Tape(dict(write or {}))
    weights = {name: value.float() for name, value in hf_model.state_dict().items()}
    logits = _ARCHITECTURES[config.model_type](_Weights(weights), config, torch.as_tensor(token_ids), tape)
    if absent := set(tape.write) - set(tape.activations):
        raise KeyError(f"This {config.model_type} has no such activation: {absent}")
    return Reference(logits, tape.activations)


@dataclass
class _Tape:
    """Records every activation as it passes, and replaces it where asked."""

    write: dict[Key, Callable[[Tensor], Tensor]]
    activations: dict[Key, Tensor] = field(default_factory=dict)

    def __call__(self, kind: str, layer: int | None, value: Tensor) -> Tensor:
        if (kind, layer) in self.write:
            written = self.write[kind, layer](value.clone())
            if written.shape != value.shape:
                raise ValueError(f"{kind} {layer}: {tuple(value.shape)} became {tuple(written.shape)}")
            value = written
        self.activations[kind, layer] = value
        return value


@dataclass
class _Weights:
    """The weights below one prefix."""

    values: dict[str, Tensor]
    prefix: str = ""

    def below(self, *path: str | int) -> "_Weights":
        return _Weights(self.values, self.prefix + "".join(f"{part}." for part in path))

    def get(self, name: str) -> Tensor | None:
        return self.values.get(self.prefix + name)

    def __getitem__(self, name: str) -> Tensor:
        return self.values[self.prefix + name]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self[f"{name}.weight"], self.get(f"{name}.bias"))

    def conv1d(self, name: str, x: Tensor) -> Tensor:  # GPT-2 stores [d_in, d_out]
        return x @ self[f"{name}.weight"] + self[f"{name}.bias"]

    def layer_norm(self, name: str, x: Tensor, epsilon: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.pow(2).mean(-1, keepdim=True) + epsilon).sqrt()
        return centred / scale * self[f"{name}.weight"] + self[f"{name}.bias"]

    def rms_norm(self, name: str, x: Tensor, epsilon: float, offset: float = 0.0) -> Tensor:
        scale = (x.pow(2).mean(-1, keepdim=True) + epsilon).sqrt()
        return x / scale * (offset + self[f"{name}.weight"])


def _gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": lambda x: x.clamp(min=0),
    "silu": lambda x: x * torch.sigmoid(x),
}


def _angles(n: int, d_rotary: int, base: float) -> Tensor:
    """The rotary angle of each position and pair, [pos, 1, d_rotary / 2]."""
    frequency = base ** (-torch.arange(0, d_rotary, 2).float() / d_rotary)
    return (torch.arange(n).float()[:, None] * frequency)[:, None]


def _rotate_halves(x: Tensor, d_rotary: int, base: float) -> Tensor:
    """Rotates [pos, head, d_head]: dimension i is paired with i + d_rotary / 2; the rest passes unchanged."""
    angles = _angles(len(x), d_rotary, base)
    left, right, rest = x.split([d_rotary // 2, d_rotary // 2, x.shape[-1] - d_rotary], dim=-1)
    turned = (left * angles.cos() - right * angles.sin(), right * angles.cos() + left * angles.sin())
    return torch.cat((*turned, rest), dim=-1)


def _rotate_neighbours(x: Tensor, d_rotary: int, base: float) -> Tensor:
    """Rotates [pos, head, d_head]: dimension 2i is paired with 2i + 1; the rest passes unchanged."""
    angles = _angles(len(x), d_rotary, base)
    even, odd = x[..., 0:d_rotary:2], x[..., 1:d_rotary:2]
    turned = (even * angles.cos() - odd * angles.sin(), odd * angles.cos() + even * angles.sin())
    return torch.cat((torch.stack(turned, dim=-1).flatten(-2), x[..., d_rotary:]), dim=-1)


def _rope_base(config) -> float:
    if config.rope_parameters["rope_type"] != "default":
        raise NotImplementedError(f"rope type {config.rope_parameters['rope_type']!r}")
    return config.rope_parameters["rope_theta"]


def _attend(
    tape: _Tape,
    layer: int,
    q: Tensor,  # [pos, head, d_head]
    k: Tensor,  # [pos, kv_head, d_head]
    v: Tensor,  # [pos, kv_head, d_head]
    scale: float,
    rotate: Callable[[Tensor], Tensor] = lambda x: x,
    softcap: float | None = None,
    bias: Tensor | None = None,  # [head, 1, key]
    window: int | None = None,
) -> Tensor:
    """Softmax attention up to what the output projection reads, [pos, head * d_head]."""
    q, k, v = tape("q", layer, q), tape("k", layer, k), tape("v", layer, v)
    n, heads_a_group = len(q), q.shape[1] // k.shape[1]
    keys = rotate(k).repeat_interleave(heads_a_group, dim=1)  # [pos, head, d_head]
    values = v.repeat_interleave(heads_a_group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", rotate(q), keys) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    distance = torch.arange(n)[:, None] - torch.arange(n)  # [query, key]
    hidden = (distance < 0) | (distance >= (window or n))
    scores = tape("scores", layer, scores.masked_fill(hidden, HIDDEN)).masked_fill(hidden, HIDDEN)
    pattern = tape("pattern", layer, scores.softmax(-1))
    return tape("z", layer, torch.einsum("hqk,khd->qhd", pattern, values)).flatten(1)


def _sequential(tape: _Tape, layer: int, resid: Tensor, attention: Part, mlp: Part) -> Tensor:
    """A block whose MLP reads what attention wrote."""
    resid = tape("resid_pre", layer, resid)
    resid = tape("resid_mid", layer, resid + tape("attn_out", layer, attention(resid)))
    return tape("resid_post", layer, resid + tape("mlp_out", layer, mlp(resid)))


def _parallel(tape: _Tape, layer: int, resid: Tensor, attention: Part, mlp: Part) -> Tensor:
    """A block whose attention and MLP both read what enters it."""
    resid = tape("resid_pre", layer, resid)
    attn_out = tape("attn_out", layer, attention(resid))
    return tape("resid_post", layer, resid + attn_out + tape("mlp_out", layer, mlp(resid)))


def _gpt2(w: _Weights, config, ids: Tensor, tape: _Tape) -> Tensor:
    n, heads, epsilon = len(ids), config.n_head, config.layer_norm_epsilon
    act = _ACTIVATIONS[config.activation_function]
    resid = tape("embed", None, w["transformer.wte.weight"][ids]) + w["transformer.wpe.weight"][:n]
    for layer in range(config.n_layer):
        block = w.below("transformer.h", layer)

        def attention(x: Tensor, block=block, layer=layer) -> Tensor:
            qkv = block.conv1d("attn.c_attn", block.layer_norm("ln_1", x, epsilon))
            q, k, v = qkv.view(n, 3, heads, -1).unbind(1)
            return block.conv1d("attn.c_proj", _attend(tape, layer, q, k, v, q.shape[-1] ** -0.5))

        def mlp(x: Tensor, block=block, layer=layer) -> Tensor:
            pre = tape("mlp_pre", layer, block.conv1d("mlp.c_fc", block.layer_norm("ln_2", x, epsilon)))
            return block.conv1d("mlp.c_proj", tape("mlp_post", layer, act(pre)))

        resid = _sequential(tape, layer, resid, attention, mlp)
    return w.linear("lm_head", w.layer_norm("transformer.ln_f", resid, epsilon))


def _llama(w: _Weights, config, ids: Tensor, tape: _Tape) -> Tensor:
    n, heads, kv_heads = len(ids), config.num_attention_heads, config.num_key_value_heads
    epsilon, act, base = config.rms_norm_eps, _ACTIVATIONS[config.hidden_act], _rope_base(config)
    resid = tape("embed", None, w["model.embed_tokens.weight"][ids])
    for layer in range(config.num_hidden_layers):
        block = w.below("model.layers", layer)

        def attention(x: Tensor, block=block, layer=layer) -> Tensor:
            x = block.rms_norm("input_layernorm", x, epsilon)
            q = block.linear("self_attn.q_proj", x).view(n, heads, -1)
            k = block.linear("self_attn.k_proj", x).view(n, kv_heads, -1)
            v = block.linear("self_attn.v_proj", x).view(n, kv_heads, -1)
            d_head = q.shape[-1]
            z = _attend(tape, layer, q, k, v, d_head**-0.5, lambda x: _rotate_halves(x, d_head, base))
            return block.linear("self_attn.o_proj", z)

        def mlp(x: Tensor, block=block, layer=layer) -> Tensor:
            x = block.rms_norm("post_attention_layernorm", x, epsilon)
            pre = tape("mlp_pre", layer, block.linear("mlp.gate_proj", x))
            post = tape("mlp_post", layer, act(pre) * block.linear("mlp.up_proj", x))
            return block.linear("mlp.down_proj", post)

        resid = _sequential(tape, layer, resid, attention, mlp)
    return w.linear("lm_head", w.rms_norm("model.norm", resid, epsilon))


def _gpt_neox(w: _Weights, config, ids: Tensor, tape: _Tape) -> Tensor:
    if not config.use_parallel_residual:
        raise NotImplementedError("a GPT-NeoX without parallel residual")
    n, heads, epsilon = len(ids), config.num_attention_heads, config.layer_norm_eps
    act, base = _ACTIVATIONS[config.hidden_act], _rope_base(config)
    resid = tape("embed", None, w["gpt_neox.embed_in.weight"][ids])
    for layer in range(config.num_hidden_layers):
        block = w.below("gpt_neox.layers", layer)

        def attention(x: Tensor, block=block, layer=layer) -> Tensor:
            x = block.layer_norm("input_layernorm", x, epsilon)
            q, k, v = block.linear("attention.query_key_value", x).view(n, heads, 3, -1).unbind(2)
            d_head = q.shape[-1]
            d_rotary = int(d_head * config.rope_parameters["partial_rotary_factor"])
            z = _attend(tape, layer, q, k, v, d_head**-0.5, lambda x: _rotate_halves(x, d_rotary, base))
            return block.linear("attention.dense", z)

        def mlp(x: Tensor, block=block, layer=layer) -> Tensor:
            x = block.layer_norm("post_attention_layernorm", x, epsilon)
            pre = tape("mlp_pre", layer, block.linear("mlp.dense_h_to_4h", x))
            return block.linear("mlp.dense_4h_to_h", tape("mlp_post", layer, act(pre)))

        resid = _parallel(tape, layer, resid, attention, mlp)
    return w.linear("lm_head", w.layer_norm("gpt_neox.final_layer_norm", resid, epsilon))


def _gemma2(w: _Weights, config, ids: Tensor, tape: _Tape) -> Tensor:
    n, heads, kv_heads = len(ids), config.num_attention_heads, config.num_key_value_heads
    act, base = _ACTIVATIONS[config.hidden_activation], _rope_base(config)

    def norm(w: _Weights, name: str, x: Tensor) -> Tensor:
        return w.rms_norm(name, x, config.rms_norm_eps, offset=1.0)

    resid = tape("embed", None, w["model.embed_tokens.weight"][ids] * math.sqrt(config.hidden_size))
    for layer in range(config.num_hidden_layers):
        block = w.below("model.layers", layer)
        window = config.sliding_window if config.layer_types[layer] == "sliding_attention" else None

        def attention(x: Tensor, block=block, layer=layer, window=window) -> Tensor:
            x = norm(block, "input_layernorm", x)
            q = block.linear("self_attn.q_proj", x).view(n, heads, -1)
            k = block.linear("self_attn.k_proj", x).view(n, kv_heads, -1)
            v = block.linear("self_attn.v_proj", x).view(n, kv_heads, -1)
            z = _attend(
                tape,
                layer,
                q,
                k,
                v,
                scale=config.query_pre_attn_scalar**-0.5,
                rotate=lambda x: _rotate_halves(x, x.shape[-1], base),
                softcap=config.attn_logit_softcapping,
                window=window,
            )
            return norm(block, "post_attention_layernorm", block.linear("self_attn.o_proj", z))

        def mlp(x: Tensor, block=block, layer=layer) -> Tensor:
            x = norm(block, "pre_feedforward_layernorm", x)
            pre = tape("mlp_pre", layer, block.linear("mlp.gate_proj", x))
            post = tape("mlp_post", layer, act(pre) * block.linear("mlp.up_proj", x))
            return norm(block, "post_feedforward_layernorm", block.linear("mlp.down_proj", post))

        resid = _sequential(tape, layer, resid, attention, mlp)
    logits, softcap = w.linear("lm_head", norm(w, "model.norm", resid)), config.final_logit_softcapping
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _opt(w: _Weights, config, ids: Tensor, tape: _Tape) -> Tensor:
    if not config.do_layer_norm_before or config.word_embed_proj_dim != config.hidden_size:
        raise NotImplementedError("an OPT with norms after the blocks, or with a projected embedding")
    n, heads, epsilon, offset = len(ids), config.num_attention_heads, 1e-5, 2
    act, w_decoder = _ACTIVATIONS[config.activation_function], w.below("model.decoder")
    resid = tape("embed", None, w_decoder["embed_tokens.weight"][ids])
    resid = resid + w_decoder["embed_positions.weight"][offset : offset + n]
    for layer in range(config.num_hidden_layers):
        block = w_decoder.below("layers", layer)

        def attention(x: Tensor, block=block, layer=layer) -> Tensor:
            x = block.layer_norm("self_attn_layer_norm", x, epsilon)
            q, k, v = (block.linear(f"self_attn.{name}_proj", x).view(n, heads, -1) for name in "qkv")
            return block.linear("self_attn.out_proj", _attend(tape, layer, q, k, v, q.shape[-1] ** -0.5))

        def mlp(x: Tensor, block=block, layer=layer) -> Tensor:
            x = block.layer_norm("final_layer_norm", x, epsilon)
            pre = tape("mlp_pre", layer, block.linear("fc1", x))
            return block.linear("fc2", tape("mlp_post", layer, act(pre)))

        resid = _sequential(tape, layer, resid, attention, mlp)
    return w.linear("lm_head", w_decoder.layer_norm("final_layer_norm", resid, epsilon))


def _gptj(w: _Weights, config, ids: Tensor, tape: _Tape) -> Tensor:
    n, heads, epsilon = len(ids), config.n_head, config.layer_norm_epsilon
    act, d_rotary = _ACTIVATIONS[config.activation_function], config.rotary_dim
    resid = tape("embed", None, w["transformer.wte.weight"][ids])
    for layer in range(config.n_layer):
        block = w.below("transformer.h", layer)

        def attention(x: Tensor, block=block, layer=layer) -> Tensor:
            x = block.layer_norm("ln_1", x, epsilon)
            q, k, v = (block.linear(f"attn.{name}_proj", x).view(n, heads, -1) for name in "qkv")
            z = _attend(
                tape, layer, q, k, v, q.shape[-1] ** -0.5, lambda x: _rotate_neighbours(x, d_rotary, 10_000.0)
            )
            return block.linear("attn.out_proj", z)

        def mlp(x: Tensor, block=block, layer=layer) -> Tensor:
            pre = tape("mlp_pre", layer, block.linear("mlp.fc_in", block.layer_norm("ln_1", x, epsilon)))
            return block.linear("mlp.fc_out", tape("mlp_post", layer, act(pre)))

        resid = _parallel(tape, layer, resid, attention, mlp)
    return w.linear("lm_head", w.layer_norm("transformer.ln_f", resid, epsilon))


def _alibi_slopes(heads: int) -> Tensor:
    """Press et al. 2022: a geometric series; beyond a power of two, every other slope of the next."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-8 * (i + 1) / (2 * power)) for i in range(0, 2 * (heads - power), 2)]
    return torch.tensor(slopes)


def _bloom(w: _Weights, config, ids: Tensor, tape: _Tape) -> Tensor:
    if config.apply_residual_connection_post_layernorm:
        raise NotImplementedError("a Bloom whose residual stream starts after the norm")
    n, heads, epsilon = len(ids), config.n_head, config.layer_norm_epsilon
    alibi = _alibi_slopes(heads)[:, None, None] * torch.arange(n)  # [head, 1, key]
    resid = w["transformer.word_embeddings.weight"][ids]
    resid = tape("embed", None, w.layer_norm("transformer.word_embeddings_layernorm", resid, epsilon))
    for layer in range(config.n_layer):
        block = w.below("transformer.h", layer)

        def attention(x: Tensor, block=block, layer=layer) -> Tensor:
            x = block.layer_norm("input_layernorm", x, epsilon)
            q, k, v = block.linear("self_attention.query_key_value", x).view(n, heads, 3, -1).unbind(2)
            z = _attend(tape, layer, q, k, v, q.shape[-1] ** -0.5, bias=alibi)
            return block.linear("self_attention.dense", z)

        def mlp(x: Tensor, block=block, layer=layer) -> Tensor:
            x = block.layer_norm("post_attention_layernorm", x, epsilon)
            pre = tape("mlp_pre", layer, block.linear("mlp.dense_h_to_4h", x))
            return block.linear("mlp.dense_4h_to_h", tape("mlp_post", layer, _gelu_tanh(pre)))

        resid = _sequential(tape, layer, resid, attention, mlp)
    return w.linear("lm_head", w.layer_norm("transformer.ln_f", resid, epsilon))


_ARCHITECTURES: dict[str, Callable[..., Tensor]] = {
    "bloom": _bloom,
    "gemma2": _gemma2,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "gptj": _gptj,
    "llama": _llama,
    "opt": _opt,
}
