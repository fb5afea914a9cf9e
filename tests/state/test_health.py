"""The self-test finds out by doing what a model lets be read and written."""

import numpy as np
import pytest
import torch

import transpector as tp
from transpector.state.health import Ability, Health, _SelfTest, self_test
from transpector.state.sites import KINDS

ALL = {kind: Ability(True, True) for kind in KINDS}


def test_the_level_is_healthy_limited_or_broken():
    no = Ability(False, False, "it is not there.")
    assert Health(ALL).level == "healthy" and Health(ALL).reasons == ()
    some = Health({**ALL, "scores": no, "q": Ability(True, False, "the model discards what is written.")})
    assert some.level == "limited"
    assert some.reasons == ("q: the model discards what is written.", "scores: it is not there.")
    assert (
        not some.can_read("scores") and some.can_read("q") and not some.can_write("q") and some.can_write("z")
    )
    assert Health(dict.fromkeys(KINDS, no)).level == "broken"


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_a_model_that_offers_everything_is_healthy(random_lm, kind):
    assert random_lm(kind).health.level == "healthy"


@pytest.mark.parametrize(
    ("kind", "missing"), [("gpt_neox", "resid_mid"), ("opt", "scores"), ("gptj", "resid_mid")]
)
def test_what_is_missing_has_a_reason_in_words(random_lm, kind, missing):
    health = random_lm(kind).health
    assert health.level == "limited"
    reason = next(reason for reason in health.reasons if reason.startswith(f"{missing}: "))
    assert reason.endswith(".") and "Error" not in reason


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "gemma2", "opt", "gptj", "bloom"])
def test_the_last_residual_and_the_final_scale_can_be_kept(random_lm, kind):
    assert random_lm(kind).health.extras == {("resid_post", None), ("final_scale", None)}


def test_parts_that_do_not_add_up_to_the_residual_stream_are_found_out(random_lm, monkeypatch):
    """As where a hook sits before a norm or a multiplier that belongs to the part."""
    lm, plain = random_lm("llama"), _SelfTest._read

    def before_a_multiplier(self, kinds):
        return {at: value * (1.1 if at[0] == "mlp_out" else 1) for at, value in plain(self, kinds).items()}

    monkeypatch.setattr(_SelfTest, "_read", before_a_multiplier)
    _, _, health = lm.worker.call(lambda: self_test(lm.stack, lm.spec))
    assert not health.can_read("mlp_out") and health.can_read("attn_out")
    assert "is not the next layer's residual" in health.abilities["mlp_out"].reason


def test_a_discarded_write_is_found_out(random_lm, monkeypatch):
    """The writes of one kind are thrown away, as some architectures do."""
    lm = random_lm("llama")
    plain = _SelfTest.run

    def deaf(self, keep, *writes):
        return plain(
            self, keep, *(write for write in writes if write.site.kind not in ("q", "mlp_post", "embed"))
        )

    monkeypatch.setattr(_SelfTest, "run", deaf)
    _, _, health = lm.worker.call(lambda: self_test(lm.stack, lm.spec))
    for kind in ("q", "mlp_post", "embed"):
        assert health.can_read(kind) and not health.can_write(kind)
        assert "discards what is written" in health.abilities[kind].reason
    assert health.can_write("z")


def test_the_width_of_the_mlp_is_measured_not_believed(random_lm):
    from dataclasses import replace

    lm = random_lm("llama")
    spec, _, health = lm.worker.call(lambda: self_test(lm.stack, replace(lm.spec, d_mlp=7)))
    assert spec.d_mlp == 80 and health.level == "healthy"


def test_wrong_dimensions_are_found_out(random_lm):
    from dataclasses import replace

    lm = random_lm("llama")
    _, _, health = lm.worker.call(lambda: self_test(lm.stack, replace(lm.spec, n_kv_heads=4)))
    assert not health.can_read("k") and not health.can_read("v")
    assert (
        "its shape here is (8, 2, 12), not (8, 4, 12) [pos × kv_head × d_head]"
        in health.abilities["k"].reason
    )


def test_bfloat16_is_as_healthy_and_changes_under_interventions(random_directory):
    lm = tp.load_model(str(random_directory("llama")), dtype="bfloat16")
    assert lm.spec.dtype == "bfloat16" and lm.health.level == "healthy"
    session = tp.Session(model=lm, text="The Eiffel Tower is in the city of").wait(60)
    assert session.run.logits.dtype == torch.bfloat16
    assert session.run.loss.dtype == session.run.activation("L1H1.z").dtype == np.float32
    session.interventions = [
        tp.Ablate("L1H1.z"),
        tp.Ablate("L2.resid_mid", "mean"),
        tp.Freeze("L0H0.pattern"),
    ]
    session.wait(60)
    assert not session.run.activation("L1H1.z").any()
    assert abs(session.run.loss - session.baseline.loss).max() > 1e-2
    mean = session.baseline.activation("L2.resid_mid").mean(0)
    assert session.run.activation("L2.resid_mid") == pytest.approx(
        mean[None].repeat(session.run.n_pos, 0), rel=2e-2, abs=5e-2
    )


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "gemma2", "opt"])
def test_bfloat16_has_the_same_verdict_as_float32(random_lm, random_directory, kind):
    narrow = tp.load_model(str(random_directory(kind)), dtype="bfloat16").health
    assert narrow.reasons == random_lm(kind).health.reasons


def test_a_model_without_mlps_has_everything_else(attention_only):
    lm = attention_only
    assert {kind for kind, ability in lm.health.abilities.items() if not ability.read} <= {
        "scores",
        "resid_mid",
        "mlp_pre",
        "mlp_post",
        "mlp_out",
    }
    assert all(lm.health.can_write(kind) for kind in ("resid_pre", "attn_out", "q", "k", "v", "pattern", "z"))
    assert lm.health.abilities["mlp_out"].reason == "this model has no MLP." and lm.spec.d_mlp == 0


def test_what_is_written_in_a_model_without_mlps_is_what_a_plain_hook_writes(attention_only):
    lm = attention_only
    ids = lm.tokenize("the cat sat on the mat")

    def zero(z, hook):
        z = z.clone()
        z[:, :, 2] = 0
        return z

    with torch.no_grad():
        wanted = lm.worker.call(
            lambda: lm.bridge.run_with_hooks(torch.tensor([ids]), fwd_hooks=[("blocks.1.attn.hook_z", zero)])
        )
    run = lm.run(tp.Question(ids, (tp.Ablate("L1H2.z"),)))
    assert torch.allclose(run.logits, wanted[0], atol=1e-4)
    assert not torch.allclose(run.logits, lm.run(tp.Question(ids)).logits, atol=1e-2)
