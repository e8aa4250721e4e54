"""Reads how a checkpoint wants to be used: pooling, Dense layers, normalisation, prompts, tokenizer.

All of it comes from the checkpoint's own sentence-transformers files, in the formats of its versions 2 to 6;
what is not declared there is an error, never a guess.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from corembed.release import Dense, Recipe, Tokenizer
from pipeline.errors import PipelineError
from pipeline.files import read_json

# Booleans of sentence-transformers 2 to 5, and the one word of version 6, to this project's names.
_LEGACY = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
POOLINGS = ("mean", "cls", "lasttoken")
_ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
}


def read_recipe(folder: Path) -> Recipe:
    """The recipe that `modules.json` declares: Transformer, Pooling, any Dense layers, Normalize, in that order."""
    path = folder / "modules.json"
    if not path.exists():
        raise PipelineError(
            f"{folder}: no modules.json, so its pooling is not declared; this is not a sentence-transformers checkpoint"
        )
    modules = [
        (m["type"].rsplit(".", 1)[-1], m["path"]) for m in sorted(read_json(path), key=lambda m: m["idx"])
    ]
    kinds = [kind for kind, _ in modules]
    dense_end = len(kinds) - (kinds[-1] == "Normalize")
    if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:dense_end]) - {"Dense"}:
        raise PipelineError(
            f"{path}: the chain {' > '.join(kinds)} is not implemented; "
            "expected Transformer > Pooling, then any Dense, then optionally Normalize"
        )
    return Recipe(
        pooling=_pooling(folder / modules[1][1] / "config.json"),
        normalize=kinds[-1] == "Normalize",
        dense=tuple(_dense(folder, place) for _, place in modules[2:dense_end]),
    )


def override(declared: Recipe, changes: Mapping[str, Any], layers: int) -> Recipe:
    """The declared recipe with the changes of a model's `recipe:` entry: `pooling`, `normalize`, `layers`.

    For vectors that an application already has: `mean_all` averages padding too, `layers: N` takes the mean of the
    last N hidden states as transformers counts them (the last one after the final norm, the others before it).
    """
    if unknown := sorted(set(changes) - {"pooling", "normalize", "layers"}):
        raise PipelineError(f"recipe: unknown setting {unknown[0]!r} (known: layers, normalize, pooling)")
    made = dataclasses.replace(declared, **changes)
    if made.pooling not in (*POOLINGS, "mean_all"):
        raise PipelineError(
            f"recipe: pooling {made.pooling!r} is not implemented; implemented is one of {', '.join(POOLINGS)}, mean_all"
        )
    if not isinstance(made.layers, int) or not 1 <= made.layers <= layers:
        raise PipelineError(f"recipe: layers {made.layers!r} must be between 1 and the model's {layers}")
    return made


def _pooling(path: Path) -> str:
    config = read_json(path)
    if not config.get("include_prompt", True):
        raise PipelineError(
            f"{path}: include_prompt is false (the prompt is left out of the pooling); not implemented"
        )
    if "pooling_mode" in config:
        declared = config["pooling_mode"]
        modes = [declared] if isinstance(declared, str) else list(declared)
    else:
        modes = [mode for key, mode in _LEGACY.items() if config.get(key)]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise PipelineError(
            f"{path}: pooling {modes or 'not declared'}; implemented is one of {', '.join(POOLINGS)}"
        )
    mode: str = modes[0]
    return mode


def _dense(folder: Path, place: str) -> Dense:
    path = folder / place / "config.json"
    config = read_json(path)
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    extra = {
        k
        for k in ("module_input_name", "module_output_name")
        if config.get(k, "sentence_embedding") not in {None, "sentence_embedding"}
    }
    if activation not in _ACTIVATIONS or config.get("use_residual") or extra:
        raise PipelineError(
            f"{path}: this Dense layer (activation {activation}, or a residual, or other inputs) is not implemented"
        )
    return Dense(
        place,
        config["in_features"],
        config["out_features"],
        config.get("bias", True),
        _ACTIVATIONS[activation],
    )


def read_prompts(folder: Path) -> tuple[dict[str, str], str | None]:
    """Prompts by name, and the name of the one applied when none is asked for."""
    path = folder / "config_sentence_transformers.json"
    config: dict[str, Any] = read_json(path) if path.exists() else {}
    return dict(config.get("prompts") or {}), config.get("default_prompt_name")


def read_tokenizer(folder: Path, rows: int, longest: int) -> Tokenizer:
    """How the checkpoint tokenizes, checked against the embedding table of `rows` rows.

    `longest` is the longest bucket: texts are cut there or at the checkpoint's own limit, whichever is smaller.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        raise PipelineError(
            f"{path} is missing: only fast tokenizers are supported; save the checkpoint with one"
        )
    tokenizer = FastTokenizer.from_file(str(path))
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if largest >= rows:
        token = tokenizer.id_to_token(largest)
        raise PipelineError(
            f"{path}: token {token!r} has id {largest}, but the embedding table has {rows} rows: "
            "the tokenizer belongs to another model"
        )
    config = (
        read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    )
    pad = config.get("pad_token")
    pad = pad.get("content") if isinstance(pad, dict) else pad
    pad_id = tokenizer.token_to_id(pad) if pad else None
    if pad_id is None:
        raise PipelineError(
            f"{folder}: padding token {pad!r} is not in the vocabulary; correct tokenizer_config.json"
        )
    sbert = folder / "sentence_bert_config.json"
    declared = read_json(sbert) if sbert.exists() else {}
    limit = declared.get("max_seq_length") or config.get("model_max_length") or longest
    return Tokenizer(
        max_length=min(int(limit), longest),
        pad_id=pad_id,
        padding=config.get("padding_side", "right"),
        lowercase=bool(declared.get("do_lower_case", False)),
        truncation=config.get("truncation_side", "right"),
    )
