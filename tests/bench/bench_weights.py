"""What it costs to say what heads and neurons are for; run it on a quiet machine.

    python tests/bench/bench_weights.py [--rounds 15] [--tokens 64] [--threads N] [--model ID]

Ratios are medians of each round's own, so that what else the machine does hits both alike. The plain pass is the model
loaded separately, in eager attention. All is of a run that is there already.
"""

import argparse
import gc
import os
from collections.abc import Callable
from typing import Any

import torch
from bench_run import SMOLLM2, Series, load_plain, rest
from bench_sweep import Peak

import transpector as tp
from transpector.state import heads


def measure_heads(model: tp.Model, plain: torch.nn.Module, rounds: int, tokens: int) -> list[str]:
    """Scores of every head of a fresh run, in plain passes; those of weights are made but once."""
    unit = Series("plain pass")
    limits = dict.fromkeys(
        ("scores of where heads attend", "all scores of heads, a further run", "heads like one"), 1.0
    )
    views = {name: Series(name) for name in limits}
    memory = dict.fromkeys(limits, 0.0)

    def timed(name: str, work: Callable[[], Any]) -> None:
        with Peak() as peak:
            views[name].time(work)
        memory[name] = max(memory[name], peak.mb)

    first, run = Series("all scores of heads, the first"), None
    for round_ in range(rounds + 1):
        if round_ == 1:  # the first has warmed up what is known once and for all
            for each in (unit, *views.values()):
                each.walls.clear()
                each.cpus.clear()
            memory = dict.fromkeys(limits, 0.0)
        question = heads.repeated_random(model, tokens // 2, seed=round_)
        run = model.run(question)
        rest(model)
        with torch.no_grad():
            unit.time(lambda ids=question.token_ids: plain(torch.tensor([ids])))
        if round_ == 0:
            first.time(lambda run=run: heads.head_scores(run))
        timed("scores of where heads attend", lambda run=run: heads.attention_scores(run))
        timed("all scores of heads, a further run", lambda run=run: heads.head_scores(run))
        layer, head = round_ % model.spec.n_layers, round_ % model.spec.n_heads
        timed("heads like one", lambda run=run, at=(layer, head): heads.similar_heads(run, *at))
    lines = [f"{tokens} tokens, {rounds} rounds, in plain passes of the same round"]
    for name, view in views.items():
        ratio = view.ratio(unit)
        verdict = f"(at most {limits[name]:g}: {'reached' if ratio <= limits[name] else 'MISSED'})"
        lines.append(f"{name:<40}{ratio:7.3f} ×   +{memory[name]:4.0f} MB   {verdict}")
    once = first.walls[0]
    lines.append(
        f"{first.name:<40}{once / sorted(unit.walls)[len(unit.walls) // 2]:7.3f} ×   {once:.2f} s, once"
    )
    return lines


def measure_weights(model: tp.Model, rounds: int) -> list[str]:
    """Rows of a head's circuits, the tokens of a neuron and a search, in seconds."""
    layers, heads_ = model.spec.n_layers, model.spec.n_heads
    words = [piece for piece in model.pieces(range(300, 400)) if piece.strip().isalpha()]
    session = tp.Session(model=model, text="The Eiffel Tower is in the city of").wait()

    def at(round_: int) -> tuple[int, int, str]:
        return 7 * round_ % layers, round_ % heads_, words[round_ % len(words)]

    works: dict[str, tuple[float, Callable[[int], Any]]] = {
        "OV row of a token": (0.3, lambda n: tp.ov_tokens(model, *at(n))),
        "QK row of a token": (0.3, lambda n: tp.qk_tokens(model, *at(n))),
        "tokens that a head copies": (1.0, lambda n: tp.copied_tokens(model, *at(n)[:2])),
        "tokens of a neuron": (1.0, lambda n: tp.neuron_tokens(model, at(n)[0], n)),
        "composition with all earlier heads": (1.0, lambda n: tp.composition(model, layers - 1, n % heads_)),
        "search of all heads and neurons": (20.0, lambda n: tp.writers(session, at(n)[2]).result()),
    }
    lines = [f"{rounds} rounds, medians"]
    for name, (limit, work) in works.items():
        series, most = Series(name), 0.0
        for round_ in range(rounds + 1):
            with Peak() as peak:
                series.time(lambda work=work, round_=round_: work(round_))
            most = max(most, peak.mb)
        once, *further = series.walls
        median = sorted(further)[len(further) // 2]
        verdict = f"(at most {limit:g} s: {'reached' if median <= limit else 'MISSED'})"
        lines.append(f"{name:<40}{median:7.3f} s, the first {once:.2f} s   +{most:4.0f} MB   {verdict}")
    return lines


def main() -> None:
    """Measure, and print two tables."""
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
    print(*measure_weights(model, min(5, options.rounds)), sep="\n")
    print(*measure_heads(model, plain, options.rounds, options.tokens), sep="\n")
    print(f"load of the machine: {load:.1f} before, {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
