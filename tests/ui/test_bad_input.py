"""Bad input in a browser: a clear sentence or a picture, nothing executed, and the page goes on working."""

import pytest
from playwright.sync_api import expect

import transpector as tp
from transpector.components.base import visible
from transpector.serve import FIRST_TEXT

pytestmark = pytest.mark.browser

HOSTILE = [
    "<img src=x onerror=\"window.__pwned='img'\">",
    "</script><script>window.__pwned='script'</script>",
    "<svg/onload=\"window.__pwned='svg'\">{{7*7}}${7*7}",
]
STRANGE = {
    "control characters": "one\x01two\x7fthree\x1b[31mfour\ttab\nline\r\nend",
    "emoji": "👩‍👩‍👧‍👦 is a family, 🇩🇪 a flag, and é may be two characters",
    "right to left": "שלום עולם and مرحبا بالعالم in one line",
    "zero width and direction marks": "a\u200bb\u202eright-to-left override\u202c c\ufeff",
    "mathematics for the axis labels": "$$x^2$$ \\(y\\) \\[z\\] $a$ and $b$",
    "HTML entities": "&lt;b&gt; &amp;amp; &#x27; <b>bold</b>",
}


def expect_works(desk, builtin):
    """A good text is answered again."""
    desk.text.fill(FIRST_TEXT)
    run = tp.Session(builtin, FIRST_TEXT).wait(60).run
    desk.expect_tokens(run)
    desk.expect_next(run)
    expect(desk.error).to_have_count(0)


def test_a_text_that_can_not_be_read_is_said_and_the_picture_stays(desk, builtin):
    run = tp.Session(builtin, FIRST_TEXT).wait(60).run
    n_ctx = builtin.spec.n_ctx
    long = "the " * (n_ctx + 10)
    with pytest.raises(tp.TextError) as too_long:
        builtin.tokenize(long)
    assert f"{n_ctx:,}" in str(too_long.value)
    for text, words in [("", "The text is empty. Type a few words."), (long, str(too_long.value))]:
        desk.text.fill(text)
        expect(desk.error).to_have_text(words)
        desk.expect_tokens(run)
        desk.expect_next(run)
        desk.expect_metric(run.loss.mean(), run.loss.mean())
        expect_works(desk, builtin)
    # One token is a text: it has next tokens, but no loss
    desk.text.fill(".")
    one = tp.Session(builtin, ".").wait(60).run
    assert one.n_pos == 1
    desk.expect_tokens(one)
    desk.expect_next(one)
    expect(desk.warning).to_contain_text("The mean loss needs two tokens")
    desk.button("Set it to zero").click()
    expect(desk.rows).to_have_count(1)
    site = desk.rows.locator(".site").text_content()
    desk.expect_next(tp.Session(builtin, ".", interventions=[tp.Ablate(site)]).wait(60).run)
    desk.button("↶ Undo").click()
    expect(desk.rows).to_have_count(0)
    expect_works(desk, builtin)
    # Text B past the context is said where it is typed
    desk.text_b.fill(long)
    expect(desk.page.get_by_text(str(too_long.value))).to_be_visible()
    desk.button("Write into it what it holds on text B").click()
    expect(desk.error).to_be_visible()
    desk.expect_tokens(run)
    desk.button("↶ Undo").click()
    desk.text_b.fill("")
    expect_works(desk, builtin)


def test_what_looks_like_html_is_only_text_everywhere(desk, builtin):
    page = desk.page

    def expect_harmless():
        page.wait_for_function("() => Bokeh.documents[0].is_idle")
        assert page.evaluate("window.__pwned") is None

    for hostile in HOSTILE:
        desk.text.fill(hostile)
        run = tp.Session(builtin, hostile).wait(60).run
        desk.expect_tokens(run)
        desk.expect_next(run)
        desk.tokens.last.hover()
        desk.sheet.hover()
        box = page.locator(".bk-Figure").first
        box.hover()
        expect_harmless()
    hostile = HOSTILE[0]
    desk.text_b.fill(hostile)
    n_b = len(builtin.tokenize(hostile))
    expect(page.get_by_text(f"{n_b} tokens")).to_be_visible()
    desk.text.fill(hostile)
    desk.button("Write into it what it holds on text B").click()
    expect(desk.rows.locator(".what")).to_contain_text(hostile[:8])
    desk.rows.first.hover()
    name = desk.rows.locator("input.name")
    name.fill(hostile)
    name.press("Enter")
    desk.until(lambda: desk.session.interventions[0].name == hostile[:80])
    expect(name).to_have_value(hostile[:80])
    expect_harmless()
    desk.choose("Metric", "Log-probability")
    page.get_by_label("Answer", exact=True).fill(hostile)
    expect(desk.warning).to_contain_text(hostile[:17])
    expect(desk.warning).to_contain_text("not one. Name one token")
    expect_harmless()
    page.get_by_label("Site", exact=True).fill(hostile)
    desk.button("Add").click()
    expect(desk.warning.filter(has_text="onerror").last).to_be_visible()
    desk.choose("Do", "Patch from this run")
    page.get_by_label("Site", exact=True).fill("L1H0.z")
    page.get_by_label("Source", exact=True).fill(hostile)
    desk.button("Add").click()
    expect_harmless()
    page.locator("button.model").click()
    dialog = page.get_by_role("dialog")
    for hostile in HOSTILE:
        model = dialog.get_by_role("combobox", name="Model")
        model.fill(hostile)
        model.press("Enter")
        expect(dialog.locator(".warning:visible")).to_contain_text(hostile[:20])
        expect_harmless()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert page.locator("img[src=x], svg[onload]").count() == 0
    desk.button("Delete all; undo brings them back").click()
    desk.choose("Metric", "Mean loss")
    expect_works(desk, builtin)
    expect_harmless()


def test_characters_that_are_hard_to_show_are_shown(desk, builtin):
    for text in STRANGE.values():
        desk.text.fill(text)
        typed = desk.text.input_value()  # a browser's text field has its own line ends
        assert typed == text.replace("\r\n", "\n")
        run = tp.Session(builtin, typed).wait(60).run
        desk.expect_tokens(run)
        desk.expect_next(run)
        desk.expect_metric(run.loss.mean(), run.loss.mean())
        shown = "".join(visible(run.tokens))
        assert all(character.isprintable() for character in shown)
        layer, head = desk.session.head
        desk.until(lambda run=run: len(desk.figure("piece")["piece"]) == run.n_pos)
        assert desk.page.evaluate("window.MathJax") is None
        assert (layer, head) == desk.session.head
    expect(desk.error).to_have_count(0)
    expect_works(desk, builtin)


def test_other_fields_that_can_not_be_read_are_said(desk, builtin):
    """Positions that are not in the text, sites of another shape, a patch table that is out of date."""
    session = desk.session
    desk.tokens.last.click()
    expect(desk.page.get_by_text(f"Next token after position {session.run.n_pos - 1}")).to_be_visible()
    short = "The old man."
    desk.text.fill(short)  # the position that was selected is not in this text
    run = tp.Session(builtin, short).wait(60).run
    desk.expect_tokens(run)
    desk.expect_next(run)
    desk.page.get_by_label("Site", exact=True).fill("L1.resid_pre@2")
    desk.button("Add").click()
    expect(desk.rows).to_have_count(1)
    one = "."
    desk.text.fill(one)  # nor is the position that is intervened on
    expect(desk.error).to_contain_text("L1.resid_pre@2")
    desk.expect_tokens(run)
    desk.rows.get_by_role("switch").click()
    desk.expect_tokens(tp.Session(builtin, one).wait(60).run)
    expect(desk.error).to_have_count(0)
    expect_works(desk, builtin)
