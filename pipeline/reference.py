"""The reference: what sentence-transformers makes of the parity texts with the original checkpoint.

It loads the checkpoint by the checkpoint's own declarations, in FP32, and shares no pooling code with the graph,
so a misread recipe shows as a parity failure. Part of the `trace` stage, in a process of its own. Writes
`reference/`: small files of the checkpoint, `reference.json`, and the files of `pipeline.stored`.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer

from pipeline import params, places, probes, stored
from pipeline.errors import PipelineError, run
from pipeline.files import staged_folder, write_json
from pipeline.followed import follow
from pipeline.labelled import labelled_texts
from pipeline.texts import parity_texts, prompted_texts
from pipeline.trace import describe, recipe_of

TOOLS = ("sentence-transformers", "transformers", "torch")
"""What the original runs in; `reference.json` keeps the versions."""

OFFLOAD = 6 << 30
"""Bytes of weight files from which the original is read from disk, layer by layer, each time it runs: in FP32 it
would take twice that of a bf16 checkpoint."""


def open_original(checkpoint: Path, max_length: int) -> SentenceTransformer:
    """The original in FP32, cutting texts at `max_length` tokens; a large one stays on disk (by accelerate)."""
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    place: dict[str, Any] = {"device_map": {"": "disk"}, "offload_folder": str(checkpoint)}
    model = SentenceTransformer(
        str(checkpoint),
        device="cpu",
        local_files_only=True,
        model_kwargs={"torch_dtype": torch.float32} | (place if size > OFFLOAD else {}),
    )
    model.max_seq_length = max_length
    return model


def embed(
    model: SentenceTransformer, rows: Sequence[Mapping[str, Any]], batch: int = 8
) -> npt.NDArray[np.float32]:
    """Embeddings (n, dimension), float32, of texts with the prompts that their rows name."""
    vectors: list[Any] = [None] * len(rows)
    for prompt in dict.fromkeys(row["prompt"] for row in rows):
        places_ = [i for i, row in enumerate(rows) if row["prompt"] == prompt]
        found = model.encode(
            [rows[i]["text"] for i in places_],
            batch_size=batch,
            prompt_name=prompt,
            prompt=None if prompt else "",
            convert_to_numpy=True,
            show_progress_bar=sys.stderr.isatty(),
        )
        for i, vector in zip(places_, found, strict=True):
            vectors[i] = vector
    made = np.asarray(vectors, np.float32)
    if not np.isfinite(made).all() or (np.linalg.norm(made, axis=1) == 0).any():
        raise PipelineError(
            "the original model itself gives zero or non-finite embeddings; the checkpoint is damaged"
        )
    return made


def reference_rows(entry: params.Model, prompts: Mapping[str, str]) -> list[dict[str, Any]]:
    """All texts that the original must embed for this model."""
    rows = [*parity_texts(entry.parity_texts), *prompted_texts(prompts)]
    if entry.retrieval is not None:
        rows += labelled_texts(entry.retrieval, prompts)
    return rows


def reference(entry: params.Model, checkpoint: Path, out: Path) -> None:
    """Write `reference/` for one checkpoint."""
    with staged_folder(out) as partial:
        versions = {tool: importlib.metadata.version(tool) for tool in TOOLS}
        record = describe(entry, checkpoint, partial) | {"versions": versions}
        write_json(partial / "reference.json", record)
        rows = reference_rows(entry, record["prompts"])
        model = open_original(checkpoint, record["tokenizer"]["max_length"])
        if entry.recipe:
            model = follow(model, recipe_of(record), entry.max_lengths)
        for row in rows:
            if row["use"] == "parity":
                row["ids"] = probes.token_ids(model, row["text"], record["prompts"].get(row["prompt"], ""))
        alone = record["recipe"]["pooling"] == "mean_all"
        vectors = embed(model, rows, 1 if alone else 8)
        stored.write(partial, rows, vectors, [probes.probe(model, text) for text in probes.PROBES])


def main() -> None:
    """`python -m pipeline.reference MODEL`."""
    entry = params.model(places.argument(sys.argv, "MODEL"))
    where = places.of(entry.name)
    reference(entry, where.checkpoint, where.reference)


if __name__ == "__main__":
    run(main)
