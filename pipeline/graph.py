"""The graph that is converted, in four pieces that are traced once and joined: table, mask, one layer, head.

All layers of an encoder are alike, so a model of any depth is its one traced layer, repeated with other weights.
Each piece takes and gives FP16 and is at home on the meta device; together they are the model, in eager PyTorch too.
"""

from __future__ import annotations

from collections.abc import Callable
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


class Piece(nn.Module):
    """A module whose constant tables are buffers: shapes while it is traced, values afterwards."""

    def hold(self, make: Callable[[], dict[str, Tensor]]) -> None:
        """Register buffers of the tables' shapes on the current device; `self.tables` keeps their values."""
        with torch.device("cpu"):
            tables = self.tables = make()
        for name, table in tables.items():
            self.register_buffer(name, torch.empty(table.shape), persistent=False)

    def fill(self) -> None:
        """Put the tables' values into the buffers."""
        for name, table in self.tables.items():
            setattr(self, name, table)


class Table(Piece):
    """`input_ids` (batch, length) int32 to hidden states (batch, length, hidden)."""

    def __init__(self, architecture: ModuleType, config: Any) -> None:
        super().__init__()
        self.embeddings = architecture.Embeddings(config)
        self.hold(dict)

    def forward(self, ids: Tensor) -> Tensor:
        """See the class."""
        embedded: Tensor = self.embeddings(ids)
        return embedded


class Mask(Piece):
    """`attention_mask` (batch, length) int32 to what attention adds to its scores.

    That is (batch, 1, 1, length), or whatever else the architecture makes of it.
    """

    def __init__(self, architecture: ModuleType, config: Any, length: int) -> None:
        super().__init__()
        self.hold(lambda: architecture.mask_tables(config, length) | {"one": torch.ones(1)})
        self.combine = architecture.combine

    def forward(self, attention_mask: Tensor) -> Tensor:
        """See the class."""
        additive = ((self.one - attention_mask.to(self.one.dtype)) * MASKED)[:, None, None, :]
        combined: Tensor = self.combine(additive, self)
        return combined


class Layer(Piece):
    """Hidden states (batch, length, hidden) and the mask's output to hidden states."""

    def __init__(self, architecture: ModuleType, config: Any, length: int) -> None:
        super().__init__()
        self.layer = architecture.Layer(config)
        self.hold(lambda: architecture.tables(config, length))

    def forward(self, hidden: Tensor, additive: Tensor) -> Tensor:
        """See the class."""
        dtype = next(self.layer.parameters()).dtype
        context = {name: getattr(self, name) for name in self.tables}
        changed: Tensor = self.layer(hidden.to(dtype), additive.to(dtype), context)
        return changed


class Head(Piece):
    """`attention_mask` and the last layers' hidden states to `embedding` (batch, dimension)."""

    def __init__(self, architecture: ModuleType, config: Any, recipe: Recipe, length: int) -> None:
        super().__init__()
        self.recipe, self.length = recipe, length
        self.final = architecture.Final(config)
        self.dense = nn.ModuleDict(
            {d.path: nn.Linear(d.in_features, d.out_features, bias=d.bias) for d in recipe.dense}
        )
        self.hold(lambda: {"positions": torch.arange(length, dtype=torch.float32)[None]})

    def forward(self, attention_mask: Tensor, *states: Tensor) -> Tensor:
        """`states`: what the last `recipe.layers` layers gave, the very last first."""
        last, *earlier = (state.to(self.positions.dtype) for state in states)
        hidden = self.final(last)
        if earlier:  # each is divided before the sum, which FP16 might not hold
            share = 1.0 / len(states)
            hidden = hidden * share
            for state in earlier:
                hidden = hidden + state * share
        pooled = self.pool(hidden, attention_mask.to(hidden.dtype))
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
        elif self.recipe.pooling == "mean_all":  # padding too: what an application may have stored
            weights = real * 0.0 + 1.0 / self.length
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


class Encoder(nn.Module):
    """All pieces of a model, for what needs the whole: the names of all weights, and eager PyTorch."""

    def __init__(self, architecture: ModuleType, config: Any, recipe: Recipe, length: int) -> None:
        super().__init__()
        self.table = Table(architecture, config)
        self.mask = Mask(architecture, config, length)
        self.layers = nn.ModuleList([Layer(architecture, config, length) for _ in range(config.layers)])
        self.head = Head(architecture, config, recipe, length)
        self.depth = recipe.layers

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask (batch, length) to embeddings (batch, dimension)."""
        states = [self.table(ids)]
        additive = self.mask(attention_mask)
        for layer in self.layers:
            states.append(layer(states[-1], additive))
        embedding: Tensor = self.head(attention_mask, *states[: -1 - self.depth : -1])
        return embedding


def weight_name(piece: str, parameter: str, layer: int = 0) -> str:
    """The name of a weight in the model: of a piece's own `layer.q_proj.weight`, `layers.3.q_proj.weight`."""
    return f"layers.{layer}.{parameter.removeprefix('layer.')}" if piece == "layer" else parameter


def normalize(x: Tensor) -> Tensor:
    """L2-normalise rows; dividing by the largest entry first keeps FP16's squares from overflowing."""
    scaled = x / x.abs().amax(-1, keepdim=True).clamp(2.0**-14, LARGEST)
    return scaled * torch.rsqrt((scaled * scaled).sum(-1, keepdim=True).clamp(2.0**-14, LARGEST))
