"""Text becomes ids as the model's own tokenizer has it, and ids become pieces that a reader can see."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import random_models
from transpector.state.errors import TextError
from transpector.state.tokens import Tokens


def sentencepiece_like():
    """As Llama 2's: ▁ for a space, bytes for what has no token, BOS put in front."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"abcdefgh",
        "▁a",
        "▁ab",
    ]
    bpe = Tokenizer(
        models.BPE(
            {piece: n for n, piece in enumerate(pieces)},
            [("▁", "a"), ("▁a", "b")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    bpe.add_special_tokens([AddedToken(name, special=True) for name in ("<unk>", "<s>", "</s>")])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def byte_level():
    return Tokens(random_models.tokenizer())


@pytest.fixture(scope="module")
def with_bytes():
    return Tokens(sentencepiece_like())


def test_pieces_of_plain_text_are_the_text(byte_level):
    text = "The Eiffel Tower\nis in\tthe city"
    pieces = byte_level.pieces(byte_level.encode(text))
    assert "".join(pieces) == text
    assert " Eiffel" in pieces and "\n" in pieces


TEXTS = {
    "accent": "é",
    "emoji": "👩‍🚀 ok",
    "right to left": "שלום مرحبا",
    "chinese": "巴黎",
    "markup": "<img src=x onerror=alert(1)></script><script>",
    "control": "a\x00b\x07c\x1b[31m\x7f",
    "separators": "a\u2028b\u200fc\u202ed",
    "spaces": "  a   b \n\n ",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_every_text_comes_back_from_its_pieces_byte_for_byte(byte_level, text):
    ids = byte_level.encode(text)
    raw = b""
    for piece in byte_level.pieces(ids):
        if piece.startswith("‹"):
            raw += bytes.fromhex(piece.strip("‹›"))
        else:
            assert "�" not in piece
            raw += piece.encode()
    assert raw == text.encode()
    assert byte_level.decode(ids) == text


def test_bytes_that_are_no_text_on_their_own_are_shown_in_hexadecimal(byte_level):
    assert byte_level.pieces(byte_level.encode("é👍")) == ("‹C3›", "‹A9›", "‹F0›", "‹9F›", "‹91›", "‹8D›")


def test_markup_stays_the_characters_that_it_is(byte_level):
    pieces = byte_level.pieces(byte_level.encode("</script>&amp;"))
    assert "".join(pieces) == "</script>&amp;"


def test_a_special_token_is_one_token_and_shows_its_name(byte_level):
    assert byte_level.encode("a<|endoftext|>b")[1] == 0
    assert byte_level.pieces([0]) == ("<|endoftext|>",)


def test_a_row_of_the_embedding_that_no_token_uses_shows_its_number(byte_level):
    assert byte_level.pieces([99_999]) == ("‹99999›",)


def test_pieces_stay_in_order_and_may_repeat(byte_level):
    a, b = byte_level.encode("a")[0], byte_level.encode("b")[0]
    assert byte_level.pieces([b, a, b, b]) == ("b", "a", "b", "b")
    assert byte_level.pieces([]) == ()


def test_pieces_of_a_sentencepiece_tokenizer_have_spaces_and_bytes(with_bytes):
    ids = with_bytes.encode("ab é\nc")
    assert with_bytes.pieces(ids) == (" ab", " ", "‹C3›", "‹A9›", "\n", "c")
    assert with_bytes.pieces([1, 2]) == ("<s>", "</s>")


@pytest.mark.parametrize(("bos", "first"), [(False, " ab"), (True, "<s>")])
def test_bos_is_put_in_front_exactly_when_asked_for(with_bytes, bos, first):
    assert with_bytes.adds_bos
    assert with_bytes.pieces(with_bytes.encode("ab cd", bos))[0] == first
    assert with_bytes.pieces(with_bytes.encode("ab cd", bos)).count("<s>") == bos


def test_with_bos_ids_are_those_of_the_tokenizer_itself(with_bytes):
    assert with_bytes.encode("ab cd é", bos=True) == with_bytes.tokenizer("ab cd é").input_ids


def test_a_tokenizer_that_does_not_add_bos_says_so(byte_level):
    assert not byte_level.adds_bos
    assert byte_level.encode("a", bos=True)[0] == byte_level.bos_id == 0
    assert byte_level.encode("a") == byte_level.tokenizer("a").input_ids


def test_special_tokens_are_left_out_of_decoded_text(with_bytes):
    assert with_bytes.decode(with_bytes.encode("ab cd", bos=True)) == "ab cd"


def test_an_empty_text_is_refused(byte_level):
    with pytest.raises(TextError, match=r"The text is empty\. Type a few words\."):
        byte_level.encode("")


def test_a_text_of_which_no_token_is_left_is_refused():
    tokenizer = random_models.tokenizer()
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Strip()
    with pytest.raises(TextError, match="makes no token of ' '"):
        Tokens(tokenizer).encode(" ")


def test_one_token_has_an_id_and_more_are_refused_with_their_pieces(byte_level):
    assert byte_level.pieces([byte_level.token_id(" city")]) == (" city",)
    with pytest.raises(TextError) as refused:
        byte_level.token_id("Zx")
    assert "'Zx' is 2 tokens ('Z', 'x'), not one" in str(refused.value)
    with pytest.raises(TextError, match="empty"):
        byte_level.token_id("")


def test_random_tokens_are_drawn_from_ordinary_ones(byte_level):
    assert byte_level.plain_ids() == list(range(1, random_models.D_VOCAB))


def test_a_text_past_the_context_is_refused_with_both_numbers(random_lm):
    lm = random_lm("llama")
    assert len(lm.tokenize("a" * 128)) == 128
    with pytest.raises(
        TextError, match=r"The text has 129 tokens; this model reads at most 128\. Shorten it\."
    ):
        lm.tokenize("a" * 129)
    with pytest.raises(TextError, match=r"The text has 1,204 tokens"):
        lm.checked([1] * 1204)


def test_bos_counts_among_the_tokens(random_lm):
    with pytest.raises(TextError, match="129 tokens"):
        random_lm("llama").tokenize("a" * 128, bos=True)


@pytest.mark.parametrize(
    ("ids", "message"), [([], "no token"), ([3, 512], "id 512 is outside"), ([-1], "id -1 is outside")]
)
def test_ids_that_the_model_lacks_are_refused(random_lm, ids, message):
    with pytest.raises(TextError, match=message):
        random_lm("llama").checked(ids)
