"""What is said of the one neuron or dimension that is selected, and what can be done to it, without a browser."""

import numpy as np
import pytest

import transpector as tp
from transpector.components.base import figures
from transpector.components.graph.part import PartInspector

FOUR = ["Zero", "Mean", "Freeze", "Patch"]


@pytest.fixture
def inspect(random_lm):
    """A function: selects a part -> its inspector, with the numbers shown."""
    session = tp.Session(model=random_lm("llama"), text="the city of Paris").wait()

    def inspector(id):
        session.selection = [id]
        pane = PartInspector(session)
        pane.show(pane.measure(session.run, session.baseline, session.selection, session.position))
        return pane

    return inspector


@pytest.mark.parametrize(
    ("id", "title", "what"),
    [
        ("L1D7.resid_pre", "L1D7.resid_pre", "blocks.1.hook_resid_pre, dimension 7 of 48"),
        ("L1D7.mlp_out@2", "L1D7.mlp_out", "blocks.1.hook_mlp_out, dimension 7 of 48"),
        ("D0.embed", "D0.embed", "hook_embed, dimension 0 of 48"),
        ("L1N7.mlp_post", "L1N7", "blocks.1.mlp.hook_post, neuron 7 of 80"),
        ("L1N7.mlp_post@-2", "L1N7", "blocks.1.mlp.hook_post, neuron 7 of 80"),
    ],
)
def test_one_number_at_each_position_is_told(inspect, id, title, what):
    pane, site = inspect(id), tp.Site.parse(id)
    run = pane.session.run
    values = run.activation(id.split("@")[0])
    assert (pane._title.text, pane._what.text) == (title, what)
    np.testing.assert_array_equal(pane._activation.source.data["activation"], values)
    at = -1 if site.position is None else site.position
    assert pane._where.text.endswith(
        f"(position {at % run.n_pos}): {figures(float(values[at]), signed=True)}"
    )
    assert pane._tokens.visible


@pytest.mark.parametrize("id", ["L1D7.resid_pre", "L1N7.mlp_post@1"])
def test_it_is_scaled_and_set_to_far_more_than_it_is(inspect, id):
    pane = inspect(id)
    session = pane.session
    assert pane._more.visible
    for label in (*FOUR[:2], "Scale", "Set"):
        pane.actions.do(label)
    far = float(f"{2 * np.abs(session.run.activation(id.split('@')[0])).max():.2g}")
    assert session.interventions == [
        tp.Ablate(id),
        tp.Ablate(id, "mean"),
        tp.Scale(id, 2),
        tp.Set(id, far),
    ]
    assert f"Write {far:g} into" in pane.actions.buttons[-1].description


def test_what_was_changed_is_set_to_no_more_than_what_was_not(inspect):
    session = inspect("L1N7.mlp_post").session
    far = float(f"{2 * np.abs(session.baseline.activation('L1N7.mlp_post')).max():.2g}")
    session.interventions = [tp.Scale("L1N7.mlp_post", 9)]
    session.wait()
    inspect("L1N7.mlp_post").actions.do("Set")
    assert session.interventions[1:] == [tp.Set("L1N7.mlp_post", far)]


def test_no_number_is_set_by_what_another_one_holds(inspect):
    pane = inspect("L1N7.mlp_post")
    pane.session.selection = ["L1N8.mlp_post"]
    pane.actions.do("Set")  # before it is shown
    assert pane.session.interventions == []


@pytest.mark.parametrize("id", ["L1.resid_pre", "L1H2.z"])
def test_what_is_more_than_one_number_has_four_buttons(inspect, id):
    pane = inspect(id)
    assert not pane._more.visible and not pane._activation.figure.visible
    assert [button.disabled for button in pane.actions.buttons[:4]] == [False, False, False, True]


@pytest.mark.parametrize("id", ["L1D48.resid_pre", "L1N80.mlp_post", "L9D1.mlp_out"])
def test_what_this_model_lacks_can_t_be_changed(inspect, id):
    pane = inspect(id)
    assert not pane._more.visible and not pane._activation.figure.visible
    assert all(button.disabled for button in pane.actions.buttons)


def test_a_position_that_this_text_lacks_is_said(inspect):
    pane = inspect("L1N7.mlp_post@99")
    assert not pane._more.visible and "this text has positions 0 to" in pane._what.text
