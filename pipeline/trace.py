"""Stage `trace`: what does the checkpoint's model look like as a Core ML program, and what should it answer?

From `checkpoint/`, writes

- `traced/`: for each bucket the MIL programs, without weights, of the pieces that packages are joined from (table,
  mask, one layer, head), and `trace.json`, which names the tensor of the checkpoint for each weight (not shared
  between machines: it is made again in seconds);
- `reference/`: what later machines need instead of the checkpoint: config and tokenizer files, `reference.json`
  (recipe, dimension, prompts) and the official implementation's embeddings of the parity texts.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.numpy import save_file
from torch import nn
from tqdm import tqdm

from corembed.release import Function, Recipe, Tokenizer
from pipeline import architectures, params, places
from pipeline.checkpoint import Checkpoint, Tensor
from pipeline.errors import PipelineError, run
from pipeline.files import link, read_json, staged_folder, write_json
from pipeline.graph import Head, Layer, Mask, Piece, Table, weight_name
from pipeline.recipe import override, read_prompts, read_recipe, read_tokenizer
from pipeline.skeleton import Input, skeleton

SMALL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint as far as its small files tell: architecture, sizes, recipe."""

    folder: Path
    architecture: ModuleType
    config: Any
    recipe: Recipe

    @property
    def dimension(self) -> int:
        """Width of an embedding."""
        width: int = self.recipe.dense[-1].out_features if self.recipe.dense else self.config.hidden
        return width


def open_source(folder: Path, recipe: Mapping[str, Any] | None = None) -> Source:
    """Read the small files of a checkpoint; nothing is known of its weights yet.

    `recipe` overrides what the checkpoint declares; see `pipeline.recipe.override`.
    """
    path = folder / "config.json"
    if not path.exists():
        raise PipelineError(f"{folder}: no config.json; this is not a transformers checkpoint")
    raw = read_json(path)
    architecture = architectures.find(raw)
    config = architecture.parse(raw)
    declared = override(read_recipe(folder), recipe or {}, config.layers)
    return Source(folder, architecture, config, declared)


def functions(max_lengths: tuple[int, ...], batches: tuple[int, ...] = (1,)) -> tuple[Function, ...]:
    """One function a bucket and batch, the shortest with one text first: clients that know no functions get it.

    A single one is called `main`, as such clients expect.
    """
    if len(max_lengths) == len(batches) == 1:
        return (Function("main", batches[0], max_lengths[0]),)
    return tuple(
        Function(f"length_{n}" + (f"_batch_{batch}" if batch > 1 else ""), batch, n)
        for batch in sorted(batches)
        for n in max_lengths
    )


def weight_kind(module: nn.Module, parameter: str) -> str:
    """`linear`, `embedding` or `other`: what a variant's settings distinguish."""
    *path, leaf = parameter.split(".")
    owner: Any = module
    for step in path:
        owner = getattr(owner, step) if not isinstance(owner, nn.ModuleDict) else owner[step]
    if leaf == "weight" and isinstance(owner, nn.Linear):
        return "linear"
    return "embedding" if leaf == "weight" and isinstance(owner, nn.Embedding) else "other"


def find_tensor(source: Source, checkpoint: Checkpoint, parameter: str, shape: tuple[int, ...]) -> Tensor:
    """The checkpoint's tensor for a parameter of the graph, shape and type checked."""
    if parameter.startswith("dense."):
        place, kind = parameter.removeprefix("dense.").rsplit(".", 1)
        return Checkpoint(source.folder / place).find(f"linear.{kind}", shape)
    name = source.architecture.rename(parameter)
    for prefix in source.architecture.PREFIXES:
        if prefix + name in checkpoint.tensors:
            return checkpoint.find(prefix + name, shape)
    return checkpoint.find(name, shape)


def weights(source: Source, checkpoint: Checkpoint) -> dict[str, Any]:
    """The tensor, shape and kind of each weight of the model; that all are there and fit is checked on the way."""
    found = {}
    with torch.device("meta"):
        made = pieces(source, Function("", 1, 8))
    for piece, (module, _, _) in made.items():
        for layer in range(source.config.layers if piece == "layer" else 1):
            for parameter, value in module.named_parameters():
                name, shape = weight_name(piece, parameter, layer), tuple(value.shape)
                tensor = find_tensor(source, checkpoint, name, shape)
                found[name] = {
                    "tensor": tensor.name,
                    "folder": tensor.file.parent.relative_to(source.folder).as_posix(),
                    "shape": list(shape),
                    "kind": weight_kind(module, parameter),
                    "piece": piece,
                }
    return found


def check_buckets(source: Source, max_lengths: tuple[int, ...]) -> None:
    """Refuse buckets beyond the model's positions."""
    if max_lengths[-1] > source.config.positions:
        raise PipelineError(
            f"max_length {max_lengths[-1]} is beyond the model's {source.config.positions} positions; choose a smaller one"
        )


def pieces(source: Source, function: Function) -> dict[str, tuple[Piece, list[Input], tuple[str, str]]]:
    """The modules that are traced for a function, with their inputs and the name and type of their output."""
    architecture, config, length = source.architecture, source.config, function.length
    shape = (function.batch, length)
    table, mask = Table(architecture, config), Mask(architecture, config, length)
    layer, head = (
        Layer(architecture, config, length),
        Head(architecture, config, source.recipe, length),
    )
    states = [Input(f"state_{i}", (*shape, config.hidden), "float16") for i in range(source.recipe.layers)]
    real = Input("attention_mask", shape)
    additive = tuple(mask(torch.empty(shape, dtype=torch.int32, device="meta")).shape)
    return {
        "table": (table, [Input("input_ids", shape)], ("hidden", "float16")),
        "mask": (mask, [real], ("additive", "float16")),
        "layer": (
            layer,
            [Input("hidden", (*shape, config.hidden), "float16"), Input("additive", additive, "float16")],
            ("changed", "float16"),
        ),
        "head": (head, [real, *states], ("embedding", "float32")),
    }


def trace(entry: params.Model, checkpoint_folder: Path, out: Path) -> None:
    """Write `traced/` for one checkpoint; see the module."""
    source = open_source(checkpoint_folder, entry.recipe)
    check_buckets(source, entry.max_lengths)
    # Every tensor is there, of the right shape and type, before work begins.
    found = weights(source, Checkpoint(checkpoint_folder))
    buckets = functions(entry.max_lengths, entry.batches)
    constants = {}
    with staged_folder(out) as partial:
        progress = tqdm(total=4 * len(buckets), desc="trace", unit="piece", disable=None)
        for function in buckets:
            (partial / function.name).mkdir()
            with torch.device("meta"):
                made = pieces(source, function)
            for name, (module, inputs, output) in made.items():
                traced = skeleton(module, module.tables, inputs, output, entry.target)
                path = partial / function.name / f"{name}.mil"
                path.write_bytes(traced.program.SerializeToString(deterministic=True))
                constants |= {f"{function.name}/{name}/{key}": v for key, v in traced.constants.items()}
                progress.update()
        progress.close()
        save_file(constants, partial / "constants.safetensors")
        record = {
            "target": entry.target,
            "dimension": source.dimension,
            "layers": source.config.layers,
            "recipe": dataclasses.asdict(source.recipe),
            "functions": [dataclasses.asdict(f) for f in buckets],
            "layouts": list(entry.layouts),
            "size_limit": entry.size_limit,
            "weights": found,
        }
        write_json(partial / "trace.json", record)


def describe(entry: params.Model, checkpoint_folder: Path, out: Path) -> dict[str, Any]:
    """Copy the small files to `out`; gives what `reference.json` says of them: recipe, prompts, tokenizer, dimension."""
    source = open_source(checkpoint_folder, entry.recipe)
    check_buckets(source, entry.max_lengths)
    if too_wide := [d for d in entry.matryoshka_dimensions if d >= source.dimension]:
        raise PipelineError(
            f"matryoshka_dimensions {too_wide[0]} is not below the model's {source.dimension} dimensions"
        )
    tokenizer = read_tokenizer(checkpoint_folder, source.config.vocabulary, entry.max_lengths[-1])
    prompts, default = read_prompts(checkpoint_folder)
    for name in SMALL_FILES:
        if (checkpoint_folder / name).exists():
            link(checkpoint_folder / name, out / name)
    return {
        "recipe": dataclasses.asdict(source.recipe),
        "tokenizer": dataclasses.asdict(tokenizer),
        "dimension": source.dimension,
        "prompts": prompts,
        "default_prompt": default,
        "matryoshka_dimensions": list(entry.matryoshka_dimensions),
    }


def recipe_of(record: Mapping[str, Any]) -> Recipe:
    """The recipe in a `reference.json`."""
    from corembed.release import Dense  # noqa: PLC0415

    raw = record["recipe"]
    return Recipe(
        raw["pooling"], raw["normalize"], tuple(Dense(**d) for d in raw["dense"]), raw.get("layers", 1)
    )


def tokenizer_of(record: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer settings in a `reference.json`."""
    return Tokenizer(**record["tokenizer"])


def main() -> None:
    """`python -m pipeline.trace MODEL`."""
    entry = params.model(places.argument(sys.argv, "MODEL"))
    where = places.of(entry.name)
    trace(entry, where.checkpoint, where.traced)


if __name__ == "__main__":
    run(main)
