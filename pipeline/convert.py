"""Stage `convert`: the model as Core ML packages with FP16 weights.

From `traced/` and `checkpoint/`, writes `packages/fp16/`: one `.mlpackage` for the layout `single`, one a part for
`parts`. Weights are streamed; a value that FP16 cannot hold is an error that names its tensor.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys

from pipeline import params, places
from pipeline.allocate import resolved
from pipeline.assemble import assemble
from pipeline.errors import run
from pipeline.files import read_json


def metadata(entry: params.Model, variant: str, where: places.Places) -> dict[str, str]:
    """What a package says of itself; no dates, so that the same inputs give the same bytes."""
    source = read_json(where.source)
    reference = read_json(where.traced / "trace.json")
    lengths = ", ".join(str(n) for n in entry.max_lengths)
    versions = {name: importlib.metadata.version(name) for name in ("coremltools", "torch", "corembed")}
    return {
        "corembed.summary": f"{entry.name}, {variant}: text embedding, {reference['dimension']} dimensions, {lengths} tokens",
        "corembed.model": entry.name,
        "corembed.source": source["source"],
        "corembed.revision": str(source["revision"]),
        "corembed.variant": variant,
        "corembed.buckets": lengths,
        "corembed.recipe": json.dumps(reference["recipe"], sort_keys=True),
        "corembed.tools": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def build(entry: params.Model, variant: params.Variant, where: places.Places) -> None:
    """Assemble one variant of a model; one with a budget by the report of the stage `sensitivity`."""
    variant = resolved(variant, where.sensitivity)
    assemble(
        where.traced,
        where.checkpoint,
        variant,
        where.packages(variant.name),
        metadata(entry, variant.name, where),
        where.calibration,
    )


def main() -> None:
    """`python -m pipeline.convert MODEL`."""
    entry = params.model(places.argument(sys.argv, "MODEL"))
    build(entry, params.variant("fp16"), places.of(entry.name))


if __name__ == "__main__":
    run(main)
