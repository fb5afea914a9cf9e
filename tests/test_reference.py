"""The reference is what Hugging Face computes, undisturbed and after every kind of write."""

import functools

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from random_models import D_VOCAB, KINDS, N_LAYERS, random_model, save
from reference import HIDDEN, Reference, forward

IDS = torch.randint(1, D_VOCAB, (12,), generator=torch.Generator().manual_seed(0))
PARALLEL = ("gpt_neox", "gptj")
STREAM = ("resid_pre", "attn_out", "mlp_pre", "mlp_post", "mlp_out", "resid_post", "q", "k", "v", "z")

# Where Hugging Face's modules hold a site of block 1: the module, and whether it is its input or its output.
# A fused projection also says how its output is laid out: "3h" is [3, head, d_head], "h3" [head, 3, d_head].
_NAMES = {
    "gpt2": ("transformer.h", "attn.c_proj", "attn.c_attn 3h", "mlp.c_fc", "mlp.c_proj"),
    "llama": ("model.layers", "self_attn.o_proj", "self_attn.{}_proj", "mlp.gate_proj", "mlp.down_proj"),
    "gpt_neox": (
        "gpt_neox.layers",
        "attention.dense",
        "attention.query_key_value h3",
        "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
    ),
    "gemma2": ("model.layers", "self_attn.o_proj", "self_attn.{}_proj", "mlp.gate_proj", "mlp.down_proj"),
    "opt": ("model.decoder.layers", "self_attn.out_proj", "self_attn.{}_proj", "fc1", "fc2"),
    "gptj": ("transformer.h", "attn.out_proj", "attn.{}_proj", "mlp.fc_in", "mlp.fc_out"),
    "bloom": (
        "transformer.h",
        "self_attention.dense",
        "self_attention.query_key_value h3",
        "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
    ),
}


@functools.cache
def model_of(kind: str) -> PreTrainedModel:
    return random_model(kind)


@functools.cache
def reference_of(kind: str) -> Reference:
    return forward(model_of(kind), IDS)


@torch.no_grad()
def hugging_face(model: PreTrainedModel, **options):
    return model(IDS[None], use_cache=False, **options)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert one.shape == other.shape
    return ((one - other).abs().max() / other.abs().max()).item()


def noise(shape: torch.Size, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def edit(value: torch.Tensor) -> torch.Tensor:
    """A change that no scale and no shift can undo."""
    return 0.5 * value + noise(value.shape)


def place_in_hugging_face(kind: str, site: str) -> tuple[str, str, str]:
    """The module, its side, and the layout of a fused projection, of that site in block 1."""
    blocks, out, qkv, mlp_in, mlp_out = _NAMES[kind]
    if site in ("resid_pre", "resid_post"):
        return f"{blocks}.{1 if site == 'resid_pre' else 2}", "input", ""
    if site in ("q", "k", "v"):
        name, _, layout = qkv.partition(" ")
        return f"{blocks}.1.{name.format(site)}", "output", layout
    if kind == "gemma2" and site == "attn_out":
        return f"{blocks}.1.post_attention_layernorm", "output", ""
    if kind == "gemma2" and site == "mlp_out":
        return f"{blocks}.1.post_feedforward_layernorm", "output", ""
    name = {"z": out, "attn_out": out, "mlp_pre": mlp_in, "mlp_post": mlp_out, "mlp_out": mlp_out}[site]
    return f"{blocks}.1.{name}", "input" if site in ("z", "mlp_post") else "output", ""


def hugging_face_with_edit(kind: str, site: str) -> torch.Tensor:
    """The logits after a hook on Hugging Face's own module has edited that site of block 1."""
    model, shape = model_of(kind), reference_of(kind).activations[site, 1].shape
    name, side, layout = place_in_hugging_face(kind, site)

    def rewrite(value: torch.Tensor) -> torch.Tensor:
        if not layout:
            return edit(value.reshape(shape)).reshape(value.shape)
        heads, d_head = shape[1:]
        fused = value.clone().view(-1, *((3, heads, d_head) if layout == "3h" else (heads, 3, d_head)))
        part = fused.select(1 if layout == "3h" else 2, "qkv".index(site))
        part.copy_(edit(part))
        return fused.view(value.shape)

    module = model.get_submodule(name)
    if side == "input":
        handle = module.register_forward_pre_hook(lambda _, args: (rewrite(args[0]), *args[1:]))
    else:
        handle = module.register_forward_hook(lambda _, args, output: rewrite(output))
    try:
        return hugging_face(model).logits[0]
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_hugging_face(kind):
    assert difference(reference_of(kind).logits, hugging_face(model_of(kind)).logits[0]) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_patterns_and_residual_stream_are_those_of_hugging_face(kind):
    output = hugging_face(model_of(kind), output_attentions=True, output_hidden_states=True)
    activations = reference_of(kind).activations
    for layer in range(N_LAYERS):
        assert difference(activations["pattern", layer], output.attentions[layer][0]) < 1e-5
        assert difference(activations["resid_pre", layer], output.hidden_states[layer][0]) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_random_model_is_not_trivial(kind):
    reference = reference_of(kind)
    assert 1 < reference.logits.std() < 5
    for layer in range(N_LAYERS):
        scores = reference.activations["scores", layer]
        assert 1 < scores[scores > HIDDEN].std() < 5


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_halves_of_a_block_add_makes_its_output(kind):
    activations = reference_of(kind).activations
    for layer in range(N_LAYERS):
        before, after = activations["resid_pre", layer], activations["resid_post", layer]
        attn_out, mlp_out = activations["attn_out", layer], activations["mlp_out", layer]
        assert difference(before + attn_out + mlp_out, after) < 1e-6
        assert (("resid_mid", layer) in activations) == (kind not in PARALLEL)


@pytest.mark.parametrize("site", STREAM)
@pytest.mark.parametrize("kind", KINDS)
def test_a_write_does_what_a_hook_on_the_module_of_hugging_face_does(kind, site):
    written = forward(model_of(kind), IDS, {(site, 1): edit}).logits
    assert difference(written, hugging_face_with_edit(kind, site)) < 1e-5
    assert difference(written, reference_of(kind).logits) > 0.01


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in PARALLEL])
def test_resid_mid_is_both_the_skip_path_and_what_the_mlp_reads(kind):
    shift = noise(reference_of(kind).activations["resid_mid", 1].shape)
    by_resid_mid = forward(model_of(kind), IDS, {("resid_mid", 1): lambda x: x + shift})
    by_attn_out = forward(model_of(kind), IDS, {("attn_out", 1): lambda x: x + shift})
    assert difference(by_resid_mid.logits, by_attn_out.logits) < 1e-5
    assert difference(by_resid_mid.logits, reference_of(kind).logits) > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_pattern_is_taken_as_it_is_and_multiplies_v(kind):
    before = reference_of(kind).activations
    pattern = noise(before["pattern", 1].shape).softmax(-1)  # sees the future
    heads, kv_heads = len(pattern), before["v", 1].shape[1]
    z = torch.stack([pattern[h] @ before["v", 1][:, h * kv_heads // heads] for h in range(heads)], dim=1)
    by_pattern = forward(model_of(kind), IDS, {("pattern", 1): lambda x: pattern})
    by_z = forward(model_of(kind), IDS, {("z", 1): lambda x: z})
    assert difference(by_pattern.logits, by_z.logits) < 1e-5
    assert difference(by_pattern.logits, reference_of(kind).logits) > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_scores_enter_the_softmax_and_show_no_key_that_was_hidden(kind):
    before = reference_of(kind).activations
    hidden = before["scores", 1] == HIDDEN
    assert torch.equal(hidden, before["pattern", 1] == 0)
    assert difference(before["scores", 1].softmax(-1), before["pattern", 1]) < 1e-6
    level = forward(model_of(kind), IDS, {("scores", 1): torch.zeros_like}).activations["pattern", 1]
    visible = (~hidden).float()
    assert difference(level, visible / visible.sum(-1, keepdim=True)) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_later_write_sees_the_earlier_one(kind):
    seen = []
    shift = noise(reference_of(kind).activations["z", 0].shape)
    write = {("z", 0): lambda x: x + shift, ("resid_pre", 2): lambda x: seen.append(x) or x}
    both = forward(model_of(kind), IDS, write)
    alone = forward(model_of(kind), IDS, {("z", 0): lambda x: x + shift})
    assert torch.equal(seen[0], alone.activations["resid_pre", 2])
    assert torch.equal(both.logits, alone.logits)


def test_a_written_tensor_receives_a_gradient():
    z = reference_of("llama").activations["z", 1].clone().requires_grad_()
    forward(model_of("llama"), IDS, {("z", 1): lambda x: z}).logits[-1, 7].backward()
    assert z.grad.abs().max() > 0


@pytest.mark.parametrize("key", [("resid_mid", 0), ("z", N_LAYERS), ("z", None), ("spam", 0)])
def test_a_write_to_what_does_not_exist_raises(key):
    with pytest.raises(KeyError, match="no such activation"):
        forward(model_of("gpt_neox"), IDS, {key: lambda x: x})


def test_a_write_of_another_shape_raises():
    with pytest.raises(ValueError, match="became"):
        forward(model_of("gpt2"), IDS, {("pattern", 0): lambda x: x[:1]})


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_the_weights(kind):
    weights, again, other = (random_model(kind, seed).state_dict() for seed in (0, 0, 1))
    for name, value in weights.items():
        assert torch.equal(value, again[name])
        assert not torch.equal(value, other[name])


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_loads_with_its_tokenizer(kind, tmp_path):
    directory = save(kind, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert torch.equal(hugging_face(model).logits, hugging_face(model_of(kind)).logits)
    text = "The Eiffel Tower, in Zürich\n\tor 東京?"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (len(tokenizer), tokenizer.bos_token, tokenizer.bos_token_id) == (D_VOCAB, "<|endoftext|>", 0)
