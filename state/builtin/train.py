"""Train the model in the box from public domain novels that Debian packages carry.

The text: the six novels of Jane Austen (Debian ``r-cran-janeaustenr`` 1.0.0-1), Herman Melville's Moby Dick
(``r-cran-tokenizers`` 0.3.0-1) and Mark Twain's Tom Sawyer (``golang-github-klauspost-compress-dev`` 1.15.12+ds1-3);
``SOURCES`` below is the one place that says so. All eight books are in the public domain, the packages around
them MIT and BSD-3-Clause. ``apt-get download`` and ``dpkg-deb`` fetch and unpack them into ``--work``; nothing is
installed.

The recipe: half of every batch is windows of that text, half is spans repeated to the end of the window (three in
four of uniformly random tokens, one in four of text), which is what makes a small model grow the textbook pair of
a previous-token head and an induction head. Nothing but the next-token loss is trained on.

On Debian, with the packages of this project installed::

    python state/builtin/train.py --work /tmp/builtin-work --out state/builtin

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


@torch.no_grad()
def new_model(
    vocabulary: int, spread: float = 0.06, alike: float = 0.8, sharpness: float = 2.5
) -> LlamaForCausalLM:
    """Return an untrained model whose heads start out near the shapes that trained ones tend to.

    Three things are unlike the usual start, and make up for a small budget; all weights are trained from there.
    Every token's embedding has a component in common, which a head needs to look one back whatever the token.
    Keys begin like queries and outputs like transposed values (mimetic initialisation, Trockman & Kolter 2023), so
    that heads look at like tokens and copy them. Head h of layer 0 leans to h tokens back, by ``sharpness`` nats for
    each of its four fastest rotary frequencies (after the convolutional start of d'Ascoli et al. 2021).
    """
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=128, intermediate_size=384, num_hidden_layers=4, head_dim=32,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0, rms_norm_eps=1e-5, initializer_range=spread,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        heads = layer.self_attn
        rest = (1 - alike**2) ** 0.5
        heads.k_proj.weight.copy_(rest * heads.k_proj.weight + alike * heads.q_proj.weight)
        heads.o_proj.weight.copy_(rest * heads.o_proj.weight + alike * heads.v_proj.weight.T)
    common = nn.functional.normalize(torch.randn(config.hidden_size), dim=0)  # [d_model]
    model.model.embed_tokens.weight += spread * config.hidden_size**0.5 * common
    first, d_head = model.model.layers[0].self_attn, config.head_dim
    pairs = torch.arange(d_head // 2)
    frequency = config.rope_parameters["rope_theta"] ** (-pairs / len(pairs))
    size = torch.where(pairs < 4, (sharpness * d_head**0.5 / (config.hidden_size / 2)) ** 0.5, 0.0)
    for head in range(config.num_attention_heads):
        rows = slice(head * d_head, (head + 1) * d_head)
        query = torch.cat([size, 0 * size])  # [d_head]
        key = torch.cat([size * (head * frequency).cos(), size * (head * frequency).sin()])
        first.q_proj.weight[rows] += torch.outer(query, common)
        first.k_proj.weight[rows] += torch.outer(key, common)
    return model


class Batches:
    """Draws batches of text windows and repeated spans, half and half."""

    def __init__(self, text: Tensor, args: argparse.Namespace) -> None:
        self.text = text  # [token]
        self.args = args
        self.random = torch.Generator().manual_seed(args.seed)

    def integer(self, low: int, high: int) -> int:
        """Draw from ``low`` to ``high``, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.random))

    def window(self, length: int) -> Tensor:
        """Draw a window of the text."""
        start = self.integer(0, len(self.text) - length)
        return self.text[start : start + length]

    def repeated(self, length: int, longest: int) -> tuple[Tensor, Tensor]:
        """Draw a span of 4 to ``longest`` tokens repeated to fill ``length``; say which tokens can be foretold."""
        period = self.integer(4, longest)
        if self.integer(0, 3) == 0:
            span = self.window(period)
        else:
            span = torch.randint(0, self.args.vocabulary, (period,), generator=self.random)
        return span.repeat(-(-length // period))[:length], torch.arange(length) >= period

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """Draw the tokens and labels of one step, ``[batch pos]``; every eighth is long, half the rows begin with BOS.

        In the early steps three rows in four repeat a span, which grows from 8 to 64 tokens, and the first copy of
        the span is not trained on: its gradient is noise, and moves the embeddings faster than heads can follow.
        """
        rows, length = (4, 384) if step % 8 == 7 else (16, 96)
        early = step < self.args.early
        longest = min(8 + 56 * step // self.args.early, 64, length // 2)
        ids, labels = torch.empty(rows, length, dtype=torch.long), torch.empty(rows, length, dtype=torch.long)
        for row in range(rows):
            bos = self.integer(0, 1)
            ids[row, :bos], labels[row, :bos] = 0, -100
            if row % (4 if early else 2):
                ids[row, bos:], known = self.repeated(length - bos, longest)
                labels[row, bos:] = ids[row, bos:].where(known, -100) if early else ids[row, bos:]
            else:
                labels[row, bos:] = ids[row, bos:] = self.window(length - bos)
        return ids, labels


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Warm up, hold, then fall linearly to a fiftieth over the last third."""
    fall = args.steps * 2 // 3
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
    parser.add_argument("--steps", type=int, default=6500)
    parser.add_argument("--warmup", type=int, default=200, help="steps of rising learning rate")
    parser.add_argument(
        "--early", type=int, default=1500, help="steps of the early phase, see `Batches.draw`"
    )
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument(
        "--embedding-rate", type=float, default=0.25, help="learning rate of embeddings / of others"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--every", type=int, default=500, help="steps between figures and checkpoints")
    return parser.parse_args(argv)


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

    model = new_model(args.vocabulary)
    log.info("%d parameters", sum(p.numel() for p in model.parameters()))
    table = model.model.embed_tokens.weight
    matrices = [p for p in model.parameters() if p.ndim == 2 and p is not table]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": 0.1, "scale": 1.0},
            {"params": vectors, "weight_decay": 0.0, "scale": 1.0},
            {"params": [table], "weight_decay": 0.0, "scale": args.embedding_rate},
        ],
        betas=(0.9, 0.98),
    )
    batches, start = Batches(train, args), time.monotonic()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["scale"] * learning_rate(step, args)
        ids, labels = batches.draw(step)
        loss = model(ids, labels=labels).loss
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
    save(model, tokenizer, args.out)
    log.info("saved: %s", figures(LlamaForCausalLM.from_pretrained(args.out), held_out))


if __name__ == "__main__":
    main(sys.argv[1:])
