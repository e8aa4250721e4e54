"""Stage `trace`: what does the checkpoint's model look like as a Core ML program, and what should it answer?

From `checkpoint/`, writes

- `traced/`: for each layout, part and bucket a MIL program without weights, and `trace.json`, which names the
  tensor of the checkpoint for each weight (not shared between machines: it is made again in seconds);
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
from pipeline.graph import Part, Span
from pipeline.recipe import read_prompts, read_recipe, read_tokenizer
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


def open_source(folder: Path) -> Source:
    """Read the small files of a checkpoint; nothing is known of its weights yet."""
    path = folder / "config.json"
    if not path.exists():
        raise PipelineError(f"{folder}: no config.json; this is not a transformers checkpoint")
    raw = read_json(path)
    architecture = architectures.find(raw)
    return Source(folder, architecture, architecture.parse(raw), read_recipe(folder))


def functions(max_lengths: tuple[int, ...]) -> tuple[Function, ...]:
    """One function a bucket; a single one is called `main`, as clients that know no functions expect."""
    if len(max_lengths) == 1:
        return (Function("main", 1, max_lengths[0]),)
    return tuple(Function(f"length_{n}", 1, n) for n in max_lengths)


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


def spans(source: Source, layout: str, size_limit: int, checkpoint: Checkpoint) -> list[Span]:
    """Where a layout cuts the encoder: nowhere, or at layer borders so that FP16 weights fit `size_limit`."""
    layers = source.config.layers
    if layout == "single":
        return [Span(0, layers, first=True, last=True)]
    ends, used, limit = [], 0, size_limit * 9 // 10  # the compiled program itself needs room too
    sizes = _fp16_bytes(source, checkpoint)
    for index in range(layers):
        extra = sizes["embeddings"] * (index == 0) + sizes["final"] * (index == layers - 1)
        need = sizes[str(index)] + extra
        if need > limit:
            raise PipelineError(
                f"layer {index} with what belongs to it takes {need} bytes in FP16, more than the size limit "
                f"{size_limit} allows; raise it"
            )
        if used + need > limit:
            ends.append(index)
            used = 0
        used += need
    ends.append(layers)
    starts = [0, *ends[:-1]]
    return [Span(a, b, first=a == 0, last=b == layers) for a, b in zip(starts, ends, strict=True)]


def _fp16_bytes(source: Source, checkpoint: Checkpoint) -> dict[str, int]:
    with torch.device("meta"):
        whole = Part(
            source.architecture,
            source.config,
            source.recipe,
            Span(0, source.config.layers, first=True, last=True),
            8,
        )
    sizes = {"embeddings": 0, "final": 0} | {str(i): 0 for i in range(source.config.layers)}
    for name, parameter in whole.named_parameters():
        find_tensor(source, checkpoint, name, tuple(parameter.shape))
        group = (
            name.split(".")[1]
            if name.startswith("layers.")
            else "embeddings"
            if name.startswith("embeddings.")
            else "final"
        )
        sizes[group] += 2 * parameter.numel()
    return sizes


def check_buckets(source: Source, max_lengths: tuple[int, ...]) -> None:
    """Refuse buckets beyond the model's positions."""
    if max_lengths[-1] > source.config.positions:
        raise PipelineError(
            f"max_length {max_lengths[-1]} is beyond the model's {source.config.positions} positions; choose a smaller one"
        )


def trace_layout(
    source: Source, checkpoint: Checkpoint, layout: str, entry: params.Model, out: Path
) -> list[dict[str, Any]]:
    """Write the programs of one layout to `out`; for each part: its weights, their tensors and kinds, its programs."""
    buckets = functions(entry.max_lengths)
    cuts = spans(source, layout, entry.size_limit, checkpoint)
    parts = []
    progress = tqdm(total=len(cuts) * len(buckets), desc=f"trace {layout}", unit="program", disable=None)
    for number, span in enumerate(cuts, 1):
        folder = out / f"{layout}-{number:02d}"
        folder.mkdir()
        weights: dict[str, Any] = {}
        constants = {}
        for function in buckets:
            with torch.device("meta"):
                part = Part(source.architecture, source.config, source.recipe, span, function.length)
            made = skeleton(part, part.tables(), inputs(source, span, function), output(span), entry.target)
            (folder / f"{function.name}.mil").write_bytes(made.program.SerializeToString(deterministic=True))
            constants |= {f"{function.name}/{name}": values for name, values in made.constants.items()}
            for name, shape in made.weights.items():
                tensor = find_tensor(source, checkpoint, name, shape)
                weights[name] = {
                    "tensor": tensor.name,
                    "folder": tensor.file.parent.relative_to(source.folder).as_posix(),
                    "shape": list(shape),
                    "kind": weight_kind(part, name),
                }
            progress.update()
        save_file(constants, folder / "constants.safetensors")
        parts.append({"folder": folder.name, "weights": weights, "first": span.first, "last": span.last})
    progress.close()
    return parts


def inputs(source: Source, span: Span, function: Function) -> list[Input]:
    """What a part takes: token ids or hidden states, and the mask."""
    shape = (function.batch, function.length)
    mask = Input("attention_mask", shape)
    return [
        Input("input_ids", shape)
        if span.first
        else Input("hidden", (*shape, source.config.hidden), "float16"),
        mask,
    ]


def output(span: Span) -> tuple[str, str]:
    """What a part gives: name and type."""
    return ("embedding", "float32") if span.last else ("hidden", "float16")


def trace(entry: params.Model, checkpoint_folder: Path, out: Path) -> None:
    """Write `traced/` for one checkpoint; see the module."""
    source = open_source(checkpoint_folder)
    check_buckets(source, entry.max_lengths)
    checkpoint = Checkpoint(checkpoint_folder)
    _fp16_bytes(source, checkpoint)  # every tensor is there, of the right shape and type, before work begins
    with staged_folder(out) as partial:
        layouts = {
            layout: trace_layout(source, checkpoint, layout, entry, partial) for layout in entry.layouts
        }
        record = {
            "target": entry.target,
            "dimension": source.dimension,
            "hidden": source.config.hidden,
            "recipe": dataclasses.asdict(source.recipe),
            "functions": [dataclasses.asdict(f) for f in functions(entry.max_lengths)],
            "layouts": layouts,
        }
        write_json(partial / "trace.json", record)


def describe(entry: params.Model, checkpoint_folder: Path, out: Path) -> dict[str, Any]:
    """Copy the small files to `out` and write `reference.json`: recipe, prompts, tokenizer, dimension."""
    source = open_source(checkpoint_folder)
    check_buckets(source, entry.max_lengths)
    tokenizer = read_tokenizer(checkpoint_folder, source.config.vocabulary, entry.max_lengths[-1])
    prompts, default = read_prompts(checkpoint_folder)
    for name in SMALL_FILES:
        if (checkpoint_folder / name).exists():
            link(checkpoint_folder / name, out / name)
    record = {
        "recipe": dataclasses.asdict(source.recipe),
        "tokenizer": dataclasses.asdict(tokenizer),
        "dimension": source.dimension,
        "prompts": prompts,
        "default_prompt": default,
    }
    write_json(out / "reference.json", record)
    return record


def recipe_of(record: Mapping[str, Any]) -> Recipe:
    """The recipe in a `reference.json`."""
    from corembed.release import Dense  # noqa: PLC0415

    raw = record["recipe"]
    return Recipe(raw["pooling"], raw["normalize"], tuple(Dense(**d) for d in raw["dense"]))


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
