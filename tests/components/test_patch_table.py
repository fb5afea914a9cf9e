"""The patch table's rows, and what it does with what is clicked, without a browser."""

import pytest

import transpector as tp
from transpector.components.patch_table import PatchTable
from transpector.state.steering import reach

STEER = tp.Steer("L1D3.resid_pre", [2.0], 1.5)


@pytest.fixture
def session(random_lm):
    session = tp.Session(model=random_lm("llama"), text="the city of Paris")
    session.interventions = [tp.Scale("L1H2.z", 2), tp.Set("L1N3.mlp_post", -3.5), STEER, tp.Ablate("L0H1.z")]
    return session.wait()


def test_a_change_is_told_by_its_verb_and_has_its_state(session):
    rows = PatchTable(session).rows.rows
    assert [(row["verb"], row["site"], row["what"], row["state"]) for row in rows] == [
        ("scale", "L1H2.z", "× 2", "steered"),
        ("set", "L1N3.mlp_post", "to −3.5", "steered"),
        ("steer", "L1D3.resid_pre", "+1.5 × vector", "steered"),
        ("ablate", "L0H1.z", "zero", "ablated"),
    ]


def test_what_has_a_strength_has_a_slider(session):
    table = PatchTable(session)
    table.show(table.measure(session.run, session.baseline))
    told = [[row.get(name) for name in ("strength", "neutral", "reach")] for row in table.rows.rows]
    at_reach = float(f"{reach(session.baseline, STEER):.2g}")
    assert told == [[2, 1, 1], [None] * 3, [1.5, 0, at_reach], [None] * 3]


def test_a_slider_sets_the_strength_of_its_row_and_one_undo_takes_it_back(session):
    table, before = PatchTable(session), list(session.interventions)
    for value in (1.5, 1, -0.5):
        table.rows.clicked({"do": "strength", "at": 0, "value": value})
    assert session.interventions == [tp.Scale("L1H2.z", -0.5), *before[1:]]
    session.undo()
    assert session.interventions == before
    table.rows.clicked({"do": "strength", "at": 1, "value": 9})  # no slider there
    assert session.interventions == before
