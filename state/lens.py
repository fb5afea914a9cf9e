"""Lens: what the residual stream before each layer would predict, read by the model's own final norm and unembedding."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from transpector.state.errors import Cancelled, ModelError, SiteError
from transpector.state.health import TOLERANCE
from transpector.state.wiring import LAST_RESID

if TYPE_CHECKING:
    import pandas as pd

    from transpector.state.run import Run
    from transpector.state.tokens import Tokens

MAX_BYTES = 25e6  # of logits at a time; others have their turn in between
WIDTH = 256  # neighbouring tokens of which only the best is looked at first

Cell = tuple[int, int]
"""A place of the lens: its row and its column."""


@dataclass(frozen=True, eq=False)
class Lens:
    """What each residual stream would predict at each position, the k likeliest tokens first.

    ``layers`` are the rows: the stream before that layer or, where it is the number of layers, the model's own
    output. ``entropy`` and ``divergence`` are in nats; the latter is KL(the model's output || this). ``chosen`` is
    the token that was asked after, ``chosen_rank`` how many tokens are likelier; None if there is none.
    """

    layers: tuple[int, ...]
    positions: tuple[int, ...]
    token_ids: Int[np.ndarray, "layer pos k"]
    probabilities: Float[np.ndarray, "layer pos k"]
    entropy: Float[np.ndarray, "layer pos"]
    divergence: Float[np.ndarray, "layer pos"]
    chosen: int | None
    chosen_probability: Float[np.ndarray, "layer pos"] | None
    chosen_rank: Int[np.ndarray, "layer pos"] | None
    text: "Tokens" = field(repr=False)

    axes: ClassVar[tuple[str, ...]] = ("layer", "pos", "k")

    @property
    def tokens(self) -> np.ndarray:
        """The tokens as strings, axes as those of ``token_ids``; an array of objects."""
        pieces = self.text.pieces(self.token_ids.ravel().tolist())
        return np.array(pieces, object).reshape(self.token_ids.shape)

    @property
    def frame(self) -> "pd.DataFrame":
        """A row a layer and position: the likeliest token and its probability, and what else is known there."""
        import pandas as pd

        layers, positions = np.meshgrid(self.layers, self.positions, indexing="ij")
        columns = {
            "layer": layers.ravel(),
            "pos": positions.ravel(),
            "token": self.tokens[..., 0].ravel(),
            "probability": self.probabilities[..., 0].ravel(),
            "entropy": self.entropy.ravel(),
            "divergence": self.divergence.ravel(),
        }
        if self.chosen is not None:
            columns |= {
                "chosen": self.text.pieces([self.chosen]) * layers.size,
                "chosen_probability": self.chosen_probability.ravel(),
                "chosen_rank": self.chosen_rank.ravel(),
            }
        return pd.DataFrame(columns)


def lens(
    run: "Run",
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    k: int = 5,
    token: str | int | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Lens:
    """Read each layer's residual stream as if it were the last: the logit lens, nostalgebraist 2020.

    Rows are all layers and the model's output, and columns all positions, unless named; ``token`` is a text of one
    token or an id. The streams are as they were after the run's interventions, and everything is computed in float32.
    Waits for the worker, where others have their turn every ``MAX_BYTES`` of logits; ``cancelled`` is asked as
    often. Raises SiteError, TextError, ModelError where the architecture has no such reading, or Cancelled.
    """
    reading = _Reading(run, _rows(run, layers), _columns(run, positions), k, _token_id(run, token))
    for some in reading.chunks():
        if cancelled():
            raise Cancelled
        run.model.worker.call(lambda some=some: reading.read(some))
    return reading.lens()


def _rows(run: "Run", layers: Sequence[int] | None) -> tuple[int, ...]:
    n_layers = run.model.spec.n_layers
    rows = tuple(range(n_layers + 1) if layers is None else map(int, layers))
    for layer in rows:
        if not 0 <= layer <= n_layers:
            raise SiteError(
                f"Layer {layer}: the lens of this model has rows 0 to {n_layers - 1} for the streams before its "
                f"layers, and {n_layers} for its output."
            )
    return rows


def _columns(run: "Run", positions: Sequence[int] | None) -> tuple[int, ...]:
    positions = range(run.n_pos) if positions is None else positions
    return tuple(run.at(int(position)) % run.n_pos for position in positions)


def _token_id(run: "Run", token: str | int | None) -> int | None:
    if token is None:
        return None
    return run.model.text.token_id(token) if isinstance(token, str) else run.model.checked([token])[0]


class _Reading:
    """A lens in the making; to be read on the worker, a chunk of its cells at a time."""

    def __init__(
        self, run: "Run", layers: tuple[int, ...], positions: tuple[int, ...], k: int, chosen: int | None
    ):
        self.run, self.layers, self.positions, self.chosen = run, layers, positions, chosen
        self.d_vocab = run.logits.shape[-1]  # known from here on
        self.k = min(max(1, k), self.d_vocab)
        shape = len(layers), len(positions)
        self.token_ids = np.zeros((*shape, self.k), np.int64)
        self.probabilities = np.zeros((*shape, self.k), np.float32)
        self.entropy, self.divergence, self.chosen_probability = (
            np.zeros(shape, np.float32) for _ in range(3)
        )
        self.chosen_rank = np.zeros(shape, np.int64)
        if any(map(self._is_inner, range(len(layers)))):
            _check(run)

    def chunks(self) -> Iterator[list[Cell]]:
        """The cells, as many at a time as the memory is for; those of a position together, which share its output."""
        n = max(1, int(MAX_BYTES // (4 * self.d_vocab)))
        cells = [(row, column) for column in range(len(self.positions)) for row in range(len(self.layers))]
        return (cells[at : at + n] for at in range(0, len(cells), n))

    @torch.no_grad()
    def read(self, cells: list[Cell]) -> None:
        """Fill in some cells."""
        inner = [cell for cell in cells if self._is_inner(cell[0])]
        logits = _closed(self.run, [self._stream(*cell) for cell in inner]) if inner else None
        for column, together in groupby(cells, lambda cell: cell[1]):
            rows = [row for row, _ in together]
            output = self.run.log_probs(self.positions[column])
            last = [row for row in rows if not self._is_inner(row)]
            if last:  # by the same steps as Run.next_tokens, so that the two never differ
                own = output.expand(len(last), -1)
                best, ids = own.topk(self.k)
                self._tell(last, column, output, own, own.exp(), best.exp(), ids)
            rows = [row for row in rows if self._is_inner(row)]
            if rows:
                some, logits = logits[: len(rows)], logits[len(rows) :]
                self._tell(rows, column, output, *_probabilities(some.float(), self.k))

    def lens(self) -> Lens:
        """What was read."""
        chosen = (None, None, None)
        if self.chosen is not None:
            chosen = self.chosen, self.chosen_probability, self.chosen_rank
        return Lens(
            self.layers,
            self.positions,
            self.token_ids,
            self.probabilities,
            self.entropy,
            self.divergence,
            *chosen,
            self.run.model.text,
        )

    def _is_inner(self, row: int) -> bool:
        """Whether a row is no output of the model."""
        return self.layers[row] < self.run.model.spec.n_layers

    def _stream(self, row: int, column: int) -> Float[Tensor, " d_model"]:
        return self.run.tensor(("resid_pre", self.layers[row]))[self.positions[column]]

    def _tell(
        self,
        rows: list[int],
        column: int,
        output: Float[Tensor, " d_vocab"],
        log_p: Float[Tensor, "row d_vocab"],
        p: Float[Tensor, "row d_vocab"],
        best: Float[Tensor, "row k"],
        ids: Int[Tensor, "row k"],
    ) -> None:
        """Fill in some rows of a column, where ``output`` are the model's own log-probabilities; ``p`` is used up."""
        self.token_ids[rows, column] = ids.cpu().numpy()
        self.probabilities[rows, column] = best.cpu().numpy()
        self.entropy[rows, column] = p.mul_(log_p).sum(-1).neg().clamp(min=0).cpu().numpy()
        # Summed, not multiplied as matrices: over a whole vocabulary that is a hundred times less exact. Unlike its
        # exponential, the softmax of log-probabilities adds up to one.
        divergence = torch.sub(output, log_p, out=p).mul_(output.softmax(-1)).sum(-1)
        self.divergence[rows, column] = divergence.clamp(min=0).cpu().numpy()
        if self.chosen is not None:
            own = log_p[:, self.chosen, None]
            self.chosen_probability[rows, column] = own[:, 0].exp().cpu().numpy()
            # Ones are summed ten times as quickly as truth values.
            self.chosen_rank[rows, column] = torch.gt(log_p, own, out=p).sum(-1).long().cpu().numpy()


def _probabilities(logits: Float[Tensor, "row d_vocab"], k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities, written over the logits, and probabilities; the k largest of these, and their places.

    A log-softmax in half the time: what it subtracts is known from one token's logit and probability.
    """
    highest, ids = _topk(logits, k)
    p = logits.softmax(-1)
    best = p.gather(1, ids)
    return logits.sub_(highest[:, :1] - best[:, :1].log()), p, best, ids


def _closed(run: "Run", streams: Iterable[Float[Tensor, " d_model"]]) -> Float[Tensor, "row d_vocab"]:
    # A text each: as positions of one they might be more than the model reads.
    return run.model.stack.close(torch.stack(list(streams))[:, None])[:, 0]


def _topk(values: Float[Tensor, "row d_vocab"], k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their places, as torch.topk gives them, in an eighth of its time.

    Each lies among those ``WIDTH`` neighbours whose own largest is among the k largest of all neighbourhoods.
    """
    n = values.shape[-1] // WIDTH
    if n <= k:
        return values.topk(k)
    whole = values[:, : n * WIDTH].unflatten(-1, (n, WIDTH))
    best = whole.amax(-1).topk(k).indices
    places = (best[..., None] * WIDTH + torch.arange(WIDTH, device=values.device)).flatten(1)
    rest = torch.arange(n * WIDTH, values.shape[-1], device=values.device)
    places = torch.cat([places, rest.expand(len(values), -1)], 1)
    found = values.gather(1, places).topk(k)
    return found.values, places.gather(1, found.indices)


def _check(run: "Run") -> None:
    """Raise if the streams can't be read, or what is made of the last one is not the model's output."""
    model = run.model
    if not model.health.can_read("resid_pre"):
        raise SiteError(
            f"The residual stream can't be read here: {model.health.abilities['resid_pre'].reason}"
        )
    if model.wiring.by_layer:  # the self-test has found it right
        return
    own = run.logits[-1:].float()
    read = model.worker.call(lambda: _closed(run, [run.tensor(LAST_RESID)[-1]])).float()
    if (read - own).abs().max() > TOLERANCE[model.spec.dtype] * max(1.0, float(own.abs().max())):
        raise ModelError(
            "This architecture has no lens: after its blocks it does more than norm and unembed the residual stream."
        )
