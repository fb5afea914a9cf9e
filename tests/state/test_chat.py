"""A chat is the text that the model's own template makes of its messages."""

import pytest

import transpector as tp

TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}"
    "{{ raise_exception('no role ' + m.role) }}{% endif %}"
    "{{ bos_token if loop.first }} {{ m.role }}: {{ m.content }} end{% endfor %}"
    "{% if add_generation_prompt %} assistant:{% endif %}"
)
HELLO = [tp.Message("user", "Hi there")]


@pytest.fixture
def lm(random_directory):
    lm = tp.load_model(str(random_directory("gpt2")))
    lm.text.tokenizer.chat_template = TEMPLATE
    return lm


def test_messages_become_the_text_and_its_tokens(smollm2):
    session = tp.Session(model=smollm2, messages=HELLO).wait()
    tokenizer = smollm2.text.tokenizer
    rows = [{"role": "user", "content": "Hi there"}]
    expected = tokenizer.apply_chat_template(rows, add_generation_prompt=True).input_ids
    assert session.run.token_ids.tolist() == expected
    assert "<|im_start|>" in session.run.tokens and session.text.endswith("assistant\n")
    session.messages = [tp.Message("system", "Be brief."), *HELLO]
    session.wait()
    assert "Be brief." in session.text and "helpful" not in session.text


def test_what_a_template_begins_with_is_not_written_twice(lm):
    session = tp.Session(model=lm, messages=HELLO, bos=True).wait()
    assert session.text == "<|endoftext|> user: Hi there end assistant:"
    assert session.run.tokens.count("<|endoftext|>") == 1
    session.text = "another text"
    session.wait()
    assert session.messages == [] and session.bos is None


def test_an_answer_that_has_been_begun_is_gone_on_with(lm):
    session = tp.Session(model=lm, messages=[*HELLO, tp.Message("assistant", "Well, I")]).wait()
    assert session.text.endswith(" assistant: Well, I")


def test_what_a_template_refuses_is_said_and_the_answer_stays(lm):
    session = tp.Session(model=lm, messages=HELLO).wait()
    run = session.run
    session.messages = [tp.Message("system", "Be brief.")]
    assert "refuses these messages: no role system" in session.error
    assert session.run is run
    session.messages = HELLO
    session.wait()
    assert session.error == ""


def test_ids_or_a_model_without_a_template_end_a_chat(lm, random_lm):
    session = tp.Session(model=lm, messages=HELLO).wait()
    session.token_ids = [5, 6, 7]
    session.wait()
    assert session.messages == [] and session.run.n_pos == 3
    session.messages = HELLO
    session.wait()
    assert session.run.n_pos > 3
    session.model = random_lm("llama")
    session.wait()
    assert session.messages == [] and "Hi there" in session.text


def test_a_model_without_a_template_says_so(random_lm):
    from transpector.state.chat import rendered

    with pytest.raises(tp.TextError, match="has no chat template"):
        rendered(random_lm("llama").text, HELLO)
