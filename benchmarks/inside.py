"""What passes inside a decoder's packages: peaks where FP16 breaks, rows that were lost, values that overflowed.

Usage: `python -m benchmarks.inside RELEASE [TEXT ...] [--out FILE]` on a release folder whose variant fp16 is a
decoder's. milrun computes in the types that the package declares and shows every value. Per text: the largest
magnitude at any norm's input and at any `down_proj`'s input (FP16 holds 65,504), values that are not finite, and
rows of a layer that are all zero, which is what a plain norm leaves of a row beyond 256. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from corembed import release
from corembed.release import Function
from corembed.tokenizer import TextTokenizer
from pipeline.drift import Array, run
from pipeline.errors import PipelineError
from pipeline.errors import run as command
from pipeline.files import write_json

TEXTS = ("import numpy as np", "importance of trees in cities", "The capital of China is Beijing.", "")


def inside(packages: Sequence[Path], function: Function, ids: Array, mask: Array) -> dict[str, Any]:
    """Run one batch and look at every value of every layer; magnitudes have no unit."""
    peaks: dict[str, float] = {}
    found = {"values": 0, "not_finite": 0}
    lost: list[str] = []
    norm_input, down_input = 0.0, 0.0

    def look(layer: int, kind: str, name: str, sources: list[str], value: Array) -> None:
        nonlocal norm_input, down_input
        peaks[name] = float(np.abs(value).max(initial=0))
        if not name.startswith(("layer_", "hidden_")):
            return
        found["values"] += value.size
        found["not_finite"] += int((~np.isfinite(value)).sum())
        turned = any(source.endswith("sine") for source in sources)  # zero at the first position, rightly
        if not turned and value.ndim > 1 and value.shape[-1] > 1:
            rows = int((~value.reshape(-1, value.shape[-1]).any(1)).sum())
            lost.extend([f"{name} ({kind}), {rows} rows"] if rows else [])
        if kind == "abs":  # each norm begins with the magnitudes of its input
            norm_input = max(norm_input, peaks[name])
        if kind == "linear" and any(source.endswith("down_proj_weight") for source in sources):
            down_input = max(down_input, *(peaks[s] for s in sources if s in peaks and "weight" not in s))
        del layer

    run(packages, function, ids, mask, look, "declared")
    return found | {"lost": lost, "peak_norm_input": norm_input, "peak_down_proj_input": down_input}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("release", type=Path)
    parser.add_argument("texts", nargs="*", default=TEXTS)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    made = release.read(chosen.release)
    packages = [chosen.release / path for path in made.package("fp16").paths]
    tokenizer = TextTokenizer(chosen.release / "tokenizer.json", made.tokenizer)
    each = {}
    for text, tokens in zip(chosen.texts, tokenizer.encode(chosen.texts), strict=True):
        function = next(f for f in made.functions if f.length >= len(tokens.ids))
        each[text] = inside(packages, function, *tokenizer.pad([tokens], function))
    line = {"model": made.model, "texts": each}
    print(json.dumps(line))
    if chosen.out:
        write_json(chosen.out, line)
    if lost := [text for text, found in each.items() if found["not_finite"] or found["lost"]]:
        raise PipelineError(
            f"values were lost inside on {len(lost)} texts, {lost[0]!r} first: {each[lost[0]]}"
        )


if __name__ == "__main__":
    command(main)
