"""Is the full-size conversion right? Packages of a 4B in milrun against sentence-transformers, text by text.

Usage: `python -m benchmarks.parity_4b CHECKPOINT [VARIANT ...] [--layouts single parts] [--texts 20] [--out FILE]`.
The reference is the official implementation in FP32 with its weights left on disk (accelerate), the packages are
built by the pipeline with functions of 32 and 64 tokens for 1 and 8 texts (so that milrun decodes 8 GB of weights
once for 8 texts, not 8 times); one text also runs in the default function, where every value inside is looked at
(`benchmarks.inside`). Every text is compared, the worst judged (`LEAST`). Works for any decoder's checkpoint.
Needs twice the checkpoint's size on its disk; packages are deleted. Each step is a process of its own, whose peak
resident memory is given in bytes. Prints one JSON line; `--out` keeps it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from benchmarks import steps
from benchmarks.inside import inside
from corembed import engines
from corembed.release import Function
from corembed.tokenizer import TextTokenizer, Tokens
from milrun.testing.machine import describe
from pipeline import agreement, params
from pipeline.assemble import assemble, package_names
from pipeline.errors import PipelineError, run
from pipeline.files import read_json, write_json
from pipeline.recipe import read_tokenizer
from pipeline.reference import embed, open_original
from pipeline.texts import parity_texts
from pipeline.trace import open_source, trace

LENGTHS, BATCHES = (32, 64), (1, 8)
LEAST = {"fp16": 0.999, "int8": 0.995}
"""Least cosine of a text by variant. Random weights have no structure that fewer bits could keep, and there are no
activations to round by: what 4 bits give is reported, and judged on trained weights only."""


def tokens(checkpoint: Path, texts: list[str]) -> tuple[TextTokenizer, list[Tokens]]:
    """The texts as the loader tokenizes them."""
    rows = open_source(checkpoint).config.vocabulary
    tokenizer = TextTokenizer(checkpoint / "tokenizer.json", read_tokenizer(checkpoint, rows, LENGTHS[-1]))
    return tokenizer, list(tokenizer.encode(texts))


def choose(checkpoint: Path, count: int) -> list[str]:
    """Parity texts of every group, the shorter first: four fifths fit 32 tokens, the others 64."""
    texts = list(dict.fromkeys(row["text"] for row in parity_texts(4 * count)))
    _, made = tokens(checkpoint, texts)
    short = [t for t, m in zip(texts, made, strict=True) if len(m.ids) <= LENGTHS[0]]
    long = [t for t, m in zip(texts, made, strict=True) if LENGTHS[0] < len(m.ids) and not m.cut]
    share = count * 4 // 5
    return short[:: max(len(short) // share, 1)][:share] + long[: count - share]


def step_reference(source: str, out: str, texts_asked: str) -> dict[str, Any]:
    """Embed the texts by the original."""
    checkpoint, folder, count = Path(source), Path(out), int(texts_asked)
    texts = choose(checkpoint, count)
    started = time.monotonic()
    model = open_original(checkpoint, LENGTHS[-1])
    rows = [{"text": text, "prompt": None} for text in texts]
    share = count * 4 // 5  # two batches, so that short texts are not padded to the longest
    vectors = [embed(model, part, batch=len(part)) for part in (rows[:share], rows[share:])]
    save_file({"vectors": np.concatenate(vectors)}, folder / "reference.safetensors")
    write_json(folder / "texts.json", texts)
    return {"seconds": time.monotonic() - started, "texts": len(texts)}


def step_build(source: str, out_folder: str, variant: str, layout: str) -> dict[str, Any]:
    """Trace and write the packages of one layout."""
    checkpoint, folder = Path(source), Path(out_folder)
    entry = params.Model("4b", f"path:{checkpoint}", None, None, LENGTHS, (layout,), batches=BATCHES)
    started = time.monotonic()
    trace(entry, checkpoint, folder / "traced")
    out = folder / "packages"
    assemble(
        folder / "traced",
        checkpoint,
        params.variant(variant).uncalibrated(),
        out,
        {"corembed.summary": "parity"},
    )
    shutil.rmtree(folder / "traced")
    return {"seconds": time.monotonic() - started}


def step_run(source: str, built: str, variant: str, layout: str) -> dict[str, Any]:
    """Embed the texts by the packages and compare."""
    checkpoint, folder = Path(source), Path(built)
    texts = read_json(folder / "texts.json")
    expected = load_file(folder / "reference.safetensors")["vectors"]
    record = read_json(folder / "packages" / "packages.json")
    names = package_names(variant, layout, record["layouts"][layout])
    engine = engines.make("milrun", [folder / "packages" / name for name in names])
    functions = [Function(**f) for f in record["functions"]]
    tokenizer, made = tokens(checkpoint, texts)
    started = time.monotonic()
    found = np.zeros_like(expected)
    for length in LENGTHS:
        function = next(f for f in functions if f.length == length and f.batch == BATCHES[-1])
        mine = [i for i, t in enumerate(made) if min(n for n in LENGTHS if n >= len(t.ids)) == length]
        for start in range(0, len(mine), function.batch):
            rows = mine[start : start + function.batch]
            ids, mask = tokenizer.pad([made[i] for i in rows], function)
            found[rows] = engine.run(function, ids, mask)[: len(rows)]
    default = functions[0]
    ids, mask = tokenizer.pad([made[0]], default)
    alone = engine.run(default, ids, mask)
    seen = inside([folder / "packages" / name for name in names], default, ids, mask)
    cosines = agreement.cosines(found, expected)
    np.save(folder / f"{layout}.npy", found)
    return {
        "seconds": time.monotonic() - started,
        "min_cosine": float(cosines.min()),
        "median_cosine": float(np.median(cosines)),
        "default_function_cosine": float(agreement.cosines(alone, expected[:1])[0]),
        "relative_spread": agreement.spread(found) / agreement.spread(expected),
        "packages": len(names),
        "inside": seen,
    }


def main() -> None:
    """See the module."""
    if steps.asked({"reference": step_reference, "build": step_build, "run": step_run}):
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("variants", nargs="*", default=["fp16"])
    parser.add_argument("--layouts", nargs="+", default=["single"])
    parser.add_argument("--texts", type=int, default=20)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    checkpoint = chosen.checkpoint.resolve()
    missed, figures = [], {}
    with tempfile.TemporaryDirectory(prefix="parity-4b-", dir=checkpoint.parent) as name:
        folder = Path(name)
        reference = steps.measure("parity_4b", "reference", checkpoint, folder, chosen.texts)
        print(f"reference: {reference}", file=sys.stderr)
        for variant in chosen.variants:
            for layout in chosen.layouts:
                steps.measure("parity_4b", "build", checkpoint, folder, variant, layout)
                found = steps.measure("parity_4b", "run", checkpoint, folder, variant, layout)
                shutil.rmtree(folder / "packages")
                limit = LEAST.get(variant, 0)
                if not found["min_cosine"] >= limit:
                    missed.append(f"{variant} {layout}: {found['min_cosine']}, allowed at least {limit}")
                figures[f"{variant}-{layout}"] = found
                print(f"{variant} {layout}: {found}", file=sys.stderr)
            if len(chosen.layouts) == 2:
                same = np.array_equal(*(np.load(folder / f"{layout}.npy") for layout in chosen.layouts))
                figures[f"{variant}-layouts"] = {"bit_equal": bool(same)}
    line = {
        "reference": reference,
        "figures": figures,
    } | describe("torch", "coremltools", "transformers", "sentence-transformers", "accelerate")
    print(json.dumps(line))
    if chosen.out:
        write_json(chosen.out, line)
    if missed:
        raise PipelineError("; ".join(missed))


if __name__ == "__main__":
    run(main)
