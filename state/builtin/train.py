"""Train the model in the box from public domain novels that Debian packages carry.

The text: the six novels of Jane Austen (Debian ``r-cran-janeaustenr`` 1.0.0-1), Herman Melville's Moby Dick
(``r-cran-tokenizers`` 0.3.0-1) and Mark Twain's Tom Sawyer (``golang-github-klauspost-compress-dev`` 1.15.12+ds1-3);
``SOURCES`` below is the one place that says so. All eight books are in the public domain, the packages around
them MIT and BSD-3-Clause. ``apt-get download`` and ``dpkg-deb`` fetch and unpack them into ``--work``; nothing is
installed.

The recipe has three phases. First only spans of random tokens, repeated, and only the loss of what can be foretold; the
spans are drawn from few tokens at first and then from ever more, since a match between tokens that are seen often is
learned in minutes and carries over to the others. That grows the textbook pair of a previous-token head and an
induction head. Then half of every batch is windows of the text, half is repeated spans, and every token counts. Last,
a short phase in which spans of text repeat as well, and from as far as 128 tokens back: without it the heads heed
repetition in random tokens only. Nothing but the next-token loss is trained on.

On Debian, with the packages of this project installed::

    python state/builtin/train.py --work work --out state/builtin

It logs the figures of README.md every few hundred steps and writes a checkpoint each time into ``--work``.
The default arguments are those of the weights in this folder. One thread, so that a seed means the same numbers
on one kind of machine.
"""

import argparse
import json
import logging
import re
import subprocess
import sys
import time
import zlib
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS = "<|endoftext|>"

SOURCES = {  # Debian package -> the file in it that holds the books
    "r-cran-janeaustenr": "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb",
    "r-cran-tokenizers": "usr/lib/R/site-library/tokenizers/data/Rdata.rdb",
    "golang-github-klauspost-compress-dev": (
        "usr/share/gocode/src/github.com/klauspost/compress/testdata/Mark.Twain-Tom.Sawyer.txt"
    ),
}

log = logging.getLogger("train")


def fetch(package: str, work: Path) -> Path:
    """Download one Debian package into ``work``, unpack it and return its book file."""
    root = work / package
    if not root.exists():
        subprocess.run(["apt-get", "download", package], cwd=work, check=True, stdout=subprocess.DEVNULL)
        (archive,) = work.glob(f"{package}_*.deb")
        log.info("%s", archive.name)
        subprocess.run(["dpkg-deb", "-x", archive, root], check=True)
    return root / SOURCES[package]


def character_vectors(rdb: Path) -> list[str]:
    """Read every character vector of an R lazy-load database (zlib chunks of XDR serialisation), its lines joined."""
    blob, vectors, at = rdb.read_bytes(), [], 0
    while at < len(blob):
        inflater = zlib.decompressobj()
        chunk = inflater.decompress(blob[at + 4 :])
        at = len(blob) - len(inflater.unused_data)
        if chunk[26:27] != b"\x10":  # the low byte of the flags, after the header: 16 is STRSXP
            continue
        count, here, lines = int.from_bytes(chunk[27:31], "big"), 31, []
        for _ in range(count):
            size = int.from_bytes(chunk[here + 4 : here + 8], "big")  # after the 4 bytes of CHARSXP flags
            lines.append(chunk[here + 8 : here + 8 + size].decode("utf-8"))
            here += 8 + size
        vectors.append("\n".join(lines))
    return vectors


def paragraphs(book: str) -> list[str]:
    """Join hard-wrapped lines into one line a paragraph; drop what publishers put around the book."""
    book = re.sub(r"(?s)^.*?\*\*\* START OF [^\n]*|\*\*\* END OF .*$", "", book).replace("_", "")
    blocks = re.split(r"\n\s*\n", book.replace("\r", ""))
    lines = [" ".join(block.split()) for block in blocks]
    return [
        line
        for line in lines
        if line and not re.search("Gutenberg|Produced by|Signet Classic|NOTE ON THE TEXT", line)
    ]


def read_books(work: Path) -> list[list[str]]:
    """Return each book as its list of paragraphs."""
    books = []
    for package in SOURCES:
        path = fetch(package, work)
        books += character_vectors(path) if path.suffix == ".rdb" else [path.read_text("utf-8")]
    return [paragraphs(book) for book in books]


def train_tokenizer(text: list[str], vocabulary: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer: every string round trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[BOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def new_model(vocabulary: int) -> LlamaForCausalLM:
    """Return an untrained model."""
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=128, intermediate_size=384, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=512, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # large, so that tokens are told apart from the first step on
        model.model.embed_tokens.weight.normal_(0, 0.5)
    return model


class Batches:
    """Draws batches of repeated spans, and once the heads have formed, of text windows too."""

    def __init__(self, text: Tensor, args: argparse.Namespace) -> None:
        self.text = text  # [token]
        self.args = args
        self.random = torch.Generator().manual_seed(args.seed)
        self.order = torch.randperm(args.vocabulary - 1, generator=self.random) + 1  # 0 is BOS

    def integer(self, low: int, high: int) -> int:
        """Draw from ``low`` to ``high``, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.random))

    def window(self, length: int) -> Tensor:
        """Draw a window of the text."""
        start = self.integer(0, len(self.text) - length)
        return self.text[start : start + length]

    def repeated(self, length: int, longest: int, choice: int) -> tuple[Tensor, Tensor]:
        """Draw a span of 4 to ``longest`` of the first ``choice`` tokens in order, repeated.

        Returns places in the order, [pos], and which of them can be foretold.
        """
        period = self.integer(4, longest)
        span = torch.randint(0, choice, (period,), generator=self.random)
        return span.repeat(-(-length // period))[:length], torch.arange(length) >= period

    def draw_early(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a step of the first phase: places [batch pos], which of them can be foretold, and the tokens in use."""
        doublings = max(0, step - self.args.few) / self.args.doubling
        choice = min(len(self.order), int(self.args.choice * 2**doublings))
        places, known = map(
            torch.stack, zip(*(self.repeated(64, 24, choice) for _ in range(24)), strict=True)
        )
        return places, known, self.order[:choice]

    def draw(self, step: int) -> Tensor:
        """Draw the tokens [batch pos] of a step of the second phase; every eighth is long, half the rows have BOS."""
        rows, length = (4, 384) if step % 8 == 7 else (16, 128)
        ids = torch.empty(rows, length, dtype=torch.long)
        for row in range(rows):
            bos = row // 2 % 2
            ids[row, :bos] = 0
            if row % 2:
                ids[row, bos:] = self.order[self.repeated(length - bos, 64, len(self.order))[0]]
            else:
                ids[row, bos:] = self.window(length - bos)
        return ids

    def draw_late(self) -> Tensor:
        """Draw the tokens [batch pos] of a step of the third phase: half text, a quarter each of repeated spans."""
        rows, length = 8, 256
        ids = torch.empty(rows, length, dtype=torch.long)
        for row in range(rows):
            bos = self.integer(0, 1)
            ids[row, :bos] = 0
            period = round(
                8 * 16 ** float(torch.rand((), generator=self.random))
            )  # 8 to 128, short ones oftener
            if row % 2:
                span = self.window(period)
                if row % 4 == 1:
                    span = self.order[torch.randint(0, len(self.order), (period,), generator=self.random)]
                ids[row, bos:] = span.repeat(length)[: length - bos]
            else:
                ids[row, bos:] = self.window(length - bos)
        return ids


def early_loss(model: LlamaForCausalLM, places: Tensor, known: Tensor, tokens: Tensor) -> Tensor:
    """Loss of what can be foretold, among the tokens in use: the others are not unlearned meanwhile."""
    hidden = model.model(tokens[places]).last_hidden_state[:, :-1]  # [batch pos d_model]
    logits = hidden[known[:, 1:]] @ model.lm_head.weight[tokens].T
    return nn.functional.cross_entropy(logits, places[:, 1:][known[:, 1:]])


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Warm up, hold, then fall linearly to a fiftieth over the last half."""
    fall = args.steps // 2
    if step < args.warmup:
        return args.rate * (step + 1) / args.warmup
    return args.rate * max(0.02, 1 - max(0, step - fall) / (args.steps - fall))


@torch.no_grad()
def figures(model: LlamaForCausalLM, held_out: Tensor, span: int = 48) -> dict[str, float | str]:
    """Measure loss (nats) and head scores on 32 repeated random spans without BOS, and loss on held-out text."""
    model.set_attn_implementation("eager")
    random = torch.Generator().manual_seed(7)
    ids = torch.randint(0, model.config.vocab_size, (32, span), generator=random).repeat(1, 2)
    out = model(ids, output_attentions=True)
    loss = nn.functional.cross_entropy(out.logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    pattern = torch.stack(out.attentions)  # [layer batch head query key]
    induction = pattern.diagonal(1 - span, 3, 4)[..., 1:].mean(
        (1, 3)
    )  # [layer head], queries of the second copy
    previous = pattern.diagonal(-1, 3, 4).mean((1, 3))
    model.set_attn_implementation("sdpa")
    rows = held_out[: len(held_out) // 256 * 256].view(-1, 256)
    text = [float(model(row[None], labels=row[None]).loss) for row in rows[:64]]

    def best(score: Tensor) -> str:
        layer, head = divmod(int(score.argmax()), score.shape[1])
        return f"L{layer}H{head} {float(score.max()):.3f}"

    return {
        "first": round(float(loss[:, : span - 1].mean()), 3),
        "second": round(float(loss[:, span:].mean()), 3),
        "induction": best(induction),
        "previous": best(previous),
        "held_out": round(sum(text) / len(text), 3),
    }


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a Hugging Face folder: float16 weights that load as float32."""
    stored = LlamaForCausalLM(model.config)
    stored.load_state_dict(model.state_dict())
    stored.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    limit = model.config.max_position_embeddings
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, model_max_length=limit,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)  # fmt: skip


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished model")
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads and checkpoints")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--warmup", type=int, default=50, help="steps of rising learning rate")
    parser.add_argument(
        "--early", type=int, default=1100, help="steps of the first phase, see `Batches.draw_early`"
    )
    parser.add_argument(
        "--choice", type=int, default=128, help="how many tokens the first spans are drawn from"
    )
    parser.add_argument("--few", type=int, default=500, help="steps before there are more")
    parser.add_argument("--doubling", type=int, default=75, help="steps in which they double")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument(
        "--late", type=int, default=1000, help="steps of the third phase, see `Batches.draw_late`"
    )
    parser.add_argument(
        "--late-rate", type=float, default=1e-3, help="highest learning rate of the third phase"
    )
    parser.add_argument("--second", type=Path, help="saved folder of the second phase: run the third only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--every", type=int, default=500, help="steps between figures and checkpoints")
    return parser.parse_args(argv)


def train_early(
    args: argparse.Namespace, batches: Batches, tokenizer: Tokenizer, held_out: Tensor, to: Path
) -> None:
    """Run the first two phases and save what they gave."""
    model = new_model(args.vocabulary)
    log.info("%d parameters", sum(p.numel() for p in model.parameters()))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    start = time.monotonic()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        if step < args.early:
            loss = early_loss(model, *batches.draw_early(step))
        else:
            ids = batches.draw(step)
            loss = model(ids, labels=ids).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % args.every == 0:
            save(model, tokenizer, args.work / "checkpoint")
            seconds = time.monotonic() - start
            log.info(
                "step %d, %.0f s, loss %.3f, %s", step + 1, seconds, loss.item(), figures(model, held_out)
            )
    save(model, tokenizer, to)


def train_late(args: argparse.Namespace, batches: Batches, folder: Path) -> LlamaForCausalLM:
    """Run the third phase on the model that the first two saved, the learning rate falling linearly."""
    model = LlamaForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    for step in range(args.late):
        for group in optimizer.param_groups:
            group["lr"] = args.late_rate * min((step + 1) / args.warmup, 1 - step / args.late)
        ids = batches.draw_late()
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            log.info("third phase, step %d, loss %.3f", step + 1, loss.item())
    return model


def main(argv: list[str]) -> None:
    """Fetch, tokenise, train, save."""
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)

    books = read_books(args.work)
    cut = [len(book) * 96 // 100 for book in books]  # the last 4 % of each book's paragraphs are held out
    tokenizer = train_tokenizer(
        ["\n".join(book[:n]) for book, n in zip(books, cut, strict=True)], args.vocabulary
    )
    train, held_out = (
        torch.tensor([i for book in part for i in tokenizer.encode("\n".join(book)).ids])
        for part in (
            [b[:n] for b, n in zip(books, cut, strict=True)],
            [b[n:] for b, n in zip(books, cut, strict=True)],
        )
    )
    held_out = held_out[torch.randperm(len(held_out) // 256)[:, None] * 256 + torch.arange(256)].flatten()
    share = torch.bincount(held_out, minlength=args.vocabulary) / len(held_out)
    unigram = float(-(share * share.clamp_min(1e-12).log()).sum())
    log.info("%d tokens, %d held out, unigram entropy %.3f nats", len(train), len(held_out), unigram)

    batches, second = Batches(train, args), args.second
    if second is None:
        second = args.work / "second"
        train_early(args, batches, tokenizer, held_out, second)
    model = train_late(args, Batches(train, args), second)
    save(model, tokenizer, args.out)
    log.info("saved: %s", figures(LlamaForCausalLM.from_pretrained(args.out), held_out))


if __name__ == "__main__":
    main(sys.argv[1:])
