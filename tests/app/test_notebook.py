"""The dashboard in a notebook cell."""

import numpy as np
import panel as pn
import pytest

import random_models
import transpector as tp

TEXT = "The cat sat on the mat and the cat slept."


def test_inspect_gives_a_dashboard_that_shares_its_session(builtin):
    board = tp.inspect(builtin, TEXT)
    assert isinstance(board, tp.Dashboard)
    session = board.session.wait(60)
    assert session.model is builtin
    assert session.run.question == tp.Session(builtin, TEXT).wait(60).run.question
    session.interventions = [tp.Ablate("L0H0.z")]
    session.wait(60)
    assert [row["site"] for row in board.table.rows.rows] == ["L0H0.z"]
    assert board.sheet.sheet.marks == [{"layer": 0, "head": 0, "state": "ablated"}]


def test_every_view_is_filled_soon_after_the_answer(builtin):
    board = tp.inspect(builtin, TEXT)
    run = board.session.wait(60).run

    def filled() -> bool:
        rows = board.next_tokens.bars.rows and len(board.loss._source.data["loss"])
        return bool(rows and board.strip.strip.ids and board.sheet.sheet.shape[0])

    assert board.session.inbox.wait_for(filled, 60)
    assert board.strip.strip.ids == run.token_ids.tolist()
    assert board.sheet.sheet.shape[:2] == (builtin.spec.n_layers, builtin.spec.n_heads)
    assert len(board.next_tokens.bars.rows) == 6
    np.testing.assert_array_equal(board.loss._source.data["loss"], run.loss)


def test_inspect_takes_a_name_and_further_parameters(builtin):
    session = tp.inspect("builtin", TEXT, interventions=[tp.Ablate("L0H0.z")], bos=True).session.wait(120)
    assert session.model.name == "builtin"
    wanted = tp.Session(builtin, TEXT, interventions=[tp.Ablate("L0H0.z")], bos=True).wait(60).run
    assert session.run.question == wanted.question
    np.testing.assert_array_equal(session.run.logits, wanted.logits)


def test_inspect_takes_a_bridge_and_leaves_it_as_it_was(random_directory):
    from transformers import AutoTokenizer

    from transpector.state.loading import boot

    tokenizer = AutoTokenizer.from_pretrained(random_directory("gpt2"))
    bridge = boot(random_models.random_model("gpt2"), tokenizer, "mine")
    session = tp.inspect(bridge, TEXT).session.wait(60)
    assert session.model.bridge is bridge
    assert tp.inspect(bridge, TEXT).session.model is session.model  # one worker a bridge
    ids = session.run.token_ids
    session.interventions = [tp.Ablate("L0H0.z")]
    changed = session.wait(60).run
    import torch

    with torch.no_grad():
        plain = bridge(torch.from_numpy(ids)[None])[0]
    np.testing.assert_array_equal(plain, session.baseline.logits)
    assert not torch.equal(changed.logits, plain)


def test_a_model_that_is_not_there_is_said_on_the_page_and_raised_where_it_is_waited_for():
    board = tp.inspect("no-such-model", TEXT)
    with pytest.raises(tp.ModelError, match="No model is called no-such-model"):
        board.session.wait(60)
    assert "No model is called no-such-model" in board.error.text


def test_a_cell_carries_its_scripts_with_it():
    """What a notebook is given by `inspect` before the first cell is shown fetches nothing from elsewhere."""
    tp.inspect(text=TEXT).session.cancel()
    assert pn.config.inline
