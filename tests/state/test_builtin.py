"""The model in the box, measured again with plain transformers and PyTorch, without any of our code."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

FOLDER = Path(__file__).parents[2] / "state" / "builtin"
SPAN = 48  # tokens that are repeated once
ROWS = 32

# From the last chapter of Pride and Prejudice (Jane Austen, 1813; public domain), which was held out of training.
HELD_OUT = """\
Mr. Bennet missed his second daughter exceedingly; his affection for her drew him oftener from home than
anything else could do. He delighted in going to Pemberley, especially when he was least expected.

Mr. Bingley and Jane remained at Netherfield only a twelvemonth. So near a vicinity to her mother and
Meryton relations was not desirable even to his easy temper, or her affectionate heart. The darling wish of
his sisters was then gratified; he bought an estate in a neighbouring county to Derbyshire, and Jane and
Elizabeth, in addition to every other source of happiness, were within thirty miles of each other.

Kitty, to her very material advantage, spent the chief of her time with her two elder sisters. In society so
superior to what she had generally known, her improvement was great. She was not of so ungovernable a temper
as Lydia; and, removed from the influence of Lydia's example, she became, by proper attention and
management, less irritable, less ignorant, and less insipid. From the further disadvantage of Lydia's
society she was of course carefully kept, and though Mrs. Wickham frequently invited her to come and stay
with her, with the promise of balls and young men, her father would never consent to her going.

Mary was the only daughter who remained at home; and she was necessarily drawn from the pursuit of
accomplishments by Mrs. Bennet's being quite unable to sit alone. Mary was obliged to mix more with the
world, but she could still moralize over every morning visit; and as she was no longer mortified by
comparisons between her sisters' beauty and her own, it was suspected by her father that she submitted to
the change without much reluctance.
"""


@pytest.fixture(scope="module", autouse=True)
def offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def model(offline) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(str(FOLDER), attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def tokenizer(offline) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(str(FOLDER))


@torch.no_grad()
def repeated_spans(model: LlamaForCausalLM, bos: bool, seed: int = 1234) -> tuple[Tensor, Tensor]:
    """Return the loss, [row, 95], and the patterns, [layer row head 96 96], on twice 48 random tokens."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, model.config.vocab_size, (ROWS, SPAN), generator=random).repeat(1, 2)
    start = torch.full((ROWS, int(bos)), model.config.bos_token_id)
    out = model(torch.cat([start, ids], 1), output_attentions=True)
    logits = out.logits[:, int(bos) :]
    loss = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    return loss, torch.stack(out.attentions)[..., int(bos) :, int(bos) :]


@pytest.mark.parametrize("bos", [False, True], ids=["no-bos", "bos"])
def test_the_second_copy_of_a_random_span_costs_at_least_4_nats_less(model, bos):
    loss, _ = repeated_spans(model, bos)
    first, second = loss[:, : SPAN - 1].mean(), loss[:, SPAN:].mean()
    assert first - second >= 4, (first, second)
    assert first > 0.9 * math.log(model.config.vocab_size), "a random token cannot be predicted"


@pytest.mark.parametrize("bos", [False, True], ids=["no-bos", "bos"])
def test_some_head_looks_back_to_the_token_after_the_earlier_occurrence(model, bos):
    _, pattern = repeated_spans(model, bos)
    query = torch.arange(SPAN, 2 * SPAN)
    score = pattern[..., query, query - SPAN + 1].mean((1, 3))  # [layer head]
    assert score.max() >= 0.7, score


@pytest.mark.parametrize("bos", [False, True], ids=["no-bos", "bos"])
def test_some_head_looks_at_the_previous_token(model, bos):
    _, pattern = repeated_spans(model, bos)
    query = torch.arange(1, 2 * SPAN)
    score = pattern[..., query, query - 1].mean((1, 3))  # [layer head]
    assert score.max() >= 0.7, score


@torch.no_grad()
def test_induction_still_works_across_256_tokens(model):
    random = torch.Generator().manual_seed(5)
    ids = torch.randint(0, model.config.vocab_size, (8, 128), generator=random).repeat(1, 2)
    logits = model(ids).logits
    loss = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    assert loss[:, :127].mean() - loss[:, 128:].mean() >= 4
    assert model.config.max_position_embeddings >= 256


@torch.no_grad()
def test_english_that_repeats_is_foretold_from_its_first_copy(model, tokenizer):
    ids = torch.tensor(tokenizer(HELD_OUT).input_ids[: 7 * SPAN]).view(7, SPAN).repeat(1, 2)
    logits = model(ids).logits
    loss = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    assert loss[:, : SPAN - 1].mean() - loss[:, SPAN:].mean() >= 2


@torch.no_grad()
def test_english_that_was_held_out_costs_far_less_than_its_unigram_entropy(model, tokenizer):
    text = "\n".join(" ".join(paragraph.split()) for paragraph in HELD_OUT.split("\n\n"))  # as in training
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert 256 <= ids.shape[1] <= model.config.max_position_embeddings
    loss = float(model(ids, labels=ids).loss)
    assert loss < 5.5, loss  # nats a token; the unigram entropy of such text is 6.5


@pytest.mark.parametrize(
    "text",
    [
        "It is a truth universally acknowledged, that a single man must be in want of a wife.",
        " a leading space, two  spaces, a trailing one ",
        "don 't , ok . No clean-up !",
        "na\u00efve \u00c5ngstr\u00f6m vs A\u030angstro\u0308m, \ufb01n, \u65e5\u672c\u8a9e, \u0639\u0631\u0628\u064a, \u05e2\u05d1\u05e8\u05d9\u05ea",
        "\U0001f642 \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308 \U0001f44b\U0001f3fd",
        "tab\t newline\n return\r\n nul\x00 bell\x07 escape\x1b[31m delete\x7f nbsp\xa0 zero\u200bwidth bom\ufeff",
        "<s> </s> <unk> <|im_start|> [INST]",
        "".join(map(chr, range(0x500))),
        "",
    ],
)  # fmt: skip
def test_every_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_tokenizer_adds_no_token_and_knows_its_one_special_token(tokenizer, model):
    assert tokenizer("a").input_ids == tokenizer("a", add_special_tokens=False).input_ids
    assert tokenizer("<|endoftext|>").input_ids == [model.config.bos_token_id] == [model.config.eos_token_id]
    assert tokenizer.bos_token == tokenizer.eos_token == "<|endoftext|>"
    assert len(tokenizer) == model.config.vocab_size == 4096


def test_the_weights_load_as_float32_with_the_shape_of_the_model_card(model):
    assert model.dtype == torch.float32
    config = json.loads((FOLDER / "config.json").read_text("utf-8"))
    assert config["model_type"] == "llama"
    assert (config["num_hidden_layers"], config["num_attention_heads"], config["hidden_size"]) == (4, 8, 128)


def test_the_folder_is_small_and_holds_no_pickle():
    files = [path for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= 8 * 2**20
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".py"}
