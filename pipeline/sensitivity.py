"""Stage `sensitivity`: how much does each weight mind being quantized?

From `checkpoint/`, `traced/` and `calibration/`, writes `sensitivity.json`: for the token-embedding
table and for the attention and the MLP of each layer, and each scheme under `choices:` of `params.yaml`, the bytes,
the signal-to-noise ratio of each weight in decibels, and the harm: 1 - cosine of the worst of the probe texts when
this group alone is stored so, all else in float32. Probes are some of the calibration texts, not the parity texts,
so that what is allocated by them can be judged on others. Also the Pareto front of size and foreseen harm.

The model is run from the group's layer on; what lies before it is the same for all and is kept.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer as FastTokenizer
from torch import Tensor, nn
from tqdm import tqdm

from pipeline import allocate, params, places
from pipeline.assemble import Traced
from pipeline.blob import ALIGNMENT
from pipeline.calibrate import Batch, Weights, batches, on_meta
from pipeline.calibration import Calibration, calibration_texts
from pipeline.decoded import rounded
from pipeline.errors import run
from pipeline.files import read_json, write_json
from pipeline.graph import Head, Layer, Mask, Table
from pipeline.trace import Source, open_source

PROBES = 48
_LENGTHS = (16, 64)
_LAYERS_HELD = 12  # in memory at a time


def groups_of(record: Mapping[str, Any]) -> dict[str, list[str]]:
    """The weights of a trace that are given bits together: a table, and each layer's attention and MLP."""
    found: dict[str, list[str]] = {}
    for name, weight in record["weights"].items():
        if weight["kind"] == "linear":
            part = params.part_of_layer(name)
            key = ".".join([*name.split(".")[:2], part]) if part != "linear" else name
            found.setdefault(key, []).append(name)
        elif weight["kind"] == "embedding":
            found[name] = [name]
    return found


class Probe:
    """The model in float32 on the probe texts, run again from where a weight was replaced."""

    def __init__(
        self,
        source: Source,
        record: dict[str, Any],
        made: Sequence[Batch],
        *,
        hold: int = _LAYERS_HELD,
        keep: bool = True,
    ) -> None:
        """`hold` layers stay in memory; without `keep` only the table's states do, and runs start there."""
        self.source, self.made = source, made
        self.weights = Weights(source, record["weights"])
        self.lengths = sorted({b.length for b in made})
        architecture, config = source.architecture, source.config
        self.table = on_meta(lambda: Table(architecture, config))
        self.weights.fill(self.table, "table")
        self.masks = {n: on_meta(lambda n=n: Mask(architecture, config, n)) for n in self.lengths}
        self.heads = {
            n: on_meta(lambda n=n: Head(architecture, config, source.recipe, n)) for n in self.lengths
        }
        self.weights.fill(self.heads[self.lengths[0]], "head")
        for length in self.lengths:
            self.weights.fill(self.masks[length], "mask")
            self.heads[length].final = self.heads[self.lengths[0]].final
            self.heads[length].dense = self.heads[self.lengths[0]].dense
            self.heads[length].fill()
        self.layers = functools.lru_cache(hold)(self._layers)
        self.states: list[list[Tensor]] = []
        self.embed_again()
        if keep:
            self.expected = self.run(0, keep=True)

    def embed_again(self) -> None:
        """Look the tokens up in the present table."""
        self.states = [[self.table(b.ids)] for b in self.made]

    def _layers(self, number: int) -> dict[int, Layer]:
        architecture, config = self.source.architecture, self.source.config
        found = {n: on_meta(lambda n=n: Layer(architecture, config, n)) for n in self.lengths}
        first, *others = found.values()
        self.weights.fill(first, "layer", number)
        for other in others:
            other.layer = first.layer
            other.fill()
        return found

    def run(self, start: int, *, keep: bool = False) -> Tensor:
        """Embeddings (texts, dimension) from the states before layer `start` on."""
        depth, vectors = self.source.recipe.layers, []
        for batch, states in zip(self.made, self.states, strict=True):
            seen = list(states[: start + 1])
            additive = self.masks[batch.length](batch.mask)
            for number in range(start, self.source.config.layers):
                seen.append(self.layers(number)[batch.length](seen[-1], additive))
            if keep:
                states[:] = seen
            vectors.append(self.heads[batch.length](batch.mask, *seen[: -1 - depth : -1]))
        return nn.functional.normalize(torch.cat(vectors).double())

    def owner(self, name: str) -> tuple[nn.Module, int]:
        """The module that holds a weight, and the layer from which on it matters."""
        count, path = self.source.config.layers, name.removesuffix(".weight")
        if path.startswith("layers."):
            _, number, rest = path.split(".", 2)
            first = self.layers(int(number))[self.lengths[0]]
            return first.layer.get_submodule(rest), int(number)
        if path.startswith("dense."):
            place = path.removeprefix("dense.")
            return self.heads[self.lengths[0]].dense[place], count
        return self.table.get_submodule(path), 0

    def harm(self, replaced: Mapping[str, Tensor]) -> float:
        """1 - cosine of the worst text with these weights replaced; they are put back."""
        owners = {name: self.owner(name) for name in replaced}
        before = {name: owner.weight for name, (owner, _) in owners.items()}
        start = min(layer for _, layer in owners.values())
        for name, (owner, _) in owners.items():
            owner.weight = nn.Parameter(replaced[name], requires_grad=False)
        kept = self.states
        if not all(name.startswith(("layers.", "dense.")) for name in replaced):
            self.embed_again()
        vectors = self.run(start)
        self.states = kept
        for name, (owner, _) in owners.items():
            owner.weight = before[name]
        return float((1 - (vectors * self.expected).sum(1)).max())


def decibels(weight: np.ndarray, stored: np.ndarray) -> float | None:
    """Signal-to-noise ratio; None where there is no noise."""
    noise = float(np.square(stored - weight, dtype=np.float64).sum())
    return 10 * float(np.log10(np.square(weight, dtype=np.float64).sum() / noise)) if noise else None


@torch.no_grad()
def sensitivity(
    checkpoint: Path, traced: Path, calibration: Path, choices: Mapping[str, Sequence[params.Scheme]]
) -> dict[str, Any]:
    """The report of one checkpoint."""
    source, record, moments = (
        open_source(checkpoint),
        read_json(traced / "trace.json"),
        Calibration(calibration),
    )
    tokenizer = FastTokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(_LENGTHS[-1])
    texts = calibration_texts(tokenizer)
    tokens = [e.ids for e in tokenizer.encode_batch(texts[:: len(texts) // PROBES][:PROBES])]
    probe = Probe(source, record, batches(tokens, _LENGTHS))
    groups = []
    for group, names in tqdm(groups_of(record).items(), desc="sensitivity", unit="group", disable=None):
        kind = record["weights"][names[0]]["kind"]
        entry: dict[str, Any] = {"name": group, "weights": names, "choices": []}
        for scheme in choices[kind]:
            replaced, size, noise = {}, 0, {}
            for name in names:
                weight = probe.weights.read(name).numpy()
                inputs = moments.inputs(name) if scheme.calibrated else None
                stored, stored_bytes = rounded(name, weight, scheme, inputs)
                replaced[name], noise[name] = torch.from_numpy(stored), decibels(weight, stored)
                size += stored_bytes
            entry["choices"].append(
                {
                    "scheme": dataclasses.asdict(scheme),
                    "bytes": size,
                    "harm": probe.harm(replaced),
                    "sqnr_db": noise,
                }
            )
        groups.append(entry)
    chosen = {name for entry in groups for name in entry["weights"]}
    plain = [w for name, w in record["weights"].items() if name not in chosen]
    tables = sum(v.nbytes for v in Traced(traced).constants.values())
    blobs = 3 * len(record["weights"])
    result = {
        "texts": len(tokens),
        "fp16_bytes": sum(2 * int(np.prod(w["shape"])) for w in record["weights"].values()) + tables,
        "fixed_bytes": sum(2 * int(np.prod(w["shape"])) for w in plain) + tables + 2 * ALIGNMENT * blobs,
        "groups": groups,
    }
    return result | {"front": allocate.front(allocate.read(result))}


def main() -> None:
    """`python -m pipeline.sensitivity MODEL`."""
    model = places.argument(sys.argv, "MODEL")
    where = places.of(model)
    found = sensitivity(where.checkpoint, where.traced, where.calibration, params.choices())
    write_json(where.sensitivity, {"model": model} | found)


if __name__ == "__main__":
    run(main)
