"""The blocks, called one by one, are the model."""

import pytest
import torch

from random_models import KINDS
from transpector.state.past import earlier

IDS = torch.tensor([[3, 4, 5, 6, 7, 8, 9, 3]])


@pytest.fixture(params=KINDS)
def lm(request, random_lm):
    return random_lm(request.param)


@pytest.fixture
def on_worker(lm):
    return lm.worker.call


def walked(stack, entry):
    hidden = entry.hidden
    for call in entry.calls:
        hidden = call(hidden)
    return hidden


def test_every_known_architecture_can_be_walked(lm):
    assert lm.wiring.by_layer and lm.wiring.by_position


def test_walking_the_blocks_is_a_pass_to_the_bit(lm, on_worker):
    plain = on_worker(lambda: lm.bridge(IDS))
    assert torch.equal(on_worker(lambda: lm.stack.close(walked(lm.stack, lm.stack.open(IDS)))), plain)


def test_only_the_logits_that_are_asked_for_are_made(lm, on_worker):
    hidden = on_worker(lambda: walked(lm.stack, lm.stack.open(IDS)))
    some = on_worker(lambda: lm.stack.close(hidden[:, [2, 7]]))
    assert some.shape[:2] == (1, 2)
    assert (some - on_worker(lambda: lm.bridge(IDS))[:, [2, 7]]).abs().max() <= 1e-5


def test_more_rows_may_come_in_on_the_way(lm, on_worker):
    def grown():
        one, two = lm.stack.open(IDS), lm.stack.open(IDS.expand(2, -1))
        hidden = one.calls[0](one.hidden)
        return lm.stack.close(two.calls[2](two.calls[1](torch.cat([hidden, hidden]))))

    plain = on_worker(lambda: lm.bridge(IDS))
    assert (on_worker(grown) - plain).abs().max() <= 1e-5


@pytest.mark.parametrize("n_past", [1, 4, 7])
def test_a_text_may_go_on_from_the_keys_and_values_of_another_pass(lm, on_worker, n_past):
    def continued():
        past = lm.stack.past(IDS)
        entry = lm.stack.open(IDS[:, n_past:].expand(3, -1), earlier(past, n_past))
        first = walked(lm.stack, entry)
        assert torch.equal(walked(lm.stack, entry), first)  # the past does not grow
        return lm.stack.close(first)

    plain = on_worker(lambda: lm.bridge(IDS))
    assert (on_worker(continued) - plain[:, n_past:]).abs().max() <= 1e-5


def test_nothing_is_left_on_the_blocks_whatever_happens(lm, on_worker):
    def breaks():
        def broken(whole, hook):
            raise ZeroDivisionError

        with lm.stack.hooked([("hook_embed", broken)]):
            lm.stack.open(IDS)

    before = [dict(vars(block)) for block in lm.stack.blocks]
    with pytest.raises(ZeroDivisionError):
        on_worker(breaks)
    assert [dict(vars(block)) for block in lm.stack.blocks] == before
    assert not any(point.has_hooks(including_permanent=False) for point in lm.bridge.hook_dict.values())


def test_a_forward_that_somebody_set_on_a_block_stays(random_lm):
    lm = random_lm("gpt2")
    block, plain = lm.stack.blocks[1], lm.worker.call(lambda: lm.bridge(IDS))
    forward, called = block.forward, []
    own = lambda *args, **kwargs: called.append(1) or forward(*args, **kwargs)  # noqa: E731
    object.__setattr__(block, "forward", own)
    try:
        given = lm.worker.call(lambda: lm.stack.close(walked(lm.stack, lm.stack.open(IDS))))
        assert torch.equal(given, plain) and called == [1] and vars(block)["forward"] is own
    finally:
        object.__delattr__(block, "forward")


def test_hooks_of_others_stay_when_ours_are_removed(random_lm):
    lm = random_lm("gpt2")
    seen = []
    point = lm.bridge.hook_dict["blocks.1.attn.hook_z"]
    point.add_hook(lambda whole, hook: seen.append(whole))
    try:
        with lm.stack.hooked([("blocks.1.attn.hook_z", lambda whole, hook: None)]):
            pass
        lm.worker.call(lambda: lm.bridge(IDS))
        assert len(seen) == 1
    finally:
        point.remove_hooks()
