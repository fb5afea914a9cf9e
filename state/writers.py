"""Writers: which heads and neurons of a model write a token, by their weights and in one run."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakSet

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from transpector.state.circuits import head_outputs, token_id
from transpector.state.errors import ModelError
from transpector.state.neurons import neuron_outputs
from transpector.state.reads import attention_read, vocabulary
from transpector.state.sites import Site
from transpector.state.task import Task
from transpector.state.ways import final_divisor, outlet_divisor, ways

if TYPE_CHECKING:
    import pandas as pd

    from transpector.state.run import Run
    from transpector.state.session import Session

CHUNKS_A_TURN = 4  # of the vocabulary, before others may have their turn
N_NEURONS = 200  # that are listed


def writers(session: "Session", token: str | int) -> "Writers":
    """Begin to search all heads and neurons for those that write a token, given by its text or its id.

    Raises TextError for a text that is no single token; the search's ``result`` ModelError where nothing can be told.
    """
    session.wait()
    return Writers(session.run, token_id(session.model, token), session.tasks)


class Writers(Task):
    """A search under way, layer by layer: what is not known yet, or can't be, is NaN.

    All numbers are logits of the token, about their mean. ``heads`` [layer, head] are the most that a head adds where it
    attends to one token, the final norm's divisor left at 1, and ``sources`` the ids of those tokens; ``neurons``
    [layer, d_mlp] what a neuron adds while it is 1, likewise. ``heads_here`` and ``neurons_here`` are what they add in
    the run at the position, ``heads_at`` and ``neurons_at``, where that is furthest from zero.
    """

    noun: ClassVar = "search"

    def __init__(self, run: "Run", token: int, siblings: "WeakSet[Task]"):
        self.run, self.token = run, token
        spec = run.model.spec
        self.heads, self.heads_here = (
            np.full((spec.n_layers, spec.n_heads), np.nan, np.float32) for _ in "wh"
        )
        self.sources, self.heads_at = (np.zeros((spec.n_layers, spec.n_heads), np.int64) for _ in "sa")
        self.neurons, self.neurons_here = (
            np.full((spec.n_layers, spec.d_mlp or 0), np.nan, np.float32) for _ in "wh"
        )
        self.neurons_at = np.zeros((spec.n_layers, spec.d_mlp or 0), np.int64)
        self._layers = 0
        super().__init__(run.model, siblings)
        self._submit()

    def __repr__(self) -> str:
        return f"<Writers of {self.model.pieces([self.token])[0]!r}, {self.done} of {self.total} layers, {self.state}>"

    @property
    def done(self) -> int:
        """Layers searched."""
        return self._layers

    @property
    def total(self) -> int:
        """Layers of the model."""
        return self.model.spec.n_layers

    @property
    def frame(self) -> "pd.DataFrame":
        """Rows of every head, and of the neurons that are furthest from zero by weight or here: the largest here first.

        Columns: part, kind, layer, head, neuron, weight, source (a token), here, position.
        """
        import pandas as pd

        rows = [*self._head_rows(), *self._neuron_rows()]
        columns = ["part", "kind", "layer", "head", "neuron", "weight", "source", "here", "position"]
        frame = pd.DataFrame(rows, columns=columns).astype({"head": "Int64", "neuron": "Int64"})
        return frame.sort_values("here", key=lambda here: -here.abs(), kind="stable", ignore_index=True)

    def _head_rows(self) -> Iterator[tuple]:
        for layer, head in np.argwhere(~(np.isnan(self.heads) & np.isnan(self.heads_here))).tolist():
            at = layer, head
            source = "" if np.isnan(self.heads[at]) else self.model.pieces([int(self.sources[at])])[0]
            yield (
                str(Site("z", layer, head)),
                "head",
                layer,
                head,
                None,
                float(self.heads[at]),
                source,
                float(self.heads_here[at]),
                int(self.heads_at[at]),
            )

    def _neuron_rows(self) -> Iterator[tuple]:
        chosen = set()
        for values in (self.neurons, self.neurons_here):
            size = np.nan_to_num(np.abs(values)).ravel()
            chosen.update(at for at in np.argsort(-size, kind="stable")[:N_NEURONS].tolist() if size[at])
        for layer, neuron in (divmod(at, self.neurons.shape[1]) for at in sorted(chosen)):
            at = layer, neuron
            yield (
                str(Site("mlp_post", layer, neuron=neuron)),
                "neuron",
                layer,
                None,
                neuron,
                float(self.neurons[at]),
                "",
                float(self.neurons_here[at]),
                int(self.neurons_at[at]),
            )

    # How it is done

    def _walked(self) -> Iterator[None]:
        found = ways(self.model)
        unembedding = self.model.bridge.W_U[:, self.token].float() - found.mean
        self._towards = found.final.back(unembedding)  # [d_model]
        self._divisors = final_divisor(self.run, range(self.run.n_pos))[:, 0]
        yield
        for layer in range(self.total):
            # What an architecture hides of one is no reason to know nothing of the other.
            try:
                yield from self._search_heads(layer)
            except ModelError as error:
                reason = error
            if self.model.spec.d_mlp:
                try:
                    self._search_neurons(layer)
                except ModelError as error:
                    reason = error
            with self._changed:
                if self.is_over:
                    return
                self._layers = layer + 1
            self._tell()
            yield
        if np.isnan(self.heads).all() and np.isnan(self.neurons).all():
            raise reason

    def _search_heads(self, layer: int) -> Iterator[None]:
        read = attention_read(self.model, layer)
        values = head_outputs(self.model, layer) @ self._towards  # [head, d_head]
        directions = (read.weights("W_V") @ values[..., None])[..., 0]  # [head, d_model]
        best = torch.full((len(values),), -torch.inf, device=values.device)
        source = torch.zeros(len(values), dtype=torch.long, device=values.device)
        for n, (some, streams) in enumerate(vocabulary(self.model)):
            most = (read.moved(streams) @ directions.T).max(0)
            source = torch.where(most.values > best, most.indices + some.start, source)
            best = torch.maximum(best, most.values)
            if n % CHUNKS_A_TURN == CHUNKS_A_TURN - 1:
                yield
        z = self.run.tensor(("z", layer)).float()
        here, at = _furthest(torch.einsum("phd,hd->ph", z, values) / self._scales("z", layer)[:, None])
        self._keep(layer, heads=best, sources=source, heads_here=here, heads_at=at)

    def _search_neurons(self, layer: int) -> None:
        values = neuron_outputs(self.model, layer) @ self._towards  # [d_mlp]
        post = self.run.tensor(("mlp_post", layer)).float()
        here, at = _furthest(post * values / self._scales("mlp_post", layer)[:, None])
        self._keep(layer, neurons=values, neurons_here=here, neurons_at=at)

    def _keep(self, layer: int, **found: Tensor) -> None:
        """Have what was found of a layer known, unless the search was given up meanwhile."""
        with self._changed:
            if not self.is_over:
                for name, values in found.items():
                    getattr(self, name)[layer] = values.cpu().numpy()

    def _scales(self, kind: str, layer: int) -> Float[Tensor, " pos"]:
        """What divides everything that a projection adds at each position before it is a logit."""
        return outlet_divisor(self.run, kind, layer, range(self.run.n_pos))[:, 0] * self._divisors


def _furthest(values: Float[Tensor, "pos unit"]) -> tuple[Float[Tensor, " unit"], Int[Tensor, " unit"]]:
    """Of each unit the value that is furthest from zero, and where it is."""
    at = values.abs().argmax(0)
    return values.gather(0, at[None])[0], at
