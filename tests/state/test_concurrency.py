"""Many threads may ask one model at once, and none gets another's answer."""

import threading

import pytest
from fresh import forget_runs

import transpector as tp
from transpector.state.interventions import Question

KINDS = ("z", "pattern", "attn_out", "mlp_out", "resid_mid", "v")


def questions(lm, thread, n, text):
    """Different interventions for every thread and turn; some read from another run."""
    out = []
    for turn in range(n):
        kind = KINDS[(thread + turn) % len(KINDS)]
        layer = (3 * thread + turn) % lm.spec.n_layers
        head = f"H{turn % lm.spec.n_kv_heads}" if kind in ("z", "pattern", "v") else ""
        how = ("zero", "mean")[turn % 2]
        ids = [*lm.tokenize(text), 5 + thread, 30 + turn]
        interventions = [tp.Ablate(f"L{layer}{head}.{kind}", how)]
        if turn % 3 == 0:
            interventions.append(tp.Freeze(f"L{(layer + 1) % lm.spec.n_layers}.mlp_out", Question(ids[::-1])))
        out.append(Question(ids, tuple(interventions)))
    return out


def in_threads(n, work):
    failures = []

    def guarded(thread):
        try:
            work(thread)
        except BaseException as error:  # noqa: BLE001 - told by the thread that asks
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(thread,)) for thread in range(n)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    if failures:
        raise failures[0]


def compare(lm, n_threads, n_turns, text="The Eiffel Tower is in the city of"):
    """Ask everything at once, then one by one: every logit and loss must be equal to the bit."""
    forget_runs(lm)
    asked = [questions(lm, thread, n_turns, text) for thread in range(n_threads)]
    at_once = {}

    def ask(thread):
        for turn, question in enumerate(asked[thread]):
            run = lm.run(question)
            at_once[thread, turn] = run.question, run.logits, run.loss

    in_threads(n_threads, ask)
    assert len(at_once) == n_threads * n_turns
    different = set()
    forget_runs(lm)
    for (thread, turn), (question, logits, loss) in at_once.items():
        assert question == asked[thread][turn]
        serial = lm.run(question)
        assert (serial.logits == logits).all() and (serial.loss == loss).all(), (thread, turn)
        different.add(float(logits.float().sum()))
    assert len(different) > 0.9 * len(at_once), "they must be different questions"


@pytest.mark.parametrize(("kind", "n_turns"), [("llama", 25), ("opt", 5)])
def test_eight_threads_of_runs_on_one_model_are_right(random_lm, kind, n_turns):
    compare(random_lm(kind), 8, n_turns)


def test_threads_of_runs_on_smollm2_are_right(smollm2):
    compare(smollm2, 4, 3)


def test_eight_sessions_at_once_on_one_model_are_right(random_lm):
    lm = random_lm("llama")
    forget_runs(lm)
    asked = [questions(lm, thread, 5, "in the city of") for thread in range(8)]
    answers = {}

    def ask(thread):
        session = tp.Session(model=lm)
        for turn, question in enumerate(asked[thread]):
            session.param.update(
                token_ids=list(question.token_ids), interventions=list(question.interventions)
            )
            session.wait(120)
            assert session.run.question == question
            answers[thread, turn] = session.run.logits, session.baseline.logits
        session.close()

    in_threads(8, ask)
    assert len(answers) == 40
    forget_runs(lm)
    for (thread, turn), (logits, baseline) in answers.items():
        question = asked[thread][turn]
        assert (lm.run(question).logits == logits).all()
        assert (lm.run(Question(question.token_ids)).logits == baseline).all()


def test_readers_and_runs_at_once_disturb_nobody(random_lm):
    """Views read activations that were not kept while others run."""
    lm = random_lm("gpt2")
    forget_runs(lm)
    ids = lm.tokenize("The Eiffel Tower is in the city of")
    sites = ["L0.q", "L1.k", "L2.v", "L1.scores", "L0.mlp_pre", "embed", "L1.resid_mid"]
    serial = {}
    for thread in range(6):
        run = lm.run(Question(ids, (tp.Ablate(f"L1H{thread % 4}.z"), tp.Ablate(f"L0N{thread}.mlp_post"))))
        serial[thread] = {site: run.activation(site) for site in sites}
    forget_runs(lm)

    def read(thread):
        for _ in range(3):
            run = lm.run(Question(ids, (tp.Ablate(f"L1H{thread % 4}.z"), tp.Ablate(f"L0N{thread}.mlp_post"))))
            for site in sites:
                assert (run.activation(site) == serial[thread][site]).all()

    in_threads(6, read)
