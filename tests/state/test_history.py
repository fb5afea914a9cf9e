"""The history goes back and forth through lists of interventions."""

from dataclasses import replace

from transpector.state.history import History
from transpector.state.interventions import Ablate, Scale
from transpector.state.steering import Steer

A, B, C = Ablate("L0H0.z"), Ablate("L0H1.z"), Ablate("L0H2.z")


def test_a_step_back_and_forth_gives_the_lists_in_order():
    history = History()
    assert not history.can_undo and not history.can_redo
    history.push([A])
    history.push([A, B])
    assert history.step(-1) == (A,)
    assert history.can_undo and history.can_redo
    assert history.step(-1) == ()
    assert not history.can_undo
    assert history.step(1) == (A,)
    assert history.step(1) == history.now == (A, B)


def test_a_step_past_either_end_stays_there():
    history = History()
    history.push([A])
    assert history.step(1) == (A,)
    assert history.step(-1) == () == history.step(-1)
    assert history.can_redo


def test_a_new_list_cuts_off_what_was_undone():
    history = History()
    history.push([A])
    history.push([B])
    history.step(-1)
    history.push([C])
    assert not history.can_redo
    assert history.step(-1) == (A,)
    assert history.step(1) == (C,)


def test_the_present_list_is_not_pushed_twice():
    history = History()
    history.push([A])
    history.push((A,))
    assert history.step(-1) == () and not history.can_undo


def test_a_change_of_name_or_of_the_switch_is_a_step():
    history = History()
    history.push([A])
    history.push([replace(A, name="the sink")])
    history.push([replace(A, name="the sink", enabled=False)])
    assert history.step(-1)[0].enabled
    assert history.step(-1)[0].name == ""
    assert history.step(1)[0].name == "the sink"


def test_rewriting_changes_every_list():
    history = History()
    history.push([A])
    history.push([A, B])
    history.rewrite(lambda intervention: replace(intervention, enabled=False))
    assert [i.enabled for i in history.now] == [False, False]
    assert [i.enabled for i in history.step(-1)] == [False]
    assert history.can_redo


def test_a_factor_being_set_is_one_step():
    history = History()
    for factor in (2, 1.5, 1, 0.5):
        history.push([A, Scale("L0H1.z", factor)])
    history.push([A, Scale("L0H2.z", 0.5)])
    assert history.step(-1) == (A, Scale("L0H1.z", 0.5))
    assert history.step(-1) == (A, Scale("L0H1.z", 2))
    assert history.step(-1) == ()


def test_one_strength_being_set_is_one_step_and_two_are_two():
    history = History()
    one, other = (Steer(f"L{layer}.resid_pre", [1.0, 2.0], 1) for layer in (0, 1))
    history.push([one, other])
    for strength in (2, 3, 4):
        history.push([replace(one, strength=strength), other])
    for strength in (5, 6):
        history.push([replace(one, strength=4), replace(other, strength=strength)])
    assert history.step(-1) == (replace(one, strength=4), other)
    assert history.step(-1) == (one, other)
    assert history.step(-1) == ()
    assert history.step(1) == (one, other)
