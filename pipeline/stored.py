"""The reference as files: texts, the original's vectors, its token ids, and what its layers gave for a few probes.

`texts.jsonl` has one row a text: `id`, `use` (`parity`, `query`, `document` or `similarity`), `text`, `prompt` (the
name of the prompt to put before it, or null), `language`, `domain`; a parity text also `ids`, the original's own
token ids; a query `relevant`, ids of documents; a similarity text `scores`, people's judgement (0 to 1) against all
similarity texts in order. `embeddings.safetensors` has the vectors, float32 (texts, dimension), in the same order.
`probes.safetensors` has for probe N `N/ids` (tokens), `N/states` (layers + 1, tokens, hidden): what goes into the
first layer and what each gives, `N/final` (tokens, hidden) as the pooling sees it, and `N/embedding`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

Vectors = npt.NDArray[np.float32]
Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Probe:
    """One text inside the original: ids (tokens,), states (layers + 1, tokens, hidden), final, embedding."""

    ids: tuple[int, ...]
    states: Vectors
    final: Vectors
    embedding: Vectors


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the original answers; `vectors` has one row for each of `rows`."""

    rows: Sequence[Row]
    vectors: Vectors
    probes: Sequence[Probe]

    def use(self, kind: str) -> tuple[list[Row], Vectors, list[int]]:
        """The rows of one use, their vectors, and their places among all."""
        places = [i for i, row in enumerate(self.rows) if row["use"] == kind]
        return [self.rows[i] for i in places], self.vectors[places], places


def write(folder: Path, rows: Sequence[Row], vectors: Vectors, probes: Sequence[Probe]) -> None:
    """Write the three files of a reference."""
    lines = [json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows]
    (folder / "texts.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
    save_file({"embeddings": np.ascontiguousarray(vectors)}, folder / "embeddings.safetensors")
    arrays = {}
    for number, probe in enumerate(probes):
        arrays[f"{number}/ids"] = np.array(probe.ids, np.int32)
        for name in ("states", "final", "embedding"):
            arrays[f"{number}/{name}"] = np.ascontiguousarray(getattr(probe, name), np.float32)
    save_file(arrays, folder / "probes.safetensors")


def read(folder: Path) -> Reference:
    """Read what `write` wrote."""
    # Not splitlines(): a text may hold any of the separators that it knows.
    lines = (folder / "texts.jsonl").read_text(encoding="utf-8").split("\n")
    arrays = load_file(folder / "probes.safetensors")
    probes = [
        Probe(
            tuple(arrays[f"{n}/ids"].tolist()),
            *(arrays[f"{n}/{part}"] for part in ("states", "final", "embedding")),
        )
        for n in range(sum(name.endswith("/ids") for name in arrays))
    ]
    vectors = load_file(folder / "embeddings.safetensors")["embeddings"]
    return Reference([json.loads(line) for line in lines if line], vectors, probes)
