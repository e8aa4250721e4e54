"""Qwen3 and Qwen3-Embedding (arXiv:2506.05176): a Llama-like decoder with a norm on each query and key head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.architectures import _decoder
from pipeline.architectures._decoder import (
    Config,
    Embeddings,
    Final,
    Layer,
    combine,
    mask_tables,
    rename,
    tables,
)

__all__ = [
    "PREFIXES",
    "Config",
    "Embeddings",
    "Final",
    "Layer",
    "combine",
    "mask_tables",
    "parse",
    "rename",
    "tables",
]

PREFIXES = ("", "model.")


def parse(config: Mapping[str, Any]) -> Config:
    """Sizes from config.json."""
    return _decoder.parse(config, qk_norm=True)
