"""Interventions are values: they compare, travel as JSON, and refuse what can't be."""

import json
from dataclasses import replace

import pytest
import torch

from random_models import random_model
from reference import forward
from transpector.state.errors import InterventionError, SiteError, TextError
from transpector.state.interventions import Ablate, Freeze, Patch, Question, Scale, Set, active
from transpector.state.notation import from_json, to_json
from transpector.state.sites import Site

TEXT = "The Eiffel Tower is in the city of"

EVERY_SORT = [
    Ablate("L1H2.z"),
    Ablate("L0.pattern@2:5", "mean", name="sink <b>", enabled=False),
    Freeze("L1.resid_pre@-1"),
    Freeze("L0H1.k", Question((3, 4, 5), (Ablate("L0H0.z"), Freeze("embed", Question((1, 2)))), True)),
    Patch("L2.resid_pre@-1", "L0.mlp_out@3"),
    Patch("L1N3.mlp_post", "L1N3.mlp_post", text='a "text" ‹\n👍'),
    Patch("L1H0.z", source="L2H0.z", text=""),
    Patch("L2D3.resid_pre", "L0D3.mlp_out"),
    Scale("L1H2.z@-1", 0.5),
    Scale("L5D37.resid_pre", -1, name="flip", enabled=False),
    Set("D3.embed@2:5", 3.14159),
    Set("L1N3.mlp_post", -1e-5),
]


@pytest.mark.parametrize("intervention", EVERY_SORT, ids=lambda i: f"{i.verb} {i.site}")
def test_an_intervention_comes_back_equal_from_json(intervention):
    (back,) = from_json(to_json([intervention]))
    assert back == intervention
    assert (back.name, back.enabled, type(back)) == (
        intervention.name,
        intervention.enabled,
        type(intervention),
    )
    assert hash(back) == hash(intervention)


def test_a_list_keeps_its_order_in_json():
    assert from_json(to_json(EVERY_SORT)) == tuple(EVERY_SORT)
    assert from_json("[]") == ()


NO_JSON = {
    "no json": "{",
    "a number": "3",
    "a string": '"ablate"',
    "null": "null",
    "an object": '{"do": "ablate", "site": "L0.z"}',
    "no verb": '[{"site": "L0.z"}]',
    "an unknown verb": '[{"do": "explode", "site": "L0.z"}]',
    "an unknown field": '[{"do": "ablate", "site": "L0.z", "force": 3}]',
    "no site": '[{"do": "ablate"}]',
    "a number as a site": '[{"do": "ablate", "site": 5}]',
    "an unknown site": '[{"do": "ablate", "site": "L0.brain"}]',
    "an unknown way": '[{"do": "ablate", "site": "L0.z", "how": "gently"}]',
    "a list in a list": "[[]]",
    "a broken question": '[{"do": "freeze", "site": "L0.z", "held": {"token_ids": ["x"], "interventions": [], "bos": false}}]',
    "half a question": '[{"do": "freeze", "site": "L0.z", "held": {"token_ids": [1]}}]',
    "no factor": '[{"do": "scale", "site": "L0.z"}]',
    "a factor that is no number": '[{"do": "scale", "site": "L0.z", "factor": "much"}]',
    "a value beyond all": '[{"do": "set", "site": "L0.z", "value": Infinity}]',
    "a downstream source": '[{"do": "patch", "target": "L0.z", "source": "L1.z"}]',
}


@pytest.mark.parametrize("text", NO_JSON.values(), ids=NO_JSON)
def test_what_is_no_intervention_in_json_is_refused(text):
    with pytest.raises((InterventionError, SiteError)):
        from_json(text)


def test_names_do_not_count_but_the_switch_does():
    assert Ablate("L0.z", name="a") == Ablate("L0.z", name="b")
    assert Ablate("L0.z") != Ablate("L0.z", enabled=False)


def test_a_question_holds_only_what_is_switched_on():
    on, off = Ablate("L0.z"), Ablate("L1.z", enabled=False)
    assert Question([1, 2], (on, off)).interventions == (on,) == active([on, off])
    assert Question([1, 2], (off,)) == Question((1, 2))
    assert json.dumps(Question(torch.tensor([1, 2])).token_ids) == "[1, 2]"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Ablate("L0.z", "gently"), InterventionError, "use 'zero' or 'mean'"),
        (lambda: Ablate(None), SiteError, "is no site"),
        (lambda: Ablate("L0"), SiteError, "is no site"),
        (lambda: Patch("L1.z", "L1.z"), InterventionError, "from itself in the same run changes nothing"),
        (lambda: Patch("L1.z", "L2.z"), InterventionError, "not upstream"),
        (lambda: Patch("L1.z", "L1.attn_out"), InterventionError, "not upstream"),
        (lambda: Patch("L1.q", "L1.k"), InterventionError, "not upstream"),
        (lambda: Patch("embed", "L0.resid_pre"), InterventionError, "not upstream"),
        (
            lambda: Scale("L1.z", float("nan")),
            InterventionError,
            "Scale L1.z: a factor of nan is no finite number",
        ),
        (lambda: Scale("L1.z", None), InterventionError, "a factor of None is no finite number. Give one"),
        (lambda: Set("L1.z", float("-inf")), InterventionError, "Set L1.z: a value of -inf is no finite"),
        (lambda: Set("L1.z", "three"), InterventionError, "a value of three is no finite"),
    ],
)
def test_what_can_never_be_is_refused_when_it_is_made(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_patch_from_another_text_may_read_downstream():
    assert Patch("L0.resid_pre", "L2.resid_pre", "other").source == Site("resid_pre", 2)


@pytest.fixture(scope="module")
def lm(random_lm):
    return random_lm("llama")


def ask(lm, *interventions, text=TEXT):
    return lm.run(Question(lm.tokenize(text), interventions))


@pytest.mark.parametrize(
    ("interventions", "error", "message"),
    [
        ([Ablate("L7.z")], SiteError, "layers 0 to 2, not 7"),
        ([Ablate("L0H9.z")], SiteError, "heads 0 to 3, not 9"),
        ([Scale("L0D48.resid_pre", 2)], SiteError, "this model has dimensions 0 to 47, not 48"),
        ([Set("L0N80.mlp_post", 2)], SiteError, "neurons 0 to 79, not 80"),
        ([Ablate("L0.z@99")], SiteError, "L0.z@99: this text has positions 0 to"),
        ([Ablate("L0.z@99", enabled=True), Ablate("L0.z")], SiteError, "positions"),
        ([Patch("L2.z", "L1.z@99")], SiteError, "L1.z@99: this text has positions 0 to"),
        ([Patch("L2.resid_pre@-1", "L1.resid_pre@-99")], SiteError, "L1.resid_pre@-99"),
        ([Patch("L2.z", "L1.z@9", "Paris London")], SiteError, "L1.z@9: this text has positions 0 to"),
        ([Patch("L2.z", "L9.z", "Paris")], SiteError, "layers 0 to 2, not 9"),
        (
            [Patch("L2.z", "L1.resid_pre")],
            InterventionError,
            r"the target has shape \(\d+, 4, 12\), the source \(\d+, 48\)",
        ),
        (
            [Patch("L2D3.resid_pre", "L1.resid_pre")],
            InterventionError,
            r"the target has shape \((\d+),\), the source \(\1, 48\)",
        ),
        (
            [Patch("L2.z", "L2.z", "Paris London")],
            InterventionError,
            "Use texts of the same number of tokens, or name positions",
        ),
        ([Patch("L2.z", "L2.z", "")], TextError, "empty"),
        ([Patch("L2.z", "L2.z", "a" * 200)], TextError, "reads at most 128"),
        (
            [Freeze("L1.z@0:3", Question((5, 6, 7))), Freeze("L1.z@1:5", Question((5, 6, 7)))],
            InterventionError,
            "it holds shape",
        ),
        ([Freeze("L1.z@5", Question((5, 6, 7)))], SiteError, "positions 0 to 2, not 5"),
    ],
    ids=str,
)
def test_what_does_not_fit_this_text_is_refused_with_the_reason(lm, interventions, error, message):
    with pytest.raises(error, match=message):
        ask(lm, *interventions)


def test_a_site_that_this_architecture_lacks_is_refused_with_its_reason(random_lm):
    neox = random_lm("gpt_neox")
    ids = neox.tokenize(TEXT)
    for intervention in (Ablate("L1.resid_mid"), Patch("L2.resid_pre", "L1.resid_mid", "Paris")):
        with pytest.raises(InterventionError, match="side by side"):
            neox.run(Question(ids, (intervention,)))


def test_what_is_switched_off_changes_nothing(lm):
    off = (Ablate("L0.resid_pre", enabled=False), Ablate("L9.z", enabled=False))
    assert torch.equal(ask(lm, *off).logits, ask(lm).logits)


def test_of_two_writes_to_one_site_the_later_wins(lm):
    hf_model, ids = random_model("llama"), lm.tokenize(TEXT)
    mean = forward(hf_model, ids).activations["z", 1].mean(0, keepdim=True)

    def write(how):
        def change(z):
            z[:, 2] = 0.0 if how == "zero" else mean[:, 2]
            return z

        return forward(hf_model, ids, {("z", 1): change}).logits

    zero, mean_ = Ablate("L1H2.z"), Ablate("L1H2.z", "mean")
    assert (ask(lm, zero, mean_).logits - write("mean")).abs().max() <= 1e-4
    assert (ask(lm, mean_, zero).logits - write("zero")).abs().max() <= 1e-4
    assert (write("zero") - write("mean")).abs().max() > 1e-2


def test_a_same_run_patch_reads_what_earlier_interventions_made_of_its_source(lm):
    run = ask(lm, Ablate("L0H1.z"), Patch("L2H0.z", "L0H1.z"))
    assert not run.activation("L2H0.z").any()
    run = ask(lm, Ablate("L1H1.z"), Patch("L1H0.z", "L1H1.z"))
    assert not run.activation("L1H0.z").any()
    # In the order of the list, within one activation too.
    run = ask(lm, Patch("L1H0.z", "L1H1.z"), Ablate("L1H1.z"))
    assert run.activation("L1H0.z").any()


def test_a_patch_from_another_text_reads_that_text_without_interventions(lm):
    other = "my music is in the house of it"
    assert len(lm.tokenize(other)) == len(lm.tokenize(TEXT))
    run = ask(lm, Ablate("L0.z"), Patch("L1.z", "L1.z", other))
    assert (run.activation("L1.z") == ask(lm, text=other).activation("L1.z")).all()


def test_mean_ablation_takes_the_mean_of_the_baseline_not_of_this_run(lm):
    run = ask(lm, Ablate("L0.z"), Ablate("L1H0.z", "mean"))
    mean = ask(lm).activation("L1H0.z").mean(0)
    assert abs(run.activation("L1H0.z@3") - mean).max() <= 1e-6


def test_a_freeze_that_holds_nothing_yet_holds_the_baseline(lm):
    run = ask(lm, Ablate("L0.z"), Freeze("L1.z"))
    assert (run.activation("L1.z") == ask(lm).activation("L1.z")).all()


def test_a_freeze_holds_an_ablated_run_s_value(lm):
    ablated = Question(lm.tokenize(TEXT), (Ablate("L0.z"),))
    held = lm.run(ablated).activation("L1.z")
    run = ask(lm, Freeze("L1.z", ablated))
    assert (run.activation("L1.z") == held).all()
    assert abs(held - ask(lm).activation("L1.z")).max() > 1e-2


def test_a_freeze_on_a_shorter_text_holds_what_overlaps_and_says_so(lm):
    long, short = lm.tokenize(TEXT), lm.tokenize("Paris London Rome")
    run = lm.run(Question(short, (Freeze("L1.z", Question(long)),)))
    held = lm.run(Question(long)).activation("L1.z")
    assert (run.activation("L1.z") == held[: len(short)]).all()
    assert run.notes == (
        f"L1.z is held at positions 0 to {len(short) - 1}: the frozen text has {len(long)} tokens, this one {len(short)}.",
    )


def test_a_freeze_of_one_position_follows_the_end_of_the_text_without_a_note(lm):
    long, short = lm.tokenize(TEXT), lm.tokenize("Paris London Rome")
    run = lm.run(Question(short, (Freeze("L1.z@-1", Question(long)),)))
    assert (run.activation("L1.z@-1") == lm.run(Question(long)).activation("L1.z@-1")).all()
    assert run.notes == ()


EVERYWHERE = slice(None)
SITES = {
    "L1H2.z": (EVERYWHERE, 2),
    "L1H2.z@-1": (-1, 2),
    "L2N7.mlp_post": (EVERYWHERE, 7),
    "L2N7.mlp_post@3": (3, 7),
    "L1D5.resid_pre": (EVERYWHERE, 5),
    "L1D5.resid_pre@2:5": (slice(2, 5), 5),
    "D5.embed@-2": (-2, 5),
    "L1D5.attn_out": (EVERYWHERE, 5),
    "L1D5.resid_mid@-1": (-1, 5),
    "L2D47.mlp_out": (EVERYWHERE, 47),
    "L1H1.k@1:": (slice(1, None), 1),
    "L1H2.scores": (2,),
    "L1H2.scores@4": (2, 4),
    "L1H2.pattern@4": (2, 4),
}
"""What a site is of the whole activation, by hand."""


def scaled(index):
    def write(value):
        value[index] = -1.5 * value[index]
        return value

    return write


def filled(index):
    def write(value):
        value[index] = 2.5
        return value

    return write


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("address", SITES)
@pytest.mark.parametrize(
    ("make", "by_hand"),
    [(lambda site: Scale(site, -1.5), scaled), (lambda site: Set(site, 2.5), filled)],
    ids=["scale", "set"],
)
def test_scaling_and_setting_equal_plain_pytorch(random_lm, reference_model, kind, address, make, by_hand):
    lm, hf_model = random_lm(kind), reference_model(kind)
    intervention, ids = make(address), lm.tokenize(TEXT)
    run = lm.run(Question(ids, (intervention,)))
    write = {intervention.site.tensor: by_hand(SITES[address])}
    expected = forward(hf_model, ids, write).logits
    assert (run.logits - expected).abs().max() <= 1e-4 * max(1, expected.abs().max())
    assert (expected - forward(hf_model, ids).logits).abs().max() > 1e-3
    if intervention.site.kind == "scores":
        assert not run.activation("L1H2.pattern")[torch.ones(len(ids), len(ids)).triu(1).bool()].any()


def test_scaling_comes_after_what_stands_before_it_in_the_list(lm):
    run = ask(lm, Set("L1H2.z", 2), Scale("L1H2.z@3", 0.5), Scale("L1H2.z@3", 3))
    assert (run.activation("L1H2.z@3") == 3).all() and (run.activation("L1H2.z@2") == 2).all()
    assert torch.equal(ask(lm, Scale("L1H2.z", 0)).logits, ask(lm, Ablate("L1H2.z")).logits)
    assert torch.equal(ask(lm, Scale("L1.resid_mid", 1)).logits, ask(lm).logits)


@pytest.mark.parametrize(
    "intervention", [Ablate("L1D5.resid_pre"), Ablate("L1D5.resid_pre@3", "mean"), Freeze("L1D5.resid_mid")]
)
def test_one_dimension_is_changed_and_the_others_are_not(lm, intervention):
    site = intervention.site
    before, now = (ask(lm, Ablate("L0.z"), *more).activation(str(site)) for more in ((), (intervention,)))
    whole = Site(*site.tensor)
    plain = ask(lm).activation(str(site))
    wanted = {"freeze": plain, "ablate": 0 * plain}[intervention.verb]
    if intervention == Ablate("L1D5.resid_pre@3", "mean"):
        wanted = ask(lm).activation("L1D5.resid_pre").mean()
    assert abs(now - wanted).max() <= 1e-5 and abs(now - before).max() > 1e-2
    others = torch.arange(48) != 5
    before, now = (ask(lm, Ablate("L0.z"), *more).activation(whole) for more in ((), (intervention,)))
    assert abs(now - before)[:, others].max() <= 1e-5


def test_one_dimension_is_patched_from_another_and_from_another_text(lm, reference_model):
    hf_model, ids = reference_model("llama"), lm.tokenize(TEXT)
    other = "my music is in the house of it"
    from_other = forward(hf_model, lm.tokenize(other)).activations["resid_pre", 1][:, 5]
    held = forward(hf_model, ids).activations["mlp_out", 0][:, 7]
    for patch, value in (
        (Patch("L1D5.resid_pre", "L1D5.resid_pre", other), from_other),
        (Patch("L1D5.resid_pre", "L0D7.mlp_out"), held),
    ):

        def write(whole, value=value):
            whole[:, 5] = value
            return whole

        expected = forward(hf_model, ids, {("resid_pre", 1): write}).logits
        assert (ask(lm, patch).logits - expected).abs().max() <= 1e-4


def test_a_factor_is_a_strength_and_most_interventions_have_none():
    scale = Scale("L1H2.z", 2, name="more")
    assert (scale.strength, scale.neutral) == (2, 1)
    assert (scale.at_strength(-0.5), scale.at_strength(-0.5).name) == (Scale("L1H2.z", -0.5), "more")
    assert {i.strength for i in EVERY_SORT if i.verb != "scale"} == {None}


def test_every_intervention_says_what_it_does():
    assert [replace(i).what for i in EVERY_SORT[:5]] == ["zero", "mean", "hold", "hold", "from L0.mlp_out@3"]
    assert [i.what for i in EVERY_SORT[-4:]] == ["× 0.5", "× −1", "to 3.14", "to −1e−05"]
    assert Set("L0D3.resid_pre", 1234.5).what == "to 1230"
    assert Patch("L0.z", "L0.z", "Paris").what == "from L0.z on “Paris”"
