"""Encoders written for conversion. The file's name is the `model_type` of config.json: adding one adds a file.

Each module defines the same names:

- `Config`, a frozen dataclass made by `parse(config)` from config.json, which refuses what is not implemented;
  it has `layers`, `hidden`, `vocabulary` and `positions`;
- `Embeddings(config)`: token ids (batch, length) to hidden states (batch, length, hidden);
- `Layer(config)`: hidden states, the combined mask and the tables to hidden states; all layers are alike, so that
  one is traced for all;
- `Final(config)`: what follows the last layer;
- `tables(config, length)`: constants of a bucket that a layer needs (rotary positions);
- `combine(additive, tables)`: the mask that all layers share, of the padding mask (batch, 1, 1, length) and the
  `mask_tables(config, length)` (a causal mask);
- `PREFIXES`: prefixes that checkpoints put before the weights' names;
- `rename(parameter)`: a parameter's name in the checkpoint.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from pipeline.errors import PipelineError


def names() -> list[str]:
    """All implemented architectures, by `model_type`."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def find(config: Mapping[str, Any]) -> ModuleType:
    """The module for a checkpoint's config.json."""
    kind = str(config.get("model_type"))
    if kind not in names():
        raise PipelineError(
            f"config.json: no architecture for model_type {kind!r} (there is: {', '.join(names())}); "
            "CONTRIBUTING.md says how to add one"
        )
    return importlib.import_module(f"{__name__}.{kind}")


def require(config: Mapping[str, Any], **expected: tuple[Any, ...]) -> None:
    """Refuse a configuration whose settings are other than the implemented ones."""
    for key, allowed in expected.items():
        if config.get(key, allowed[0]) not in allowed:
            raise PipelineError(
                f"config.json: {key} = {config[key]!r} is not implemented for {config.get('model_type')} "
                f"(implemented: {', '.join(map(repr, allowed))})"
            )
