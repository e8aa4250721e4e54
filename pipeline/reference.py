"""The reference: what sentence-transformers makes of the parity texts with the original checkpoint.

It loads the checkpoint by the checkpoint's own declarations, in FP32, and shares no pooling code with the graph,
so a misread recipe shows as a parity failure. Part of the `trace` stage, in a process of its own. Writes
`reference/`: small files of the checkpoint, `reference.json`, `texts.jsonl`, `embeddings.safetensors`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset, disable_progress_bars
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer

from pipeline import params, places
from pipeline.errors import PipelineError, run
from pipeline.files import staged_folder
from pipeline.texts import parity_texts
from pipeline.trace import describe

disable_progress_bars()  # they are about files of a few kilobytes


def embed(checkpoint: Path, texts: list[str], max_length: int) -> npt.NDArray[np.float32]:
    """Embeddings (n, dimension), float32, as the model declares them, cut at `max_length` tokens."""
    model = SentenceTransformer(
        str(checkpoint), device="cpu", local_files_only=True, model_kwargs={"torch_dtype": torch.float32}
    )
    model.max_seq_length = max_length
    vectors = np.asarray(
        model.encode(texts, batch_size=8, convert_to_numpy=True, show_progress_bar=sys.stderr.isatty()),
        np.float32,
    )
    if not np.isfinite(vectors).all() or (np.linalg.norm(vectors, axis=1) == 0).any():
        raise PipelineError(
            f"{checkpoint}: the original model itself gives zero or non-finite embeddings; the checkpoint is damaged"
        )
    return vectors


def reference(entry: params.Model, checkpoint: Path, out: Path) -> None:
    """Write `reference/` for one checkpoint."""
    with staged_folder(out) as partial:
        record = describe(entry, checkpoint, partial)
        texts = parity_texts(entry.parity_texts)
        texts.to_json(partial / "texts.jsonl", force_ascii=False)
        vectors = embed(checkpoint, list(texts["text"]), record["tokenizer"]["max_length"])
        save_file({"embeddings": vectors}, partial / "embeddings.safetensors")


def load(folder: Path) -> tuple[Dataset, npt.NDArray[np.float32]]:
    """The parity texts and their reference embeddings."""
    texts = Dataset.from_json(str(folder / "texts.jsonl"), keep_in_memory=True)
    vectors: npt.NDArray[np.float32] = load_file(folder / "embeddings.safetensors")["embeddings"]
    return texts, vectors


def main() -> None:
    """`python -m pipeline.reference MODEL`."""
    entry = params.model(places.argument(sys.argv, "MODEL"))
    where = places.of(entry.name)
    reference(entry, where.checkpoint, where.reference)


if __name__ == "__main__":
    run(main)
