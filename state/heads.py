"""Heads: what every head is for, scored by where it attends and what it copies; and which heads attend alike."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from transpector.state.errors import ModelError, SiteError, TextError
from transpector.state.interventions import Question
from transpector.state.scores import OF_ATTENTION, SCORES

if TYPE_CHECKING:
    import pandas as pd

    from transpector.state.models import Model
    from transpector.state.run import Run


DRAWN_SIDE = 12  # rows and columns of a grid for a hand to draw on

_ALONE = "The text is one token, which can only attend to itself. Add a word."
_NO_REPEAT = "No token of the text is one that occurred before. Repeat a few words."
_NO_FOLLOWER = "No token of the text occurred before with another in between. Repeat a few words."


@dataclass(frozen=True, eq=False)
class HeadScores:
    """Scores of every head, by name; NaN where not known, and then ``notes`` says why, by name of the score."""

    names: tuple[str, ...]
    values: Float[np.ndarray, "score layer head"] = field(repr=False)
    notes: Mapping[str, str]

    def __getitem__(self, name: str) -> Float[np.ndarray, "layer head"]:
        if name not in self.names:
            raise TextError(f"Score {name!r}: use one of {', '.join(self.names)}.")
        return self.values[self.names.index(name)]

    @property
    def frame(self) -> "pd.DataFrame":
        """A row a head, a column a score."""
        return _frame(dict(zip(self.names, self.values, strict=True)))

    def top(self, name: str, k: int = 5) -> list[tuple[int, int, float]]:
        """The k heads of the highest score, as (layer, head, score), best first; fewer where fewer are known."""
        frame = _best_first({name: self[name]}).dropna().head(k)
        return list(frame.itertuples(index=False, name=None))


def head_scores(run: "Run") -> HeadScores:
    """All of ``SCORES``: of the run's attention, interventions and all, and of the model's weights.

    Raises SiteError where attention can't be read; where only the weights can't, copying is NaN.
    """
    seen = attention_scores(run)
    copying, notes = _copying(run.model), dict(seen.notes)
    if isinstance(copying, str):
        notes["copying"], copying = copying, np.full_like(seen.values[0], np.nan)
    return HeadScores(tuple(SCORES), np.concatenate([seen.values, copying[None]]), notes)


def _copying(model: "Model") -> Float[np.ndarray, "layer head"] | str:
    """The score, or why there is none."""
    from transpector.state.circuits import copying

    try:
        return copying(model)
    except ModelError as error:
        return str(error)


def attention_scores(run: "Run") -> HeadScores:
    """Those of ``OF_ATTENTION``, which are there as soon as the run is. Raises SiteError if attention can't be read."""
    _check(run)
    return run.model.worker.call(lambda: _attention_scores(run))


def _attention_scores(run: "Run") -> HeadScores:
    ids = run.question.token_ids
    masks = {"duplicate_token": earlier(ids), "induction": followers(ids)}
    n_queries = {name: int(mask.any(-1).sum()) for name, mask in masks.items()}
    flat = {name: torch.from_numpy(mask).float().flatten() for name, mask in masks.items()}
    found: dict[str, list[Tensor]] = {name: [] for name in OF_ATTENTION}
    for layer in range(run.model.spec.n_layers):
        pattern = run.tensor(("pattern", layer)).float()  # [head, query, key]
        # The first query can only attend to itself, which says nothing about the head. No query has mean NaN.
        found["previous_token"].append(pattern.diagonal(-1, 1, 2).mean(-1))
        found["bos"].append(pattern[:, 1:, 0].mean(-1))
        found["current_token"].append(pattern.diagonal(0, 1, 2)[:, 1:].mean(-1))
        for name, mask in flat.items():
            # As a product of matrices: a masked copy would be as large as the pattern itself.
            found[name].append(pattern.flatten(1) @ mask.to(pattern.device) / n_queries[name])
    values = [[of_layer.cpu().numpy() for of_layer in found[name]] for name in OF_ATTENTION]
    notes = {"duplicate_token": _NO_REPEAT, "induction": _NO_FOLLOWER}
    notes = {name: why for name, why in notes.items() if not n_queries[name]}
    if run.n_pos == 1:
        notes = dict.fromkeys(OF_ATTENTION, _ALONE)
    return HeadScores(tuple(OF_ATTENTION), np.array(values, np.float32), notes)


def earlier(token_ids: Sequence[int]) -> Bool[np.ndarray, "query key"]:
    """Where the key is an earlier occurrence of the query's token."""
    ids = np.asarray(token_ids)
    return np.tril(ids[:, None] == ids, -1)


def followers(token_ids: Sequence[int]) -> Bool[np.ndarray, "query key"]:
    """Where the key came right after an earlier occurrence of the query's token, and is not the query.

    Of a token twice in a row the second did come after the first; but to attend to itself is what a head does that
    matches nothing, so that neither counts, for or against it.
    """
    # What comes round is empty: no query is after the last key.
    after = np.roll(earlier(token_ids), 1, axis=-1)
    return np.tril(after, -1)


def repeated_random(model: "Model", n: int = 24, seed: int | None = 0, bos: bool | None = None) -> Question:
    """Ordinary random tokens written twice: what a head finds in the first copy makes the second one easy.

    ``n`` tokens a copy; ``seed`` None draws anew each time; ``bos`` as in ``Model.tokenize``. Raises TextError if the
    model can't read as many.
    """
    if n < 1:
        raise TextError(f"{n} random tokens: ask for 1 or more.")
    bos = model.text.adds_bos if bos is None else bos
    first = [model.text.bos_id] if bos and model.text.bos_id is not None else []
    # A tokenizer may have more tokens than the model has rows for.
    known = [token_id for token_id in model.text.plain_ids() if token_id < model.spec.d_vocab]
    ids = np.random.default_rng(seed).choice(known, n).tolist()
    return Question(model.checked([*first, *ids, *ids]), (), bos)


def on_random(run: "Run", n: int = 24) -> "Run":
    """The run of the same interventions on random tokens written twice; waits for the worker.

    Raises InterventionError for what can't be done on another text.
    """
    text = repeated_random(run.model, n, bos=run.question.bos)
    return run.model.run(replace(text, interventions=run.interventions))


def pattern_of(cells: Iterable[tuple[int, int]], n_pos: int) -> Float[np.ndarray, "query key"]:
    """What cells (query, key) of a grid of ``drawn_side`` rows stand for on a text: 1 where attention should lie."""
    edges = np.linspace(0, n_pos, drawn_side(n_pos) + 1).round().astype(int)
    wanted = np.zeros((n_pos, n_pos), np.float32)
    for query, key in cells:
        if 0 <= key <= query < len(edges) - 1:
            wanted[edges[query] : edges[query + 1], edges[key] : edges[key + 1]] = 1
    return np.tril(wanted)


def drawn_side(n_pos: int) -> int:
    """Rows of the grid on which a pattern of so many positions is drawn."""
    return min(n_pos, DRAWN_SIDE)


def similarity(run: "Run", wanted: Float[np.ndarray, "query key"]) -> Float[np.ndarray, "layer head"]:
    """The attention that each head has in common with a pattern: sum over keys of the lesser, 0 to 1.

    Mean over the queries that are wanted to attend to anything; between two distributions it is 1 less their total
    variation distance. Raises TextError for what is no pattern on this text, SiteError if attention can't be read.
    """
    _check(run)
    wanted = _checked(wanted, run.n_pos)
    return run.model.worker.call(lambda: _similarity(run, torch.from_numpy(wanted)))


def _similarity(run: "Run", wanted: Float[Tensor, "query key"]) -> Float[np.ndarray, "layer head"]:
    n_queries = int(wanted.any(-1).sum())
    values = np.zeros((run.model.spec.n_layers, run.model.spec.n_heads), np.float32)
    for layer in range(len(values)):
        pattern = run.tensor(("pattern", layer))
        wanted = wanted.to(pattern.device)
        # Head by head, so that no second copy of the layer's attention is in memory.
        common = [torch.minimum(head.float(), wanted).sum() for head in pattern]
        values[layer] = (torch.stack(common) / n_queries).cpu().numpy()
    return values


def similar_heads(run: "Run", layer: int, head: int) -> "pd.DataFrame":
    """Every other head as layer, head and ``similarity`` to this one's attention past the first query, best first.

    Raises SiteError if there is no such head, or it attends to nothing.
    """
    own = run.pattern(layer, head)
    own[0] = 0  # as every head's: the first query can only attend to itself
    if not own.any():
        raise SiteError(f"L{layer}H{head} attends to nothing past the first token here: no head is like it.")
    frame = heads_with_pattern(run, own)
    return frame[(frame["layer"] != layer) | (frame["head"] != head)].reset_index(drop=True)


def heads_with_pattern(run: "Run", wanted: Float[np.ndarray, "query key"]) -> "pd.DataFrame":
    """Every head as layer, head and ``similarity`` to a pattern, best first: 1 where attention should lie."""
    return _best_first({"similarity": similarity(run, wanted)})


def _check(run: "Run") -> None:
    health = run.model.health
    if not health.can_read("pattern"):
        raise SiteError(f"Attention can't be read here: {health.abilities['pattern'].reason}")


def _checked(wanted: np.ndarray, n_pos: int) -> Float[np.ndarray, "query key"]:
    wanted = np.ascontiguousarray(wanted, np.float32)
    if wanted.shape != (n_pos, n_pos):
        shape = " × ".join(map(str, wanted.shape))
        raise TextError(f"The pattern is {shape}; this text has {n_pos} queries × {n_pos} keys.")
    if not np.isfinite(wanted).all() or (wanted < 0).any():
        raise TextError("The pattern holds what is below 0 or no number. Use 0 to 1, as attention does.")
    if not wanted.any():
        raise TextError("The pattern is empty: no query is wanted to attend to anything. Set a cell to 1.")
    return wanted


def _best_first(column: Mapping[str, Float[np.ndarray, "layer head"]]) -> "pd.DataFrame":
    # Of equals the first comes first.
    return _frame(column).sort_values(next(iter(column)), ascending=False, kind="stable", ignore_index=True)


def _frame(columns: Mapping[str, Float[np.ndarray, "layer head"]]) -> "pd.DataFrame":
    import pandas as pd

    layers, heads = np.indices(next(iter(columns.values())).shape)
    places = {"layer": layers.ravel(), "head": heads.ravel()}
    return pd.DataFrame(places | {name: values.ravel() for name, values in columns.items()})
