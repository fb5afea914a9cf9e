"""What is told of contributions beside the API's own numbers: the same logit in both runs, and sums of what is left out."""

import numpy as np
import pytest

import transpector as tp
from transpector.components.parts.contribution_numbers import (
    DIFFERENCE,
    ContributionNumbers,
    by_layer,
    of_neurons,
    of_no_neuron,
    of_parts,
    ranked,
    reach,
)

TEXT = "The old man went to the river and the old man"


@pytest.fixture(scope="module")
def numbers(builtin):
    session = tp.Session(builtin, TEXT, interventions=[tp.Ablate("L1.attn_out")]).wait(60)
    return session, ContributionNumbers.of(session.run, session.baseline, session.metric, -1, 2)


def test_both_runs_are_read_at_the_token_that_is_likeliest_now(numbers, builtin):
    session, found = numbers
    now, before = (run.next_tokens(-1, 1)[0][0] for run in (session.run, session.baseline))
    assert now != before
    assert found.now.target == found.before.target and repr(now) in found.now.target
    logits = session.baseline.logits[-1].double()
    expected = float(logits[builtin.text.token_id(now)] - logits.mean())
    assert found.before.logit == pytest.approx(expected, abs=1e-4)
    assert found.before.total == pytest.approx(expected, abs=1e-3)


def test_a_layer_s_cells_and_what_is_outside_every_layer_are_the_whole(numbers):
    _, found = numbers
    outside = sum(found.now[part] for part in ("embed", "bias"))
    assert by_layer(found.now).sum() + outside == pytest.approx(found.now.total, abs=1e-4)
    cells, beside, top = found.cells(DIFFERENCE)
    np.testing.assert_array_equal(cells, by_layer(found.now) - by_layer(found.before))
    assert beside is None and top == np.abs(cells[:, :8]).max()
    assert found.top == max(np.abs(found.now.heads).max(), np.abs(found.before.heads).max())


@pytest.mark.parametrize("most", [1, 5, 1000])
def test_a_list_with_its_rest_adds_up(numbers, most):
    _, found = numbers
    for of, beside in ((of_parts, 0.0), (of_neurons, of_no_neuron(found.now)["beside them"])):
        now, before = found.shown("Now", of)
        names, rows = ranked(now, before, most, "others")
        assert names == [row["site"] for row in rows if "rest" not in row]
        assert len(names) == min(most, len(now))
        whole = found.now.total if of is of_parts else found.now["L2.mlp_out"]
        assert sum(row["change"] for row in rows) + beside == pytest.approx(whole, abs=1e-4)
        sizes = [max(abs(row["change"]), abs(row["before"])) for row in rows if "rest" not in row]
        assert sizes == sorted(sizes, reverse=True) and reach(rows) == sizes[0]
