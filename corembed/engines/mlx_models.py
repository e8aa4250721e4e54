"""Encoders in MLX, from a checkpoint's own tensors: BERT, and decoders of the Llama kind (Llama, Qwen3).

`encoder(config, tensors)` gives a function from ids and mask, int32 (batch, length), to hidden states
(batch, length, hidden) after the last norm. A configuration that it does not know to the letter is refused.
Masks are added as -1e4 rather than infinity: a row of nothing but padding then stays finite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
from mlx import nn

from corembed.errors import EngineError

Tensors = Mapping[str, Any]
Encoder = Callable[[Any, Any], Any]

MASKED = -1e4
_ACTIVATIONS = {
    "tanh": "tanh",
    "gelu": "gelu",
    "relu": "relu",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "gelu_new": "gelu_approx",
}
"""Names in configurations and recipes to those of `mlx.nn`."""


def encoder(config: Mapping[str, Any], tensors: Tensors) -> Encoder:
    """The encoder of a `config.json`; `EngineError` where its model or one of its settings is not implemented."""
    kind = config.get("model_type")
    makers: dict[str, Callable[[Mapping[str, Any], Tensors], Encoder]] = {
        "bert": Bert,
        "llama": Decoder,
        "qwen3": Decoder,
    }
    if not isinstance(kind, str) or kind not in makers:
        raise EngineError(f"model type {kind!r} is not implemented in MLX here; {', '.join(makers)} are")
    return makers[kind](config, _without_prefix(tensors))


def _without_prefix(tensors: Tensors) -> dict[str, Any]:
    return {name.removeprefix("model.").removeprefix("bert."): value for name, value in tensors.items()}


def _linear(x: Any, tensors: Tensors, name: str) -> Any:
    bias = tensors.get(f"{name}.bias")
    weight = tensors[f"{name}.weight"].T
    return x @ weight if bias is None else mx.addmm(bias, x, weight)


def _split(x: Any, heads: int) -> Any:
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).transpose(0, 2, 1, 3)


def _merge(x: Any) -> Any:
    batch, heads, length, width = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, length, heads * width)


def _require(config: Mapping[str, Any], **allowed: Any) -> None:
    for name, value in allowed.items():
        if config.get(name, value) not in {value, None}:
            raise EngineError(
                f"config.json: {name}={config[name]!r} is not implemented in MLX here, only {value!r}"
            )


def _activation(name: str) -> Callable[[Any], Any]:
    if name == "identity":
        return lambda x: x
    if name not in _ACTIVATIONS:
        raise EngineError(f"activation {name!r} is not implemented in MLX here")
    function: Callable[[Any], Any] = getattr(nn, _ACTIVATIONS[name])
    return function


class Bert:
    """Devlin et al. 2018: absolute positions, norms after each block."""

    def __init__(self, config: Mapping[str, Any], tensors: Tensors) -> None:
        _require(config, position_embedding_type="absolute", is_decoder=False)
        self.tensors, self.layers, self.heads = (
            tensors,
            config["num_hidden_layers"],
            config["num_attention_heads"],
        )
        self.eps, self.act = (
            config.get("layer_norm_eps", 1e-12),
            _activation(config.get("hidden_act", "gelu")),
        )

    def __call__(self, ids: Any, mask: Any) -> Any:
        """Ids and mask to hidden states."""
        t = self.tensors
        words = t["embeddings.word_embeddings.weight"][ids]
        positions = t["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = words + positions + t["embeddings.token_type_embeddings.weight"][0]
        x = self._norm(x, "embeddings.LayerNorm")
        hidden = ((1 - mask)[:, None, None, :] * MASKED).astype(x.dtype)
        for index in range(self.layers):
            x = self._layer(x, hidden, f"encoder.layer.{index}")
        return x

    def _norm(self, x: Any, name: str) -> Any:
        return mx.fast.layer_norm(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], self.eps)

    def _layer(self, x: Any, mask: Any, name: str) -> Any:
        t = self.tensors
        q, k, v = (
            _split(_linear(x, t, f"{name}.attention.self.{part}"), self.heads)
            for part in ("query", "key", "value")
        )
        mixed = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)
        x = self._norm(
            x + _linear(_merge(mixed), t, f"{name}.attention.output.dense"),
            f"{name}.attention.output.LayerNorm",
        )
        inner = self.act(_linear(x, t, f"{name}.intermediate.dense"))
        return self._norm(x + _linear(inner, t, f"{name}.output.dense"), f"{name}.output.LayerNorm")


class Decoder:
    """Llama and Qwen3: rotary positions, grouped queries, gated MLP, norms before each block.

    Qwen3 also norms each head of queries and keys (its technical report, section 2); the tensors say so.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Tensors) -> None:
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise EngineError(
                f"config.json: rotary positions of type {kind!r} are not implemented in MLX here"
            )
        _require(config, use_sliding_window=False, pretraining_tp=1)
        self.tensors, self.layers = tensors, config["num_hidden_layers"]
        self.heads, self.groups = config["num_attention_heads"], config["num_key_value_heads"]
        self.base = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
        self.eps, self.act = config["rms_norm_eps"], _activation(config.get("hidden_act", "silu"))

    def __call__(self, ids: Any, mask: Any) -> Any:
        """Ids and mask to hidden states. Positions count from the row's start: only their differences matter."""
        x = self.tensors["embed_tokens.weight"][ids]
        order = mx.arange(ids.shape[1])
        seen = (order[None, :] <= order[:, None])[None, None] & (mask[:, None, None, :] > 0)
        bias = mx.where(seen, 0.0, MASKED).astype(x.dtype)
        for index in range(self.layers):
            x = self._layer(x, bias, f"layers.{index}")
        return self._norm(x, "norm")

    def _norm(self, x: Any, name: str) -> Any:
        return mx.fast.rms_norm(x, self.tensors[f"{name}.weight"], self.eps)

    def _rotated(self, x: Any, name: str) -> Any:
        if f"{name}.weight" in self.tensors:
            x = self._norm(x, name)
        return mx.fast.rope(x, x.shape[-1], traditional=False, base=self.base, scale=1.0, offset=0)

    def _layer(self, x: Any, mask: Any, name: str) -> Any:
        t, attention = self.tensors, f"{name}.self_attn"
        inner = self._norm(x, f"{name}.input_layernorm")
        q = self._rotated(_split(_linear(inner, t, f"{attention}.q_proj"), self.heads), f"{attention}.q_norm")
        k = self._rotated(
            _split(_linear(inner, t, f"{attention}.k_proj"), self.groups), f"{attention}.k_norm"
        )
        v = _split(_linear(inner, t, f"{attention}.v_proj"), self.groups)
        mixed = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)
        x = x + _linear(_merge(mixed), t, f"{attention}.o_proj")
        inner = self._norm(x, f"{name}.post_attention_layernorm")
        gated = self.act(_linear(inner, t, f"{name}.mlp.gate_proj")) * _linear(
            inner, t, f"{name}.mlp.up_proj"
        )
        return x + _linear(gated, t, f"{name}.mlp.down_proj")


def pool(hidden: Any, mask: Any, kind: str) -> Any:
    """Hidden states (batch, length, hidden) to (batch, hidden), as sentence-transformers' Pooling does."""
    if kind == "mean":
        there = mask[:, :, None].astype(hidden.dtype)
        return (hidden * there).sum(1) / mx.maximum(there.sum(1), 1e-9)
    order = mx.arange(mask.shape[1])[None, :]
    if kind == "cls":
        places = mx.argmax(mask, axis=1)
    elif kind == "lasttoken":
        places = mx.argmax(mask * (order + 1), axis=1)
    else:
        raise EngineError(f"pooling {kind!r} is not implemented in MLX here")
    return mx.take_along_axis(hidden, places[:, None, None], axis=1)[:, 0]


def dense(x: Any, tensors: Tensors, activation: str) -> Any:
    """A Dense layer after the pooling."""
    return _activation(activation)(_linear(x, tensors, "linear"))
