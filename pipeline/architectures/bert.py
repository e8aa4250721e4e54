"""BERT: MiniLM, E5, BGE, GTE and others of that family (Devlin et al. 2019, arXiv:1810.04805)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.architectures import require

PREFIXES = ("", "bert.")

_ACTIVATIONS = {
    "gelu": "none",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
}

SMALLEST_EPSILON = 2.0**-24
"""FP16's smallest positive number: a smaller epsilon (MiniLM's 1e-12) would become zero in the graph, and a
constant row would divide by it."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes of a BERT encoder."""

    layers: int
    hidden: int
    vocabulary: int
    positions: int
    heads: int
    intermediate: int
    types: int
    epsilon: float
    activation: str


def parse(config: Mapping[str, Any]) -> Config:
    """Sizes from config.json; relative positions, decoders and other activations are refused."""
    require(
        config,
        position_embedding_type=("absolute",),
        is_decoder=(False,),
        add_cross_attention=(False,),
        hidden_act=tuple(_ACTIVATIONS),
    )
    return Config(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        vocabulary=config["vocab_size"],
        positions=config["max_position_embeddings"],
        heads=config["num_attention_heads"],
        intermediate=config["intermediate_size"],
        types=config.get("type_vocab_size", 2),
        epsilon=max(config.get("layer_norm_eps", 1e-12), SMALLEST_EPSILON),
        activation=_ACTIVATIONS[config.get("hidden_act", "gelu")],
    )


def tables(config: Config, length: int) -> dict[str, Tensor]:
    """None: positions are weights."""
    del config, length
    return {}


mask_tables = tables


def combine(additive: Tensor, tables: Any) -> Tensor:
    """Padding (batch, 1, 1, length) is all there is to mask."""
    del tables
    return additive


class Embeddings(nn.Module):
    """Token ids (batch, length) to (batch, length, hidden)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocabulary, config.hidden)
        # Tables that are sliced, not looked up: one blob then serves every bucket.
        self.position_embeddings = nn.Parameter(torch.empty(config.positions, config.hidden))
        self.token_type_embeddings = nn.Parameter(torch.empty(config.types, config.hidden))
        self.LayerNorm = nn.LayerNorm(config.hidden, eps=config.epsilon)

    def forward(self, ids: Tensor) -> Tensor:
        """Add token, position and first-type vectors, and normalise."""
        positions = self.position_embeddings[: ids.shape[1]]
        return self.LayerNorm(self.word_embeddings(ids) + positions + self.token_type_embeddings[:1])


class Layer(nn.Module):
    """One transformer block with the norms after the residuals."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, self.activation = config.heads, config.activation
        hidden = config.hidden
        self.query, self.key, self.value, self.attention_output = (
            nn.Linear(hidden, hidden) for _ in range(4)
        )
        self.attention_norm = nn.LayerNorm(hidden, eps=config.epsilon)
        self.intermediate = nn.Linear(hidden, config.intermediate)
        self.output = nn.Linear(config.intermediate, hidden)
        self.output_norm = nn.LayerNorm(hidden, eps=config.epsilon)

    def forward(self, hidden: Tensor, mask: Tensor, _: Mapping[str, Tensor]) -> Tensor:
        """Hidden states (batch, length, hidden), additive mask (batch, 1, 1, length)."""
        batch, length, width = hidden.shape

        def split(x: Tensor) -> Tensor:
            return x.view(batch, length, self.heads, width // self.heads).transpose(1, 2)

        query, key, value = (split(f(hidden)) for f in (self.query, self.key, self.value))
        # Without `scale=`: that is what coremltools turns into one fused operation.
        # Below iOS 18 coremltools adds the mask itself and wants one type; the cast is gone from the finished program.
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask.to(query.dtype))
        attended = attended.transpose(1, 2).reshape(batch, length, width)
        hidden = self.attention_norm(hidden + self.attention_output(attended))
        expanded = functional.gelu(self.intermediate(hidden), approximate=self.activation)
        return self.output_norm(hidden + self.output(expanded))


class Final(nn.Identity):
    """BERT ends with its last layer's norm."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)  # Identity takes and ignores arguments


_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
}


def rename(parameter: str) -> str:
    """`layers.3.query.weight` to `encoder.layer.3.attention.self.query.weight`, and so on."""
    head, *rest = parameter.split(".")
    if head == "layers":
        index, module, kind = rest
        return f"encoder.layer.{index}.{_NAMES[module]}.{kind}"
    if rest[-1] in {"position_embeddings", "token_type_embeddings"}:
        return f"embeddings.{rest[-1]}.weight"
    return parameter
