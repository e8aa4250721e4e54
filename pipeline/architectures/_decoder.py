"""The blocks of Llama-like decoders, written for the Neural Engine; `qwen3` and `llama` are made of them.

Every intermediate has rank 4 or less (a rank-5 `repeat_kv` makes the Neural Engine's compiler reject the attention),
and no head's scores reach 2^20 elements at once (from there its numbers are wrong). Sources: eeANE 2.1.0's notes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.architectures import require
from pipeline.errors import PipelineError
from pipeline.graph import LARGEST, MASKED

SCORES = 1 << 20
"""Elements of one head's score matrix from which attention goes wrong on the Neural Engine."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes of a decoder; `head_dim` is never hidden / heads."""

    layers: int
    hidden: int
    vocabulary: int
    positions: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    epsilon: float
    theta: float
    qk_norm: bool

    @property
    def group(self) -> int:
        """Query heads that share one key and value head."""
        return self.heads // self.kv_heads


def parse(config: Mapping[str, Any], *, qk_norm: bool) -> Config:
    """Sizes from config.json, in the formats of transformers 4 and 5; what is not implemented is refused."""
    require(
        config,
        hidden_act=("silu",),
        attention_bias=(False,),
        mlp_bias=(False,),
        use_sliding_window=(False,),
        rope_scaling=(None,),
    )
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise PipelineError(
            f"config.json: rope_type {rope['rope_type']!r} is not implemented (implemented: 'default')"
        )
    if sliding := set(config.get("layer_types") or ()) - {"full_attention"}:
        raise PipelineError(
            f"config.json: layers of type {sliding.pop()!r} are not implemented (implemented: 'full_attention')"
        )
    return Config(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        vocabulary=config["vocab_size"],
        positions=config["max_position_embeddings"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        intermediate=config["intermediate_size"],
        epsilon=config["rms_norm_eps"],
        theta=config.get("rope_theta") or rope["rope_theta"],
        qk_norm=qk_norm,
    )


def tables(config: Config, length: int) -> dict[str, Tensor]:
    """Rotary cosines and sines (length, 1, head_dim) (Su et al. 2021, arXiv:2104.09864)."""
    inverse = config.theta ** (-torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), inverse).repeat(1, 2)[:, None, :]
    return {"cosine": angles.cos().float(), "sine": angles.sin().float()}


def mask_tables(config: Config, length: int) -> dict[str, Tensor]:
    """The causal mask (1, 1, group x length, length): once for each query head of a group, as the rows are."""
    return {"causal": torch.full((length, length), MASKED).triu(1).repeat(config.group, 1)[None, None]}


def combine(additive: Tensor, tables: Any) -> Tensor:
    """Padding (batch, 1, 1, length) and causality in one mask, which all layers share."""
    return additive + tables.causal


class RobustNorm(nn.Module):
    """RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467) that survives any FP16 row.

    The plain form squares: from |x| = 256 on the square overflows and the result is a finite row of zeros. Dividing
    by the row's largest entry first cannot overflow; epsilon is divided by its square, or small rows come out long.
    The row itself is then scaled, not the divided one: beside a massive activation its other entries would be subnormal,
    with a few bits left (SmolLM2's worst of 256 texts: 1 - cosine of 5e-4; scaled so, 3e-5).
    """

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.root_epsilon = epsilon**0.5

    def forward(self, x: Tensor) -> Tensor:
        """Rows of any leading shape."""
        peak = x.abs().amax(-1, keepdim=True).clamp(2.0**-14, LARGEST)
        scaled = x / peak
        ratio = self.root_epsilon / peak  # squared after the division: the peak's own square would overflow
        unit = x * (torch.rsqrt((scaled * scaled).mean(-1, keepdim=True) + ratio * ratio) / peak)
        # coremltools' front end takes a Python number for a float32 and promotes what meets it; the cast back keeps
        # it from promoting the weight as well. Both casts are gone from the finished program.
        return unit.to(self.weight.dtype) * self.weight


class Embeddings(nn.Module):
    """Token ids (batch, length) to (batch, length, hidden)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocabulary, config.hidden)

    def forward(self, ids: Tensor) -> Tensor:
        """Look up."""
        return self.embed_tokens(ids)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions of (batch, length, heads, head_dim), halves paired as transformers pairs them."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine


class Layer(nn.Module):
    """One pre-norm block: grouped-query attention, then SwiGLU."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.input_layernorm = RobustNorm(config.hidden, config.epsilon)
        self.q_proj = nn.Linear(config.hidden, queries, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(config.hidden, keys, bias=False) for _ in range(2))
        self.o_proj = nn.Linear(queries, config.hidden, bias=False)
        if config.qk_norm:
            self.q_norm, self.k_norm = (RobustNorm(config.head_dim, config.epsilon) for _ in range(2))
        self.post_attention_layernorm = RobustNorm(config.hidden, config.epsilon)
        self.gate_proj, self.up_proj = (
            nn.Linear(config.hidden, config.intermediate, bias=False) for _ in range(2)
        )
        self.down_proj = nn.Linear(config.intermediate, config.hidden, bias=False)

    def forward(self, hidden: Tensor, mask: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        """Hidden states (batch, length, hidden), the mask that `combine` made, the tables."""
        hidden = hidden + self.o_proj(self.attend(self.input_layernorm(hidden), mask, context))
        x = self.post_attention_layernorm(hidden)
        return hidden + self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))

    def attend(self, x: Tensor, mask: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        """Attention (batch, length, hidden) to (batch, length, heads x head_dim)."""
        batch, length = int(x.shape[0]), int(x.shape[1])  # a bucket's sizes are constants of its graph
        config = self.config
        query = self.q_proj(x).view(batch, length, config.heads, config.head_dim)
        key = self.k_proj(x).view(batch, length, config.kv_heads, config.head_dim)
        value = self.v_proj(x).view(batch, length, config.kv_heads, config.head_dim).transpose(1, 2)
        if config.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query = rotate(query, context["cosine"], context["sine"]).transpose(1, 2)
        key = rotate(key, context["cosine"], context["sine"]).transpose(1, 2)
        # The query heads of a group become rows of one: keys and values are neither copied nor expanded to rank 5.
        rows = config.group * length
        query = query.reshape(batch, config.kv_heads, rows, config.head_dim)
        step = (SCORES - 1) // length
        if rows <= step:
            attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        else:
            cuts = [(start, min(start + step, rows)) for start in range(0, rows, step)]
            ranges = [
                functional.scaled_dot_product_attention(
                    query[:, :, a:b], key, value, attn_mask=mask[:, :, a:b]
                )
                for a, b in cuts
            ]
            attended = torch.cat(ranges, dim=2)
        attended = attended.reshape(batch, config.heads, length, config.head_dim)
        return attended.transpose(1, 2).reshape(batch, length, config.heads * config.head_dim)


class Final(nn.Module):
    """The norm after the last layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm = RobustNorm(config.hidden, config.epsilon)

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise."""
        return self.norm(hidden)


def rename(parameter: str) -> str:
    """`layers.3.q_proj.weight` to `layers.3.self_attn.q_proj.weight`, and so on."""
    head, *rest = parameter.split(".")
    if head != "layers":
        return ".".join(rest)
    index, module, kind = rest
    if module in {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"}:
        module = f"self_attn.{module}"
    elif module in {"gate_proj", "up_proj", "down_proj"}:
        module = f"mlp.{module}"
    return f"layers.{index}.{module}.{kind}"
