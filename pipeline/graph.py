"""The graph that is converted: an encoder, whole or cut at layer borders, with its pooling."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from corembed.release import Recipe

MASKED = -1e4
"""Added to the scores of masked positions: exact in FP16, where float32's minimum would become -inf and a fully
masked row NaN."""

LARGEST = 65504.0
"""FP16's largest number: the upper bound of a clamp, which would otherwise become an infinite constant."""

_ACTIVATIONS = {
    "identity": lambda x: x,
    "tanh": torch.tanh,
    "gelu": functional.gelu,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
}


@dataclasses.dataclass(frozen=True)
class Span:
    """Layers `start` to `stop` of an encoder, with its embeddings if `first`, with pooling if `last`."""

    start: int
    stop: int
    first: bool
    last: bool


class Part(nn.Module):
    """A span of an encoder as one graph.

    Inputs: `input_ids` (batch, length) int32 for the first part, `hidden` (batch, length, hidden) for others;
    `attention_mask` (batch, length) int32. Output: `embedding` (batch, dimension) for the last part, `hidden`
    for others.
    """

    def __init__(
        self, architecture: ModuleType, config: Any, recipe: Recipe, span: Span, length: int
    ) -> None:
        super().__init__()
        self.span, self.recipe = span, recipe
        if span.first:
            self.embeddings = architecture.Embeddings(config)
        self.layers = nn.ModuleDict(
            {str(i): architecture.Layer(config, i) for i in range(span.start, span.stop)}
        )
        if span.last:
            self.final = architecture.Final(config)
            self.dense = nn.ModuleDict(
                {d.path: nn.Linear(d.in_features, d.out_features, bias=d.bias) for d in recipe.dense}
            )
        self._tables = lambda: (
            architecture.tables(config, length)
            | {"positions": torch.arange(length, dtype=torch.float32)[None]}
        )
        with torch.device("cpu"):
            shapes = {name: table.shape for name, table in self._tables().items()}
        for name, shape in shapes.items():
            self.register_buffer(name, torch.empty(shape), persistent=False)
        self.shared = [name for name in shapes if name != "positions"]

    def tables(self) -> dict[str, Tensor]:
        """The values of the buffers, which are traced without them."""
        tables: dict[str, Tensor] = self._tables()
        return tables

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        """See the class."""
        hidden = self.embeddings(x) if self.span.first else x.to(self.positions.dtype)
        real = attention_mask.to(hidden.dtype)
        additive = ((1.0 - real) * MASKED)[:, None, None, :]
        context = {name: getattr(self, name) for name in self.shared}
        for layer in self.layers.values():
            hidden = layer(hidden, additive, context)
        if not self.span.last:
            return hidden
        pooled = self.pool(self.final(hidden), real)
        for dense in self.recipe.dense:
            pooled = _ACTIVATIONS[dense.activation](self.dense[dense.path](pooled))
        return normalize(pooled) if self.recipe.normalize else pooled

    def pool(self, hidden: Tensor, real: Tensor) -> Tensor:
        """(batch, length, hidden) to (batch, hidden): each kind of pooling is one row of weights.

        `real` (batch, length) is 1 for a token and 0 for padding, on whichever side it stands. Positions count
        exactly in FP16 up to 2,048.
        """
        if self.recipe.pooling == "mean":
            weights = real / real.sum(1, keepdim=True).clamp(1.0, LARGEST)
        else:
            count = (
                self.positions
                if self.recipe.pooling == "lasttoken"
                else self.positions.shape[1] - self.positions
            )
            chosen = (real * count).amax(
                1, keepdim=True
            )  # the last real position; counted backwards: the first
            weights = (count == chosen).to(hidden.dtype)
        return torch.matmul(weights[:, None, :], hidden)[:, 0]


def normalize(x: Tensor) -> Tensor:
    """L2-normalise rows; dividing by the largest entry first keeps FP16's squares from overflowing."""
    scaled = x / x.abs().amax(-1, keepdim=True).clamp(2.0**-14, LARGEST)
    return scaled * torch.rsqrt((scaled * scaled).sum(-1, keepdim=True).clamp(2.0**-14, LARGEST))
