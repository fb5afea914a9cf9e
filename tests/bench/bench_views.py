"""What the lens, contributions, promoted tokens and generation cost, in plain passes; run it on a quiet machine.

    python tests/bench/bench_views.py [--rounds 15] [--tokens 64] [--threads N] [--model ID]

Ratios are medians of each round's own, so that what else the machine does hits both alike. The plain pass is the model
loaded separately, in eager attention; generation is measured against Hugging Face's ``generate`` of that model.
"""

import argparse
import gc
import itertools
import os
from collections.abc import Callable
from typing import Any

import torch
from bench_run import SMOLLM2, Series, load_plain, rest
from bench_sweep import Peak

import transpector as tp
from transpector.state.direct import promoted, promoted_everywhere
from transpector.state.interventions import Question

COLUMNS = 11
"""Positions that a page of 1440 px shows of the lens."""
N_NEW = 32


def text_of(model: tp.Model, n: int, seed: int) -> list[int]:
    """Ids of random tokens."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(100, model.spec.d_vocab, (n,), generator=random).tolist()


def measure_views(model: tp.Model, plain: torch.nn.Module, rounds: int, tokens: int) -> list[str]:
    """Each view of a fresh run, in plain passes."""
    series = {
        name: Series(name)
        for name in (
            "plain pass",
            "lens: what a page shows",
            "contributions of all heads: a new run",
            "contributions: a further token",
            "what a head promotes at one position",
            "everything that a head promotes",
            "stream: norms and scales",
            "gradients at every layer",
        )
    }
    unit, *views = series.values()
    memory: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> None:
        with Peak() as peak:
            series[name].time(work)
        memory[name] = max(memory.get(name, 0.0), peak.mb)

    # Of bytes that are no text on their own there is no name to ask by.
    words = [piece for piece in model.pieces(range(300, 400)) if piece.strip().isalpha()]
    answers = itertools.cycle(words)
    for round_ in range(rounds + 1):
        if round_ == 1:  # the first has warmed up what is known once and for all
            for each in series.values():
                each.walls.clear()
                each.cpus.clear()
            memory.clear()
        ids = text_of(model, tokens, round_)
        run = model.run(Question(ids))
        run.logits  # noqa: B018 - known once an answer is out
        rest(model)
        with torch.no_grad():
            unit.time(lambda ids=ids: plain(torch.tensor([ids])))
        shown = range(tokens - COLUMNS, tokens)
        timed("lens: what a page shows", lambda run=run, shown=shown: tp.lens(run, positions=shown))
        metric = [tp.Metric("log_prob", next(answers)) for _ in range(2)]
        timed(
            "contributions of all heads: a new run",
            lambda run=run, metric=metric: tp.contributions(run, metric[0]),
        )
        timed(
            "contributions: a further token", lambda run=run, metric=metric: tp.contributions(run, metric[1])
        )
        head = f"L{round_ % model.spec.n_layers}H{round_ % model.spec.n_heads}.z"
        timed("what a head promotes at one position", lambda run=run, head=head: promoted(run, head))
        timed("everything that a head promotes", lambda run=run, head=head: promoted_everywhere(run, head))
        timed("stream: norms and scales", lambda run=run: tp.stream(run))
        timed("gradients at every layer", lambda run=run: tp.gradients(run, tp.Metric()))
    limits = {
        "lens: what a page shows": 1.0,
        "contributions of all heads: a new run": 4.0,
        "contributions: a further token": 0.15,
        "everything that a head promotes": 0.5,
    }
    lines = [f"{tokens} tokens, {rounds} rounds, in plain passes of the same round"]
    for view in views:
        ratio = view.ratio(unit)
        limit = limits.get(view.name)
        verdict = "" if limit is None else f"(at most {limit:g}: {'reached' if ratio <= limit else 'MISSED'})"
        lines.append(f"{view.name:<40}{ratio:7.3f} ×   +{memory[view.name]:4.0f} MB   {verdict}")
    most = max(memory.values())
    lines.append(
        f"most memory of a view: {most:.0f} MB (at most 100: {'reached' if most <= 100 else 'MISSED'})"
    )
    return lines


def measure_generation(model: tp.Model, plain: torch.nn.Module, rounds: int, tokens: int) -> list[str]:
    """New tokens, plain and steered, against Hugging Face's own."""
    theirs, ours, steered = (Series(name) for name in ("Hugging Face generate", "ours", "ours, steered"))
    session = tp.Session(model=model)
    ends, model.text.end_ids = model.text.end_ids, set()  # as long a text for both
    same = True
    for round_ in range(rounds + 1):
        if round_ == 1:
            for each in (theirs, ours, steered):
                each.walls.clear()
                each.cpus.clear()
        ids = text_of(model, tokens, round_)
        session.interventions = []
        session.token_ids = ids
        session.wait()
        rest(model)

        def generate(ids: list[int] = ids) -> list[int]:
            with torch.no_grad():
                out = plain.generate(
                    torch.tensor([ids]),
                    max_new_tokens=N_NEW,
                    do_sample=False,
                    eos_token_id=None,
                    pad_token_id=0,
                )
            return out[0, len(ids) :].tolist()

        expected = theirs.time(generate)
        same &= list(ours.time(lambda: tp.generate(session, N_NEW).result()).new_ids) == expected
        session.interventions = [tp.Steer("L12.resid_pre", tp.TokenVector(model.pieces([500])[0]), 5)]
        session.wait()
        rest(model)
        steered.time(lambda: tp.generate(session, N_NEW).result())
    model.text.end_ids = ends
    lines = [f"{N_NEW} new tokens after {tokens}, the same tokens as theirs: {same}"]
    for each in (ours, steered):
        ratio = each.ratio(theirs)
        pace = N_NEW / sorted(each.walls)[len(each.walls) // 2]
        verdict = "reached" if ratio <= 1.3 else "MISSED"
        lines.append(f"{each.name:<40}{ratio:7.2f} ×   {pace:.1f} tokens/s   (at most 1.3: {verdict})")
    return lines


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    plain = load_plain(options.model)
    model = tp.load_model(options.model)
    gc.collect()
    print(f"{options.model}, {options.threads} threads")
    print(*measure_views(model, plain, options.rounds, options.tokens), sep="\n")
    print(*measure_generation(model, plain, max(3, options.rounds // 3), options.tokens), sep="\n")
    print(f"load of the machine: {load:.1f} before, {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
