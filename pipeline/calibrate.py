"""Stage `calibrate`: what do the inputs of each weight look like?

From `checkpoint/` and `traced/`, writes `calibration/`: for each linear layer the second moment of its inputs over
the calibration texts, float32 (columns, columns), one file for layers that share an input, and `calibration.json`.
Each text counts the same, however long it is, as it does for the quality of a model; padding counts nothing.

The model is run in float32 a layer at a time over all texts, so one layer and the texts' hidden states are in
memory, whatever the model's depth.
"""

from __future__ import annotations

import collections
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer as FastTokenizer
from torch import Tensor, nn
from tqdm import tqdm

from pipeline import params, places
from pipeline.calibration import calibration_texts
from pipeline.checkpoint import Checkpoint
from pipeline.errors import PipelineError, run
from pipeline.files import read_json, sha256, staged_folder, write_json
from pipeline.graph import Head, Layer, Mask, Piece, Table, weight_name
from pipeline.recipe import read_tokenizer
from pipeline.trace import Source, open_source

LONGEST = 256
"""Tokens of a calibration text. With 128 the worst text of MiniLM at 4 bits, one word repeated 400 times, is lost."""

_LENGTHS = (16, 32, 64, 128, LONGEST)
_TOKENS = 4096  # in one batch

P = TypeVar("P", bound=Piece)


@dataclasses.dataclass
class Batch:
    """Texts of one padded length: ids and mask (texts, length), and hidden states once there are some."""

    ids: Tensor
    mask: Tensor
    states: list[Tensor]

    @property
    def length(self) -> int:
        """Tokens of each text, with padding."""
        return int(self.ids.shape[1])

    @property
    def shares(self) -> Tensor:
        """What each token counts (texts, length): a text's tokens count 1 together."""
        return self.mask / self.mask.sum(1, keepdim=True)


def batches(tokens: Sequence[Sequence[int]], lengths: Sequence[int] = _LENGTHS) -> list[Batch]:
    """Texts sorted by length into batches, each text padded to the shortest of `lengths` that holds it."""
    if not tokens:
        raise PipelineError("there are no calibration texts: nothing can be measured")
    if any(not ids for ids in tokens):
        raise PipelineError("a calibration text has no tokens, not even special ones; leave it out")
    grouped: dict[int, list[Sequence[int]]] = collections.defaultdict(list)
    for ids in tokens:
        cut = ids[: lengths[-1]]
        grouped[next(n for n in lengths if n >= len(cut))].append(cut)
    made = []
    for length, group in sorted(grouped.items()):
        step = max(_TOKENS // length, 1)
        for start in range(0, len(group), step):
            texts = group[start : start + step]
            ids, mask = torch.zeros(len(texts), length, dtype=torch.int32), torch.zeros(len(texts), length)
            for row, text in enumerate(texts):
                ids[row, : len(text)] = torch.tensor(text)
                mask[row, : len(text)] = 1
            made.append(Batch(ids, mask, []))
    return made


class Weights:
    """Puts a checkpoint's tensors into modules, in float32."""

    def __init__(self, source: Source, record: dict[str, Any]) -> None:
        """`record`: the weights of `trace.json`."""
        self.source, self.record = source, record
        self.opened: dict[str, Checkpoint] = {}

    def read(self, name: str) -> Tensor:
        """A whole tensor by the weight's name."""
        entry = self.record[name]
        folder = entry["folder"]
        if folder not in self.opened:
            self.opened[folder] = Checkpoint(self.source.folder / folder)
        opened = self.opened[folder]
        rows = opened.rows(opened.find(entry["tensor"], tuple(entry["shape"])))
        return torch.from_numpy(np.concatenate(list(rows)))

    def fill(self, piece: Piece, kind: str, layer: int = 0) -> None:
        """Give a piece, made on the meta device, its tables and weights."""
        piece.fill()
        for name, parameter in list(piece.named_parameters()):
            *path, leaf = name.split(".")
            owner = piece.get_submodule(".".join(path))
            read = nn.Parameter(self.read(weight_name(kind, name, layer)), requires_grad=False)
            if read.shape != parameter.shape:
                raise PipelineError(f"{name}: shape {list(read.shape)}, expected {list(parameter.shape)}")
            setattr(owner, leaf, read)


def on_meta(make: Callable[[], P]) -> P:
    """A piece of the graph with shapes and no data."""
    with torch.device("meta"):
        return make().eval()


class Moments:
    """Collects the second moments of all linear layers' inputs in a module while it runs."""

    def __init__(self, module: nn.Module) -> None:
        self.shares = torch.ones(1)
        self.sums: dict[str, Tensor] = {}
        self.same: dict[str, str] = {}
        self._seen: dict[int, tuple[str, Tensor]] = {}  # the tensor is held, or its id may become another's
        self._hooks = [
            layer.register_forward_pre_hook(self._hook(f"{name}.weight"))
            for name, layer in module.named_modules()
            if isinstance(layer, nn.Linear)
        ]

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            first, _ = self._seen.setdefault(id(given[0]), (name, given[0]))
            self.same[name] = first
            if first == name:
                flat, shares = given[0].reshape(-1, given[0].shape[-1]), self.shares.reshape(-1)
                scaled = flat[shares > 0] * shares[shares > 0].sqrt()[:, None]
                self.sums[name] = self.sums.get(name, 0) + scaled.T @ scaled

        return see

    def run(self, shares: Tensor, job: Callable[[], Tensor]) -> Tensor:
        """What `job` gives; inputs count by `shares`, one number a row."""
        self.shares = shares
        result = job()
        self._seen.clear()
        return result

    def stop(self) -> None:
        """Collect no more."""
        for hook in self._hooks:
            hook.remove()


@torch.no_grad()
def measure(
    source: Source, record: dict[str, Any], made: Sequence[Batch], keep: Callable[[str, Moments], None]
) -> None:
    """Run all batches through the model a layer at a time; `keep` gets each piece's prefix and moments."""
    weights = Weights(source, record["weights"])
    architecture, config = source.architecture, source.config
    depth = source.recipe.layers
    table = on_meta(lambda: Table(architecture, config))
    weights.fill(table, "table")
    for batch in made:
        batch.states = [table(batch.ids)]
    del table
    masks = {n: on_meta(lambda n=n: Mask(architecture, config, n)) for n in {b.length for b in made}}
    for mask in masks.values():
        weights.fill(mask, "mask")
    layers = {n: on_meta(lambda n=n: Layer(architecture, config, n)) for n in masks}
    for number in tqdm(range(config.layers), desc="calibrate", unit="layer", disable=None):
        first, *others = layers.values()
        weights.fill(first, "layer", number)
        for other in others:  # they differ in their tables only
            other.layer = first.layer
            other.fill()
        moments = Moments(first.layer)
        for batch in made:
            hidden, additive = batch.states[0], masks[batch.length](batch.mask)
            after = moments.run(batch.shares, lambda h=hidden, a=additive, b=batch: layers[b.length](h, a))
            batch.states = [after, *batch.states][:depth]
        moments.stop()
        keep(f"layers.{number}.", moments)
    if source.recipe.dense:
        heads = {n: on_meta(lambda n=n: Head(architecture, config, source.recipe, n)) for n in masks}
        first, *others = heads.values()
        weights.fill(first, "head")
        for other in others:
            other.final, other.dense = first.final, first.dense
            other.fill()
        moments = Moments(first.dense)
        for batch in made:
            moments.run(torch.ones(len(batch.ids)), lambda b=batch: heads[b.length](b.mask, *b.states))
        keep("dense.", moments)


def calibrate(checkpoint: Path, traced: Path, out: Path) -> None:
    """Write `calibration/` for one checkpoint."""
    source, record = open_source(checkpoint), read_json(traced / "trace.json")
    tokenizer = FastTokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.no_padding()
    settings = read_tokenizer(checkpoint, source.config.vocabulary, min(LONGEST, source.config.positions))
    tokenizer.enable_truncation(settings.max_length)
    texts = calibration_texts(tokenizer)
    tokens = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    inputs: dict[str, dict[str, str]] = {}
    with staged_folder(out) as partial:

        def keep(prefix: str, moments: Moments) -> None:
            for name, total in moments.sums.items():
                path = partial / f"{prefix}{name}.safetensors"
                save_file({"moment": (total / len(tokens)).numpy()}, path)
                entry = {"file": path.name, "sha256": sha256(path)}
                inputs.update({prefix + n: entry for n, same in moments.same.items() if same == name})

        measure(source, record, batches(tokens), keep)
        counts = {"texts": len(tokens), "tokens": sum(len(t) for t in tokens)}
        write_json(partial / "calibration.json", counts | {"inputs": inputs})


def main() -> None:
    """`python -m pipeline.calibrate MODEL`."""
    entry = params.model(places.argument(sys.argv, "MODEL"))
    where = places.of(entry.name)
    calibrate(where.checkpoint, where.traced, where.calibration)


if __name__ == "__main__":
    run(main)
