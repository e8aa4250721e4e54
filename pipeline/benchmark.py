"""Stage `benchmark`: how large is a variant, what is it made of, and how fast does it run?

From `packages/VARIANT/`, writes `reports/benchmark/MODEL/VARIANT.json`. Without a Mac, every figure of the Neural
Engine is null, not measured; what can be known anywhere is size (bytes), operations, and what milrun's static
rules foresee. The emulator's own time (milliseconds, median of repeated runs of one text) stands under its own
name: it says nothing of a Mac.
"""

from __future__ import annotations

import collections
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import milrun
from corembed import engines
from corembed.release import Function
from pipeline import params, places
from pipeline.assemble import package_names
from pipeline.errors import run
from pipeline.files import read_json, write_json
from pipeline.skeleton import ct

NOT_MEASURED = (
    "neural_engine_latency_p50_ms",
    "neural_engine_latency_p95_ms",
    "neural_engine_share_of_cost",
    "cold_load_seconds",
    "warm_load_seconds",
)
_RUNS = 5


def operations(package: Path) -> dict[str, int]:
    """How many operations of each kind the package's default function has, constants left out."""
    spec = ct.models.utils.load_spec(str(package))
    functions = spec.mlProgram.functions
    name = spec.description.defaultFunctionName or "main"
    (block,) = functions[name].block_specializations.values()
    return dict(sorted(collections.Counter(op.type for op in block.operations if op.type != "const").items()))


def emulator_ms(packages: list[Path], functions: list[Function]) -> dict[str, float]:
    """Median time of one run in milrun for each function, after one warm-up, in milliseconds."""
    engine = engines.make("milrun", packages)
    found = {}
    for function in functions:
        ids = np.ones((function.batch, function.length), np.int32)
        times = []
        for _ in range(_RUNS + 1):
            start = time.perf_counter()
            engine.run(function, ids, np.ones_like(ids))
            times.append((time.perf_counter() - start) * 1e3)
        found[function.name] = round(statistics.median(times[1:]), 2)
    return found


def benchmark(where: places.Places, model: str, variant: str, report: Path) -> dict[str, Any]:
    """Measure one variant and write its report."""
    folder = where.packages(variant)
    record = read_json(folder / "packages.json")
    functions = [Function(**f) for f in record["functions"]]
    layouts = {
        layout: [folder / name for name in package_names(variant, layout, count)]
        for layout, count in record["layouts"].items()
    }
    findings = [f for paths in layouts.values() for path in paths for f in milrun.lint(path)]
    first = next(iter(layouts.values()))
    sizes = {
        layout: sum(f.stat().st_size for p in paths for f in p.rglob("*") if f.is_file())
        for layout, paths in layouts.items()
    }
    figures: dict[str, Any] = dict.fromkeys(NOT_MEASURED)
    figures |= {
        "model": model,
        "variant": variant,
        "bytes": next(iter(sizes.values())),
        "bytes_by_layout": sizes,
        "parts": {layout: len(paths) for layout, paths in layouts.items()},
        "operations": operations(first[0]),
        "lint_errors": sum(f.severity == "error" for f in findings),
        "lint_warnings": sum(f.severity == "warning" for f in findings),
        "lint": sorted({f"{f.severity}: {f.rule}: {f.message}" for f in findings}),
        "emulator_ms": emulator_ms(first, functions),
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "python": platform.python_version(),
        },
    }
    write_json(report, figures)
    return figures


def main() -> None:
    """`python -m pipeline.benchmark MODEL VARIANT`."""
    model, variant = places.arguments_of(sys.argv, "MODEL", "VARIANT")
    params.variant(variant)
    benchmark(places.of(model), model, variant, places.report("benchmark", model, variant))


if __name__ == "__main__":
    run(main)
