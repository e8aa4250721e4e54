"""What does the evidence cost: wall time and peak resident memory of `audit` and `validate`, each in its own process.

Usage: `python -m benchmarks.evidence [MODEL] [--out FILE]` after `make demo`: every variant of one model; reports go
to a temporary folder. `python -m benchmarks.evidence --checkpoint FOLDER [--variant fp16] [--texts 20] [--work FOLDER]`
builds one variant of a checkpoint with functions of 32 and 128 tokens first (twice its size on disk) and needs no
entry in params.yaml; what `--work` holds already is used. Prints one JSON line; seconds and bytes. Processor
time is given beside wall time, which says little on a machine that has other work.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks.stages import measure
from milrun.testing.machine import describe
from pipeline import params
from pipeline.files import write_json


def judged(code: Path, model: str, variants: list[str]) -> dict[str, Any]:
    """Run both stages for each variant in the present folder."""
    found: dict[str, Any] = {}
    for variant in variants:
        for stage in ("audit", "validate"):
            found[f"{stage} {variant}"] = measure(code, stage, model, variant)
    return found


def built(code: Path, checkpoint: Path, variant: str, texts: int) -> dict[str, Any]:
    """Build a checkpoint in the present folder, as far as it is not built, then run both stages."""
    everything = params.load(code / "params.yaml")
    entry = {
        "source": f"path:{checkpoint}",
        "max_lengths": [32, 128],
        "batches": [1, 8],
        "parity_texts": texts,
    }
    everything["models"] = {"large": entry}
    Path("params.yaml").write_text(yaml.safe_dump(everything), encoding="utf-8")
    root = Path("artifacts") / "large"
    steps = [
        (root / "source.json", ("download", "large")),
        (root / "traced", ("trace", "large")),
        (root / "reference", ("reference", "large")),
        (
            root / "packages" / variant,
            ("convert", "large") if variant == "fp16" else ("quantize", "large", variant),
        ),
    ]
    found = {" ".join(step): measure(code, *step) for there, step in steps if not there.exists()}
    return found | judged(code, "large", [variant])


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="all-minilm-l6-v2")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--variant", default="fp16")
    parser.add_argument("--texts", type=int, default=20)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    code, out = Path.cwd(), chosen.out and chosen.out.resolve()
    with tempfile.TemporaryDirectory(prefix="evidence-") as temporary:
        work = chosen.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        os.chdir(work)
        if chosen.checkpoint:
            stages = built(code, chosen.checkpoint.resolve(), chosen.variant, chosen.texts)
        else:
            Path("params.yaml").write_bytes((code / "params.yaml").read_bytes())
            Path("artifacts").symlink_to(code / "artifacts")
            stages = judged(code, chosen.model, params.variants(params.load()))
        os.chdir(code)
    every = [s for name, s in stages.items() if name.startswith(("audit", "validate"))]
    validated = [s for name, s in stages.items() if name.startswith("validate")]
    line = {
        "model": str(chosen.checkpoint.name) if chosen.checkpoint else chosen.model,
        "stages": stages,
        "validate_seconds": round(sum(s["seconds"] for s in validated), 2),
        "validate_cpu_seconds": round(sum(s["cpu_seconds"] for s in validated), 2),
        "peak_rss_bytes": max(s["peak_rss_bytes"] for s in every),
    } | describe("coremltools", "numpy", "torch", "mteb")
    if out:
        write_json(out, line)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
