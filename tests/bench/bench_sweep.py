"""How long causal maps and resumed answers take, against plain loops and plain passes; run by hand, on a quiet machine.

    python tests/bench/bench_sweep.py [--rounds 3] [--threads N] [--model ID] [--growth]

Each round does both sides of every comparison one after the other; ratios are medians of each round's own ratio, so
that what else the machine does hits both alike. With ``--growth`` it also prints how the time grows with the length of
the text, and with the layers and heads of models of random weights.
"""

import argparse
import asyncio
import gc
import os
import statistics
import threading
import time
from functools import partial

import psutil
import torch
from bench_run import SMOLLM2, Series, load_plain, rest

import transpector as tp

LENGTHS = (16, 32, 64, 128, 256, 512)
SHAPES = ((6, 9), (12, 9), (24, 9), (12, 3), (12, 18))  # layers, heads


def token_ids(model: tp.Model, n: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(100, model.spec.d_vocab, (n,), generator=generator).tolist()


def session_on(model: tp.Model, n: int, metric: tp.Metric, seed: int = 0) -> tp.Session:
    session = tp.Session(model=model, metric=metric)
    session.token_ids = token_ids(model, n, seed)
    session.wait()
    rest(model)
    return session


def loop_of_passes(model: tp.Model, ids: list[int]) -> torch.Tensor:
    """Every head set to zero in a full hooked pass of its own, the log-probability read at the last position."""
    tokens = torch.tensor([ids])
    out = torch.zeros(model.spec.n_layers, model.spec.n_heads)
    with torch.no_grad():
        for layer in range(model.spec.n_layers):
            for head in range(model.spec.n_heads):

                def zero(z: torch.Tensor, hook: object, head: int = head) -> torch.Tensor:
                    z = z.clone()
                    z[:, :, head] = 0
                    return z

                hooks = [(f"blocks.{layer}.attn.hook_z", zero)]
                logits = model.bridge.run_with_hooks(tokens, fwd_hooks=hooks)
                out[layer, head] = logits[0, -1].float().log_softmax(-1)[ANSWER]
    return out


ANSWER = 260


def patch_by_library(model: tp.Model, ids: list[int], other: list[int]) -> torch.Tensor:
    """The library's own resid_pre patching, layer × position."""
    from transformer_lens.patching import get_act_patch_resid_pre

    with torch.no_grad():
        _, cache = model.bridge.run_with_cache(torch.tensor([other]))
        return get_act_patch_resid_pre(
            model.bridge,
            torch.tensor([ids]),
            cache,
            lambda logits: logits[0, -1].float().log_softmax(-1)[ANSWER],
        )


def measure_sweeps(model: tp.Model, rounds: int) -> list[str]:
    answer = model.pieces([ANSWER])[0]
    last = tp.Metric("log_prob", answer)
    session = session_on(model, 16, last)
    ids = list(session.token_ids)
    other_text = next(
        text
        for seed in range(1, 999)
        if len(model.tokenize(text := model.text.decode(token_ids(model, 16, seed)))) == 16
    )
    loop, swept, swept_loss = (
        Series("loop of 270 hooked passes"),
        Series("last position"),
        Series("mean loss"),
    )
    library, patched = Series("get_act_patch_resid_pre, 30 × 16"), Series("patch resid_pre, 30 × 16")
    wrong = 0.0
    other = model.tokenize(other_text)

    def by_loop() -> torch.Tensor:
        return model.worker.call(lambda: loop_of_passes(model, ids))

    def by_library() -> torch.Tensor:
        return model.worker.call(lambda: patch_by_library(model, ids, other))

    def by_sweep(over: str = "heads", change: object = "zero") -> torch.Tensor:
        return torch.tensor(tp.sweep(session, over, change=change).result().array)

    for _ in range(rounds):
        baseline = float(session.run.log_probs(-1)[ANSWER])
        expected = loop.time(by_loop) - baseline
        wrong = max(wrong, float((expected - swept.time(by_sweep)).abs().max()))
        session.metric = tp.Metric()
        session.wait()
        swept_loss.time(by_sweep)
        session.metric = last
        session.wait()
        expected = library.time(by_library) - baseline
        given = patched.time(lambda: by_sweep("layers_positions", tp.from_text(other_text)))
        wrong = max(wrong, float((expected - given).abs().max()))
    return [
        _row("zero-ablate all heads, T = 16, last position", loop, swept, 12),
        _row("the same, mean loss", loop, swept_loss, 7),
        _row("patch resid_pre, layers × 16, last position", library, patched, 12),
        f"largest difference from the loops: {wrong:.1e}",
    ]


def _row(what: str, slow: Series, quick: Series, target: float) -> str:
    ratio = slow.ratio(quick)
    verdict = "reached" if ratio >= target else "MISSED"
    times = f"{statistics.median(slow.walls):8.2f} s {statistics.median(quick.walls):8.2f} s"
    return f"{what:<48}{times}{ratio:8.1f} × faster   (at least {target} ×: {verdict})"


def measure_answers(model: tp.Model, plain: torch.nn.Module, rounds: int) -> list[str]:
    """A head of layer 20, an undo, and an estimate, against a plain pass of 64 tokens."""
    session = session_on(model, 64, tp.Metric())
    ids = torch.tensor([session.token_ids])

    def plain_pass() -> None:
        # On the worker, as ours: the threads of another pool would go on spinning beside it.
        model.worker.call(lambda: plain(ids))

    def ablate(head: str) -> None:
        session.interventions = [tp.Ablate(head)]
        session.wait()

    def undo() -> None:
        session.undo()
        session.wait()

    layer = min(20, model.spec.n_layers - 1)
    unit, one, undone = Series("plain"), Series("one head"), Series("undo")
    estimate = Series("estimate")
    for round_ in range(rounds + 3):
        if round_ == 3:
            for series in (unit, one, undone, estimate):
                series.walls.clear()
                series.cpus.clear()
        unit.time(plain_pass)
        head = f"L{layer}H{round_ % model.spec.n_heads}.z@{round_ // model.spec.n_heads}:"
        one.time(partial(ablate, head))
        rest(model)
        undone.time(undo)
        rest(model)
        estimate.time(lambda: tp.sweep(session, estimate=True).result())
        rest(model)
    lines = []
    for what, series, target in (
        (f"ablate one head of layer {layer}, T = 64, to the answer", one, 0.5),
        ("undo to a kept run", undone, 0.05),
        ("estimate all heads by gradients", estimate, 4),
    ):
        ratio = series.ratio(unit)
        verdict = f"(at most {target} ×: {'reached' if ratio <= target else 'MISSED'})"
        lines.append(
            f"{what:<52}{1e3 * statistics.median(unit.walls):8.1f} ms {1e3 * statistics.median(series.walls):8.1f} ms"
            f"{ratio:8.3f} ×   {verdict}"
        )
    return lines


def measure_stalls(model: tp.Model) -> str:
    """How late an event loop's ticks are while a sweep runs in the same process."""
    session = session_on(model, 64, tp.Metric())
    late: list[float] = []

    async def tick() -> None:
        sweep = tp.sweep(session)
        began = time.perf_counter()
        while time.perf_counter() - began < 15 and not sweep.is_over:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            late.append(time.perf_counter() - before - 0.005)
        sweep.cancel()

    asyncio.run(tick())
    rest(model)
    late.sort()
    p99 = 1e3 * late[int(0.99 * len(late))]
    return f"event loop during a sweep: {len(late)} ticks, late by p50 {1e3 * late[len(late) // 2]:.1f} ms, p99 {p99:.1f} ms, at most {1e3 * late[-1]:.0f} ms   (p99 at most 50 ms: {'reached' if p99 <= 50 else 'MISSED'})"


class Peak:
    """The most memory that this process takes beyond what it had, MB."""

    def __enter__(self) -> "Peak":
        gc.collect()
        self._process, self._over = psutil.Process(), threading.Event()
        self._before = self.top = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self.top = max(self.top, self._process.memory_info().rss)

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self.mb = (self.top - self._before) / 1e6


def measure_growth(model: tp.Model) -> list[str]:
    last = tp.Metric("log_prob", model.pieces([ANSWER])[0])
    lines = [
        f"every head set to zero, last position\n{'tokens':>8}{'exact, s':>12}{'estimate, s':>14}{'MB':>8}"
    ]
    for n in LENGTHS:
        session = session_on(model, n, last)
        began = time.perf_counter()
        with Peak() as peak:
            tp.sweep(session).result()
        exact = time.perf_counter() - began
        began = time.perf_counter()
        tp.sweep(session, estimate=True).result()
        lines.append(f"{n:>8}{exact:>12.1f}{time.perf_counter() - began:>14.2f}{peak.mb:>8.0f}")
        print(lines[-1], flush=True)
    lines.append(f"{'layers':>8}{'heads':>8}{'16 tokens, s':>16}")
    for n_layers, n_heads in SHAPES:
        shaped = random_llama(model, n_layers, n_heads)
        session = session_on(shaped, 16, last)
        began = time.perf_counter()
        tp.sweep(session).result()
        lines.append(f"{n_layers:>8}{n_heads:>8}{time.perf_counter() - began:>16.2f}")
    return lines


def random_llama(like: tp.Model, n_layers: int, n_heads: int) -> tp.Model:
    """A Llama of random weights, as wide a head as the model's and with its tokenizer."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import LlamaConfig, LlamaForCausalLM

    width = n_heads * like.spec.d_head
    config = LlamaConfig(
        vocab_size=like.spec.d_vocab,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads,
        tie_word_embeddings=True,
    )
    config._attn_implementation = "eager"
    hf_model = LlamaForCausalLM(config).eval()
    bridge = TransformerBridge.boot_transformers(
        f"random {n_layers} × {n_heads}", hf_model=hf_model, tokenizer=like.text.tokenizer
    )
    return tp.load_model(bridge)


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--growth", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    model = tp.load_model(options.model)
    plain = load_plain(options.model)
    print(
        f"{options.model}: {model.spec.n_layers} layers × {model.spec.n_heads} heads, {options.threads} threads, load {load:.1f}"
    )
    print(*measure_answers(model, plain, 5 * options.rounds), sep="\n")
    print(measure_stalls(model))
    print(*measure_sweeps(model, options.rounds), sep="\n")
    if options.growth:
        print(*measure_growth(model), sep="\n")
    print(f"load of the machine: {load:.1f} before, {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
