"""The dashboard in a browser: what is shown equals what the API computes, and every control does what it says."""

import logging
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from bokeh.document import Document
from playwright.sync_api import expect

import transpector as tp
from transpector.components import theme
from transpector.components.base import visible
from transpector.serve import FIRST_TEXT
from transpector.state import direct, measure
from transpector.state.heads import attention_scores

pytestmark = pytest.mark.browser

TEXT = "The cat sat on the mat and the cat slept."
OTHER = "A dog ran to the door and the dog barked."


def ask(model, text=FIRST_TEXT, *interventions, **question):
    """The same question, asked through the API of a model that the page knows nothing of."""
    return tp.Session(model, text, interventions=list(interventions), **question).wait(60)


def has_torch(process):
    """Whether a process has torch's library in its memory."""
    return "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()


def hooks_on(model):
    """How many hooks are set in a model's bridge."""
    return sum(
        len(point._forward_hooks) + len(point._forward_pre_hooks) for point in model.bridge.hook_dict.values()
    )


def test_the_page_is_painted_before_torch_is_imported(page, command):
    process, address = command()
    held, onward = (
        [],
        [],
    )  # once a page has been painted it says so, in a patch of the document: keep that back

    def pass_on(websocket):
        server = websocket.connect_to_server()

        def to_server(message):
            if held or (not onward and "PATCH-DOC" in str(message)):
                held.append((server, message))
            else:
                server.send(message)

        websocket.on_message(to_server)

    page.route_web_socket("**/ws", pass_on)
    page.set_default_timeout(60_000)
    page.goto(address)
    expect(page).to_have_title("Transpector")
    expect(page.get_by_placeholder("Type a text: the model reads it as you type.")).to_have_value(FIRST_TEXT)
    expect(page.get_by_role("combobox", name="Metric")).to_be_visible()
    expect(page.locator("button.model")).to_be_visible()
    assert not has_torch(process)
    page.wait_for_function("() => Bokeh.documents[0].is_idle")
    assert not has_torch(process)
    onward.append(True)
    waiting = held.copy()
    held.clear()
    for server, message in waiting:
        server.send(message)
    page.locator("canvas.picture").wait_for()
    expect(page.locator("button.model .name")).to_have_text("builtin")
    assert has_torch(process)


def test_the_first_picture_is_what_the_model_computes(desk, builtin):
    run = ask(builtin).run
    layer, head = desk.session.head
    expect(desk.page.get_by_text(f"L{layer}H{head}: what each token attends to")).to_be_visible()
    expect(desk.page.locator("button.model")).to_contain_text("builtin")
    expect(desk.page.locator("button.model")).to_contain_text(builtin.health.level)
    desk.expect_sheet(measure.thumbnails(run)[0])
    desk.expect_tokens(run)
    desk.expect_next(run)
    desk.expect_loss(run, run)
    desk.expect_metric(run.loss.mean(), run.loss.mean())
    desk.until(lambda: np.array_equal(desk.figure("image")["image"][0], run.pattern(layer, head).ravel()))
    expect(
        desk.page.get_by_title(f"This model reads at most {builtin.spec.n_ctx}").filter(
            has_text=f"{run.n_pos} tokens"
        )
    ).to_be_visible()
    expect(desk.says).to_contain_text(f"{run.n_pos} tokens")
    expect(desk.error).to_have_count(0)


def test_at_first_an_induction_head_is_selected_and_explained(desk, builtin):
    run = ask(builtin).run
    scores = attention_scores(run)["induction"]
    layer, head = divmod(int(scores.argmax()), scores.shape[1])
    assert desk.session.head == (layer, head)
    guide = desk.page.get_by_text("This text repeats.")
    expect(guide).to_contain_text(f"head L{layer}H{head} attends to what followed")
    expect(desk.page.get_by_text(f"L{layer}H{head}: what each token attends to")).to_be_visible()
    # The score is what it is said to be: from each repeated token, to what followed it before; none comes a third time
    ids = run.token_ids.tolist()
    pairs = [(at, ids.index(ids[at]) + 1) for at in range(len(ids)) if ids[at] in ids[:at]]
    assert max(map(ids.count, ids)) == 2
    score = np.mean([run.pattern(layer, head)[pair] for pair in pairs])
    assert abs(score - scores.max()) < 1e-5
    assert score >= 0.3
    expect(guide).to_contain_text(f"(induction score {score:.2f})")
    # The token that it names is the selected one, and does so
    at = desk.session.position
    expect(guide).to_contain_text(f"“{visible(run.tokens)[at]}”")
    assert run.pattern(layer, head)[at].argmax() == dict(pairs)[at]
    expect(desk.tokens.nth(at)).to_have_class(re.compile("held"))
    # What it proposes, done
    desk.button("Set it to zero").click()
    expect(guide).to_have_count(0)
    wanted = ask(builtin, FIRST_TEXT, tp.Ablate(f"L{layer}H{head}.z"))
    assert wanted.run.loss.mean() > wanted.baseline.loss.mean()
    desk.expect_metric(wanted.run.loss.mean(), wanted.baseline.loss.mean())


def test_typing_runs_the_text_once_the_keys_rest(desk, builtin):
    desk.await_answer()
    runs = []
    desk.session.param.watch(lambda event: runs.append(event.new), "run")
    desk.text.fill("")
    expect(desk.error).to_contain_text("The text is empty. Type a few words.")
    desk.text.press_sequentially(TEXT, delay=15)
    wanted = ask(builtin, TEXT).run
    desk.expect_tokens(wanted)
    desk.expect_next(wanted)
    desk.expect_sheet(measure.thumbnails(wanted)[0], desk.session.head)
    desk.expect_metric(wanted.loss.mean(), wanted.loss.mean())
    expect(desk.error).to_have_count(0)
    assert runs[-1].question.token_ids == wanted.question.token_ids
    assert len(runs) < len(TEXT) / 3


def test_a_head_is_selected_by_click_and_by_key(desk, builtin):
    run = ask(builtin).run

    def expect_head(layer, head):
        name = f"L{layer}H{head}"
        expect(desk.page.get_by_text(f"{name}: what each token attends to")).to_be_visible()
        expect(desk.page.locator(".big", has_text=name)).to_have_text(name)
        expect(desk.page.get_by_role("radio", name=name)).to_be_visible()  # whose attention the strip shows
        desk.until(lambda: np.array_equal(desk.figure("image")["image"][0], run.pattern(layer, head).ravel()))
        np.testing.assert_allclose(
            desk.figure("norm")["norm"], direct.result_norm(run, layer, head), rtol=1e-5
        )
        for which, tokens in zip(
            ("promotes", "suppresses"), direct.promoted(run, f"L{layer}H{head}.z", desk.at(run)), strict=True
        ):
            shown = desk.bars(which)
            assert [piece for piece, _ in shown] == visible([piece for piece, _ in tokens])
            numbers = [float(number.replace("−", "-")) for _, number in shown]
            np.testing.assert_allclose(numbers, [value for _, value in tokens], rtol=6e-3, atol=1e-6)
        desk.expect_sheet(measure.thumbnails(run)[0])  # the frame lies around the thumbnail

    desk.click_head(2, 5)
    expect_head(2, 5)
    desk.sheet.press("ArrowRight")
    desk.sheet.press("ArrowUp")
    expect_head(1, 6)
    expect(desk.page.get_by_label("Site", exact=True)).to_have_value("L1H6.z")


def test_the_strip_shows_what_a_token_attends_to_and_a_click_selects_its_position(desk, builtin):
    run = ask(builtin).run
    desk.click_head(1, 2)
    expect(desk.page.get_by_role("radio", name="L1H2")).to_be_visible()
    at = run.n_pos - 3
    patterns = measure.strip_patterns(run, 1, 2)
    scale = theme.sequential()

    def colours(values):
        return ["rgba(0, 0, 0, 0)" if v == 0 else "rgb({}, {}, {})".format(*scale[v]) for v in values]

    def seen():
        return desk.tokens.evaluate_all("tokens => tokens.map((t) => getComputedStyle(t).backgroundColor)")

    desk.tokens.nth(at).hover()
    desk.until(lambda: seen() == colours(patterns[0, at]))
    desk.page.get_by_role("radio", name="mean of all").click()
    desk.tokens.nth(at).hover()
    desk.until(lambda: seen() == colours(patterns[2, at]))
    desk.page.get_by_role("radio", name="attended by").click()
    desk.tokens.nth(at).hover()
    desk.until(lambda: seen() == colours(patterns[2, :, at]))
    desk.tokens.nth(at).click()
    expect(desk.page.get_by_text(f"Next token after position {at}")).to_be_visible()
    expect(desk.page.get_by_text(f"(position {at})", exact=False).first).to_be_visible()
    desk.expect_next(run, at)


def test_a_button_ablates_and_every_number_answers(desk, builtin):
    layer, head = desk.session.head
    site = f"L{layer}H{head}.z"
    expect(desk.page.get_by_text("Nothing is changed yet.")).to_be_visible()
    desk.button("Set it to zero").click()
    expect(desk.rows.locator(".site")).to_have_text([site])
    wanted = ask(builtin, FIRST_TEXT, tp.Ablate(site))
    run, baseline = wanted.run, wanted.baseline
    desk.expect_metric(run.loss.mean(), baseline.loss.mean())
    desk.expect_loss(run, baseline)
    desk.expect_next(run)
    desk.expect_number(desk.rows.locator(".effect"), run.loss.mean() - baseline.loss.mean())
    expect(desk.says).to_contain_text("1 intervention")
    desk.expect_sheet(measure.thumbnails(run)[0], (layer, head))
    desk.until(lambda: desk.has_colour(layer, head, theme.LIGHT.ablated))
    # The line of each next token: its probability in the baseline, as a change
    before = dict(baseline.next_tokens(desk.at(run), builtin.spec.d_vocab))
    first, probability = run.next_tokens(desk.at(run))[0]
    change = desk.page.locator(".root:has(.row > .track)").first.locator(".change").first
    assert abs(float(change.inner_text().replace("−", "-")) - (probability - before[first])) < 6e-4
    # What has been set to zero writes nothing
    expect(desk.page.get_by_text("Nothing: it writes zero here.")).to_have_count(2)
    other = (layer + 1) % builtin.spec.n_layers, head
    desk.click_head(*other)
    desk.button("Set it to its mean over the positions of the baseline").click()
    second = tp.Ablate("L{}H{}.z".format(*other), "mean")
    both = ask(builtin, FIRST_TEXT, tp.Ablate(site), second)
    desk.expect_metric(both.run.loss.mean(), baseline.loss.mean())
    alone = ask(builtin, FIRST_TEXT, second)
    for at, without in enumerate((alone.run, run)):  # the others stay in force
        desk.expect_number(desk.rows.locator(".effect").nth(at), both.run.loss.mean() - without.loss.mean())


def test_a_frozen_head_keeps_its_value_when_the_text_changes(desk, builtin):
    layer, head = desk.session.head
    site = f"L{layer}H{head}.z"
    desk.button("Hold the value it has now, while the text or other interventions change").click()
    expect(desk.rows.locator(".site")).to_have_text([site])
    desk.until(lambda: desk.has_colour(layer, head, theme.LIGHT.frozen))
    first = ask(builtin)
    text = FIRST_TEXT.replace("winter", "summer")
    desk.text.fill(text)
    wanted = ask(builtin, text, tp.Freeze(site, held=first.run.question))
    desk.expect_tokens(wanted.run)
    desk.expect_metric(wanted.run.loss.mean(), wanted.baseline.loss.mean())
    n_shared = min(wanted.run.n_pos, first.run.n_pos)
    np.testing.assert_array_equal(
        wanted.run.activation(site)[:n_shared], first.run.activation(site)[:n_shared]
    )
    if wanted.run.n_pos != first.run.n_pos:
        expect(desk.warning.first).to_contain_text(wanted.run.notes[0])


def test_the_patch_table_switches_renames_deletes_and_takes_back(desk, builtin):
    metric = {
        names: float(ask(builtin, FIRST_TEXT, *(tp.Ablate(name) for name in names)).run.loss.mean())
        for names in [(), ("L0H0.z",), ("L0H1.z",), ("L0H0.z", "L0H1.z")]
    }

    def expect_now(*names):
        desk.expect_metric(metric[names], metric[()])

    sites = desk.rows.locator(".site")
    for head in (0, 1):
        desk.click_head(0, head)
        desk.button("Set it to zero").click()
        expect(sites).to_have_count(head + 1)
    expect_now("L0H0.z", "L0H1.z")
    desk.rows.nth(0).get_by_role("switch").click()
    expect(desk.rows.nth(0).get_by_role("switch")).to_have_attribute("aria-checked", "false")
    expect_now("L0H1.z")
    expect(desk.rows.nth(0).locator(".effect")).to_have_text("")
    desk.rows.nth(0).get_by_role("switch").click()
    expect_now("L0H0.z", "L0H1.z")
    name = desk.page.get_by_label("Name of L0H1.z")
    name.fill("my favourite")
    name.press("Enter")
    desk.until(lambda: desk.session.interventions[1].name == "my favourite")
    expect(name).to_have_value("my favourite")
    desk.page.get_by_label("Delete L0H0.z").click()
    expect(sites).to_have_text(["L0H1.z"])
    expect(name).to_have_value("my favourite")
    expect_now("L0H1.z")
    desk.button("↶ Undo").click()
    expect(sites).to_have_text(["L0H0.z", "L0H1.z"])
    expect_now("L0H0.z", "L0H1.z")
    desk.button("↷ Redo").click()
    expect(sites).to_have_text(["L0H1.z"])
    desk.button("Delete all; undo brings them back").click()
    expect(sites).to_have_count(0)
    expect_now()
    desk.sheet.focus()
    desk.page.keyboard.press("Control+z")
    expect(sites).to_have_text(["L0H1.z"])
    desk.page.keyboard.press("Control+z")
    expect(sites).to_have_text(["L0H0.z", "L0H1.z"])
    expect(name).to_have_value("my favourite")
    desk.page.keyboard.press("Control+z")
    expect(name).to_have_value("")
    desk.page.keyboard.press("Control+Shift+Z")
    expect(name).to_have_value("my favourite")
    desk.page.keyboard.press("Control+y")
    expect(sites).to_have_text(["L0H1.z"])
    expect_now("L0H1.z")
    # In a text field the keys are the text's
    desk.text.focus()
    desk.page.keyboard.press("Control+z")
    desk.page.wait_for_function("() => Bokeh.documents[0].is_idle")
    expect(sites).to_have_text(["L0H1.z"])


def test_a_head_is_patched_from_text_b(desk, builtin):
    layer, head = desk.session.head
    expect(desk.button("Type a text B first")).to_be_disabled()
    other = FIRST_TEXT.replace("letter green", "green letter", 1)
    desk.text_b.fill(other)
    n_b = len(builtin.tokenize(other))
    assert n_b == len(builtin.tokenize(FIRST_TEXT))
    counts = desk.page.get_by_text(f"{n_b} tokens", exact=True)  # of either text
    expect(counts).to_have_count(2)
    desk.button("Write into it what it holds on text B").click()
    site = f"L{layer}H{head}.z"
    wanted = ask(builtin, FIRST_TEXT, tp.Patch(site, source=site, text=other))
    desk.expect_metric(wanted.run.loss.mean(), wanted.baseline.loss.mean())
    desk.expect_loss(wanted.run, wanted.baseline)
    desk.until(lambda: desk.has_colour(layer, head, theme.LIGHT.patched))
    expect(desk.rows.locator(".what")).to_contain_text(["patch:"])
    desk.expect_number(desk.rows.locator(".effect"), wanted.run.loss.mean() - wanted.baseline.loss.mean())
    # Of another length whole sites do not fit, and that is said, with the last good answer kept; one position does
    desk.text_b.fill(OTHER)
    desk.button("Write into it what it holds on text B").click()
    expect(desk.error).to_be_visible()
    desk.expect_metric(wanted.run.loss.mean(), wanted.baseline.loss.mean())
    desk.button("↶ Undo").click()
    expect(desk.error).to_have_count(0)
    desk.choose("Do", "Patch from text B")
    desk.page.get_by_label("Site", exact=True).fill("L2.resid_pre@-1")
    desk.button("Add").click()
    wanted = ask(
        builtin,
        FIRST_TEXT,
        tp.Patch(site, source=site, text=other),
        tp.Patch("L2.resid_pre@-1", source="L2.resid_pre@-1", text=OTHER),
    )
    desk.expect_next(wanted.run)
    expect(desk.error).to_have_count(0)


def test_the_form_takes_any_site_and_says_what_is_wrong_with_one(desk, builtin):
    site = desk.page.get_by_label("Site", exact=True)
    source = desk.page.get_by_label("Source", exact=True)
    add = desk.button("Add")
    site.fill("L1.mlp_out")
    site.press("Enter")
    expect(desk.rows.locator(".site")).to_have_text(["L1.mlp_out"])
    first = tp.Ablate("L1.mlp_out")
    wanted = ask(builtin, FIRST_TEXT, first)
    desk.expect_metric(wanted.run.loss.mean(), wanted.baseline.loss.mean())
    n_layers = builtin.spec.n_layers
    for wrong, words in [
        ("L99H0.z", f"layers 0 to {n_layers - 1}"),
        ("L0H0.mlp_out", "mlp_out"),
        ("nonsense", "nonsense"),
        ("L0H0.z@999", "999"),
        ("", ""),
    ]:
        site.fill(wrong)
        add.click()
        expect(desk.warning).to_contain_text(words)
        expect(desk.rows).to_have_count(1)
    site.fill("L1H0.z")
    desk.choose("Do", "Patch from text B")
    expect(site).to_have_value("L1H0.z")  # as it was typed
    add.click()
    expect(desk.warning).to_contain_text("Text B is empty.")
    desk.choose("Do", "Patch from this run")
    source.fill("L2.resid_pre@-1")
    site.fill("L1.resid_pre@-1")
    add.click()
    expect(desk.warning).to_contain_text("the source is not upstream of the target in the same run")
    expect(desk.rows).to_have_count(1)
    source.fill("L1.resid_pre@3")
    site.fill("L2.resid_pre@-1")
    add.click()
    expect(desk.rows.locator(".site")).to_have_text(["L1.mlp_out", "L2.resid_pre@-1"])
    wanted = ask(builtin, FIRST_TEXT, first, tp.Patch("L2.resid_pre@-1", source="L1.resid_pre@3"))
    desk.expect_next(wanted.run)
    desk.expect_loss(wanted.run, wanted.baseline)
    expect(desk.warning).to_have_count(0)
    expect(desk.error).to_have_count(0)


def test_the_form_writes_a_number_and_scales_by_a_factor_that_slides(desk, builtin):
    site = desk.page.get_by_label("Site", exact=True)
    desk.choose("Do", "Set to a number")
    site.fill("L1D3.resid_pre@-1")
    desk.page.get_by_label("Value", exact=True).fill("2.5")
    desk.page.keyboard.press("Tab")
    desk.button("Add").click()
    written = tp.Set("L1D3.resid_pre@-1", 2.5)
    desk.until(lambda: desk.session.interventions == [written])
    desk.await_answer()
    desk.choose("Do", "Scale")
    expect(desk.page.get_by_label("Value", exact=True)).to_be_hidden()
    site.fill("L1H0.z")
    desk.button("Add").click()
    desk.until(lambda: desk.session.interventions == [written, tp.Scale("L1H0.z", 0.5)])
    expect(desk.rows.locator(".what")).to_have_text(["set: to 2.5", "scale: × 0.5"])
    desk.until(lambda: desk.has_colour(1, 0, theme.LIGHT.steered))
    slider = desk.page.get_by_role("slider", name="Strength of L1H0.z")
    assert [slider.get_attribute(end) for end in ("min", "max", "value")] == ["-2", "2", None]
    expect(slider).to_have_value("0.5")
    expect(slider).to_have_attribute("title", re.compile("^Factor: 1 changes nothing"))
    slider.focus()
    for _ in range(5):
        slider.press("ArrowLeft")
    desk.until(lambda: desk.session.interventions[1].factor == pytest.approx(0.4))
    desk.await_answer()
    wanted = ask(builtin, FIRST_TEXT, *desk.session.interventions)
    desk.expect_metric(wanted.run.loss.mean(), wanted.baseline.loss.mean())
    slider.dblclick()
    desk.until(lambda: desk.session.interventions[1].factor == 1)
    desk.button("↶ Undo").click()
    desk.until(lambda: desk.session.interventions[1].factor == 0.5)
    # What is no number is said
    desk.page.get_by_label("Factor", exact=True).fill("")
    desk.page.keyboard.press("Tab")
    desk.button("Add").click()
    expect(desk.warning).to_contain_text("is no finite number")
    desk.await_answer()
    desk.settle()


@pytest.mark.parametrize("kind", ["opt", "gpt_neox"])
def test_what_an_architecture_can_not_do_is_greyed_out_with_the_reason(
    open_desk, random_directory, random_lm, kind
):
    desk = open_desk(str(random_directory(kind)))
    health = random_lm(kind).health
    unable = [name for name, ability in health.abilities.items() if not ability.write]
    assert unable
    kinds = desk.page.get_by_text("Kinds: ")
    words = kinds.text_content().split()[1:]
    assert not set(words) & set(unable)
    assert set(words) | set(unable) == set(health.abilities)
    for reason in health.reasons:
        assert reason in kinds.get_attribute("title")
        assert reason in desk.page.locator("button.model").get_attribute("title")
    expect(desk.page.locator("button.model")).to_contain_text("limited")
    desk.select("Of this head").click()
    options = desk.page.get_by_role("menuitem")
    expect(options).to_have_text(["z", "pattern", "scores", "q", "k", "v"])
    for option in options.all():
        disabled = option.get_attribute("aria-disabled") == "true"
        assert disabled == (option.text_content() in unable), option.text_content()
    desk.page.keyboard.press("Escape")
    desk.page.get_by_label("Site", exact=True).fill(f"L1.{unable[0]}" if unable[0] != "embed" else "embed")
    desk.button("Add").click()
    expect(desk.warning).to_contain_text(f"can't be changed here: {health.abilities[unable[0]].reason}")
    expect(desk.rows).to_have_count(0)


def test_repeated_random_tokens_and_the_bos_switch(desk, builtin):
    bos = desk.page.get_by_role("switch", name="BOS")
    expect(bos).to_be_checked(checked=builtin.text.adds_bos)
    flipped = ask(builtin, FIRST_TEXT, bos=not builtin.text.adds_bos).run
    bos.click()
    desk.expect_tokens(flipped)
    desk.expect_next(flipped)
    desk.page.get_by_role("button", name="Insert 24 random tokens twice").click()
    desk.until(lambda: desk.session.token_ids is not None)
    ids = list(desk.session.token_ids)
    start = int(builtin.text.bos_id is not None)
    span = ids[start : start + 24]
    assert ids[start:] == span * 2
    assert len(set(span)) > 12
    wanted = tp.Session(builtin, token_ids=ids).wait(60).run
    desk.expect_tokens(wanted)
    desk.expect_metric(wanted.loss.mean(), wanted.loss.mean())
    desk.expect_sheet(measure.thumbnails(wanted)[0])
    expect(bos).to_be_disabled()
    # A text that is typed takes their place
    desk.text.fill(TEXT)
    desk.expect_tokens(ask(builtin, TEXT, bos=not builtin.text.adds_bos).run)
    assert desk.session.token_ids is None
    expect(bos).to_be_enabled()


def test_the_metric_is_that_of_the_chosen_tokens(desk, builtin):
    layer, head = desk.session.head
    site = f"L{layer}H{head}.z"
    desk.button("Set it to zero").click()
    wanted = ask(builtin, FIRST_TEXT, tp.Ablate(site))
    one, two = " the", " and"
    (a,), (b,) = builtin.text.encode(one), builtin.text.encode(two)
    desk.choose("Metric", "Log-probability")
    expect(desk.warning).to_contain_text("The metric has no answer token.")
    desk.page.get_by_label("Answer", exact=True).fill(one)
    now, before = wanted.run.log_probs(-1)[a], wanted.baseline.log_probs(-1)[a]
    desk.expect_metric(float(now), float(before))
    desk.expect_number(desk.rows.locator(".effect"), float(now - before))
    position = desk.page.get_by_label("After position", exact=True)
    position.fill("5")
    position.press("Enter")
    now, before = wanted.run.log_probs(5)[a], wanted.baseline.log_probs(5)[a]
    desk.expect_metric(float(now), float(before))
    desk.choose("Metric", "Logit difference")
    expect(desk.warning).to_contain_text("The metric has no distractor token.")
    desk.page.get_by_label("Distractor", exact=True).fill(two)
    now, before = (float(run.logits[5, a] - run.logits[5, b]) for run in (wanted.run, wanted.baseline))
    desk.expect_metric(now, before, "logits")
    desk.expect_number(desk.rows.locator(".effect"), now - before)
    desk.page.get_by_label("Answer", exact=True).fill("the sea and the moon")
    expect(desk.warning).to_contain_text("'the sea and the moon' is ")
    expect(desk.warning).to_contain_text("not one. Name one token")
    desk.expect_next(wanted.run)  # the pictures stay
    position.fill("500")
    position.press("Enter")
    desk.page.get_by_label("Answer", exact=True).fill(one)
    expect(desk.warning).to_contain_text("Position 500: this text has positions 0 to")
    desk.choose("Metric", "Mean loss")
    desk.expect_metric(wanted.run.loss.mean(), wanted.baseline.loss.mean())
    expect(desk.warning).to_have_count(0)


def test_two_pages_at_once_do_not_mix_and_a_reload_gives_a_working_page(desk, builtin):
    from desk import Desk

    page = desk.page.context.new_page()
    wrongs = []
    page.on("console", lambda said: said.type == "error" and wrongs.append(said.text))
    page.on("pageerror", lambda error: wrongs.append(str(error)))
    second = Desk(page, desk.address, desk.boards).open()
    for each, head in ((desk, 2), (second, 5)):
        each.page.bring_to_front()
        each.click_head(1, head)
        each.button("Set it to zero").click()
    second.text.fill(TEXT)
    for each, head, text in ((desk, 2, FIRST_TEXT), (second, 5, TEXT)):
        each.page.bring_to_front()
        wanted = ask(builtin, text, tp.Ablate(f"L1H{head}.z"))
        expect(each.rows.locator(".site")).to_have_text([f"L1H{head}.z"])
        each.expect_tokens(wanted.run)
        each.expect_metric(wanted.run.loss.mean(), wanted.baseline.loss.mean())
        each.expect_loss(wanted.run, wanted.baseline)
    assert desk.session.model is second.session.model
    second.open()
    second.expect_tokens(ask(builtin).run)
    second.click_head(3, 3)
    second.button("Set it to zero").click()
    wanted = ask(builtin, FIRST_TEXT, tp.Ablate("L3H3.z"))
    second.expect_metric(wanted.run.loss.mean(), wanted.baseline.loss.mean())
    page.close()
    assert not wrongs


def test_a_page_that_is_closed_in_mid_run_is_stopped_and_let_go(open_desk, builtin, gate, caplog):
    """Its run ends at the next layer, no hook stays in the model, and its session holds neither run nor model."""
    soon = {"unused_session_lifetime_milliseconds": 10_000, "check_unused_sessions_milliseconds": 500}
    desk = open_desk(**soon)
    desk.await_answer()
    session, model = desk.session, desk.session.model
    assert hooks_on(model) == 0
    closed = gate(model)
    desk.click_head(1, 1)
    desk.button("Set it to zero").click()
    desk.until(closed.reached.is_set)
    assert hooks_on(model) > 0
    stop = session._stop
    desk.page.goto("about:blank")
    desk.until(stop.is_set)
    closed.open()
    desk.until(lambda: model.worker.submit(lambda: True).result(60))
    assert hooks_on(model) == 0
    desk.until(lambda: session.run is None and session.model is None)
    # The next page finds the model as it was
    desk.open()
    desk.expect_next(ask(builtin).run)
    warned = [record for record in caplog.records if record.levelno >= logging.WARNING]
    # A browser that hangs up while it is written to is no fault of the page.
    assert not [record for record in warned if "WebSocketClosedError" not in record.getMessage()]


def test_the_switch_to_dark_recolours_everything(desk, builtin):
    run = ask(builtin).run
    pixels = measure.thumbnails(run)[0]
    desk.expect_sheet(pixels)
    desk.page.get_by_role("button", name="Toggle theme").click()
    desk.expect_sheet(pixels, dark=True)
    dark = theme.ground(True)

    paper = "rgb({}, {}, {})".format(*(int(dark.paper[at : at + 2], 16) for at in (1, 3, 5)))
    expect(desk.page.locator("body")).to_have_css("background-color", paper)
    colours = """() => [...Bokeh.documents[0]._all_models.values()].filter((model) => model.type === "Figure")
        .map((figure) => figure.border_fill_color.value ?? figure.border_fill_color)"""
    desk.until(lambda: set(desk.page.evaluate(colours)) == {dark.paper})
    desk.page.get_by_role("button", name="Toggle theme").click()
    desk.expect_sheet(pixels)


def test_the_plain_layout_of_a_notebook_cell_shows_the_same(page, serve, builtin):
    from desk import Desk

    board = tp.inspect(builtin, TEXT)
    run = board.session.wait(60).run
    desk = Desk(page, serve(board), [board])
    desk.board = board
    page.goto(desk.address)
    desk.await_sheet()
    desk.expect_sheet(measure.thumbnails(run)[0])
    desk.expect_tokens(run)
    desk.expect_next(run)
    desk.expect_loss(run, run)
    desk.button("Set it to zero").click()
    site = "L{}H{}.z".format(*board.session.head)
    wanted = ask(builtin, TEXT, tp.Ablate(site))
    expect(desk.rows.locator(".site")).to_have_text([site])
    desk.expect_metric(wanted.run.loss.mean(), wanted.baseline.loss.mean())
    desk.expect_loss(wanted.run, wanted.baseline)


def test_what_another_thread_posts_is_scheduled_on_the_page_s_own_thread(desk, monkeypatch):
    """Bokeh may lose a callback that another thread adds while the page's thread holds changes back."""
    adds, add = [], Document.add_next_tick_callback

    def noted(document, callback):
        adds.append(threading.get_ident())
        return add(document, callback)

    monkeypatch.setattr(Document, "add_next_tick_callback", noted)
    home, done = [], threading.Event()
    desk.session.inbox.post(lambda: (home.append(threading.get_ident()), done.set()))
    desk.until(done.is_set)
    assert adds and set(adds) == set(home) != {threading.get_ident()}
