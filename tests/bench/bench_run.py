"""How long an answer takes, in plain Hugging Face passes of the same process; run it by hand, on a quiet machine.

    python tests/bench/bench_run.py [--rounds 30] [--tokens 64] [--threads N] [--model ID]

Times are medians over alternated rounds with their quartiles; ratios are medians of each round's own ratio, so that
what else the machine does hits both alike. Where it does much, two threads wait for each other, and only the ratio of
CPU times with ``--threads 1`` means something. The plain pass is the model loaded separately, in eager attention and
otherwise as transformers runs it.
"""

import argparse
import gc
import importlib
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM

import transpector as tp
from transpector.state import conversion
from transpector.state.catalogue import resolve
from transpector.state.health import self_test
from transpector.state.models import Model
from transpector.state.worker import BACKGROUND

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
TARGET = 1.25  # plain passes from the question to the published answer


class Series:
    """The times of one thing that is measured round by round, s."""

    def __init__(self, name: str):
        self.name = name
        self.walls: list[float] = []
        self.cpus: list[float] = []  # of all threads of this process

    def time(self, function: Callable[[], Any]) -> Any:
        """Call the function, note its time, and return what it gives."""
        wall, cpu = time.perf_counter(), time.process_time()
        given = function()
        self.walls.append(time.perf_counter() - wall)
        self.cpus.append(time.process_time() - cpu)
        return given

    def ratio(self, unit: "Series") -> float:
        """The median over rounds of the ratio of wall times: what slows a whole round cancels out."""
        return _paired(self.walls, unit.walls)

    def row(self, unit: "Series") -> str:
        low, median, high = (1e3 * s for s in statistics.quantiles(self.walls, n=4))
        cpu = f"{_paired(self.cpus, unit.cpus):6.2f} ×" if self.cpus else ""
        return f"{self.name:<42}{median:9.1f}   {low:7.1f} –{high:8.1f}   {self.ratio(unit):6.2f} ×  {cpu}"


HEADER = f"{'':<42}{'median, ms':>9}   {'quartiles, ms':>17}   {'wall':>8}  {'CPU':>8}  (in plain passes)"


def _paired(these: list[float], those: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(these, those, strict=True))


def resident() -> float:
    """Memory of this process, MB."""
    return psutil.Process().memory_info().rss / 1e6


def load_plain(name: str) -> torch.nn.Module:
    path = resolve(name).path
    if path.is_file():
        path = conversion.convert(path, "float32", lambda *_: None, lambda: False)
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", dtype=torch.float32)
    return model.eval().requires_grad_(False)


def rest(model: Model) -> None:
    """Wait until the worker has done all that the last answer left it to do."""
    model.worker.submit(lambda: None).result()  # the job that answered has queued what it leaves
    model.worker.submit(lambda: None, priority=BACKGROUND).result()


def measure_answers(model: Model, plain: torch.nn.Module, rounds: int, tokens: int) -> list[str]:
    """From an assignment to the published answer, and what of that is the pass."""
    vocabulary = torch.Generator().manual_seed(0)
    token_ids = torch.randint(100, model.spec.d_vocab, (tokens,), generator=vocabulary).tolist()
    session = tp.Session(model=model)
    session.token_ids = token_ids
    session.wait()
    ids = torch.tensor([token_ids])

    def plain_pass() -> torch.Tensor:
        with torch.no_grad():
            return plain(ids).logits

    def bare_pass() -> torch.Tensor:
        with torch.no_grad():
            return model.bridge(ids, return_type="logits")

    def ask(interventions: list[tp.Intervention]) -> None:
        session.interventions = interventions
        session.wait()

    difference = float((plain_pass()[0] - session.baseline.logits).abs().max())
    # No head comes twice: the cache of runs must never answer.
    heads = [f"L{layer}H{head}" for head in range(model.spec.n_heads) for layer in range(model.spec.n_layers)]
    one = ([tp.Ablate(f"{head}.z")] for head in heads)
    both = ([tp.Ablate(f"{head}.{kind}", "mean") for kind in ("pattern", "z")] for head in heads)
    kinds = ("q", "k", "v", "mlp_pre", "mlp_post")  # a baseline keeps none of them
    unkept = (
        [tp.Ablate(f"L{layer}.{kind}", "mean")] for kind in kinds for layer in range(model.spec.n_layers)
    )
    unit = Series("plain Hugging Face pass")
    bare = Series("the bridge's pass, no hook")
    hooked = Series("the session's pass alone (run.ms)")
    answered = Series("interventions = [Ablate(head)] to answer")
    two = Series("two mean ablations to answer")
    again = Series("one whose mean must be read first")
    warm = 3
    for round_ in range(rounds + warm):
        if round_ == warm:
            for series in (unit, bare, hooked, answered, two, again):
                series.walls.clear()
                series.cpus.clear()
        unit.time(plain_pass)
        answered.time(lambda: ask(next(one)))
        hooked.walls.append(session.run.ms / 1e3)
        rest(model)
        bare.time(lambda: model.worker.call(bare_pass))
        two.time(lambda: ask(next(both)))
        rest(model)
        again.time(lambda: ask(next(unkept)))
        rest(model)
    verdict = "reached" if answered.ratio(unit) <= TARGET else "MISSED"
    return [
        f"{tokens} tokens, {rounds} rounds; baseline logits differ from plain by {difference:g}",
        *(series.row(unit) for series in (unit, bare, hooked, answered, two, again)),
        f"target: at most {TARGET} × from question to answer, wall: {verdict}",
        f"a run holds {session.run.nbytes() / 1e6:.1f} MB; the cache {model.runs.nbytes / 1e6:.0f} MB",
    ]


def measure_self_test(model: Model, plain: torch.nn.Module, tokens: int) -> list[str]:
    """The self-test at load, in plain passes."""
    ids = torch.arange(100, 100 + tokens)[None]
    unit, test = Series("plain pass"), Series("self-test")
    for _ in range(5):
        with torch.no_grad():
            unit.time(lambda: plain(ids))
        test.time(lambda: model.worker.call(lambda: self_test(model.stack, model.spec)))
    return [HEADER, test.row(unit)]


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]

    importlib.import_module("transformer_lens.model_bridge")  # once a process, and not part of a load
    imported = resident()
    began = time.perf_counter()
    plain = load_plain(options.model)
    plain_s, plain_mb = time.perf_counter() - began, resident() - imported
    before = resident()
    began = time.perf_counter()
    model = tp.load_model(options.model)
    load_s, load_mb = time.perf_counter() - began, resident() - before
    spec = model.spec
    print(
        f"{options.model}: {spec.n_layers} layers × {spec.n_heads} heads, {options.threads} threads, load {load:.1f}"
    )
    print(f"loading: plain {plain_s:.1f} s, +{plain_mb:.0f} MB; ours {load_s:.1f} s, +{load_mb:.0f} MB")
    lines = measure_self_test(model, plain, options.tokens)
    lines += measure_answers(model, plain, options.rounds, options.tokens)
    print(*lines, sep="\n")
    gc.collect()
    print(
        f"memory: {imported:.0f} MB with the libraries, {resident():.0f} MB at the end, both models included"
    )
    print(f"load of the machine: {load:.1f} before, {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
