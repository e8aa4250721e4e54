"""Stage `benchmark`: how large is a variant, what is it made of, and how fast does it run?

From `packages/VARIANT/`, writes `reports/benchmark/MODEL/VARIANT.json`, and `reports/coreml/MODEL/VARIANT.json` as it was measured. On a Mac it loads and times every layout,
function and set of compute units, reads where Core ML places the operations, and fails below the variant's gate on
the Neural Engine's share of cost (`pipeline.mac`). Without a Mac, every such figure is null, not measured; what can be
known anywhere is size (bytes), operations, and what milrun's static rules foresee. The emulator's own time
(milliseconds, median of repeated runs of one text) stands under its own name: it says nothing of a Mac.
"""

from __future__ import annotations

import collections
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import milrun
from corembed import engines
from corembed.release import Function
from pipeline import conditions, mac, params, places
from pipeline.assemble import package_names
from pipeline.errors import PipelineError, run
from pipeline.files import read_json, write_json
from pipeline.skeleton import ct

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


def usual(functions: Sequence[Function]) -> Function:
    """The function whose figures stand for the build in tables: one text of 128 tokens, or the nearest there is."""
    return min(functions, key=lambda f: (f.batch, abs(f.length - 128)))


def judge(figures: Mapping[str, Any], gates: params.Gates) -> str | None:
    """What is wrong with the placement; nothing where it was not measured."""
    share = figures["neural_engine_share_of_cost"]
    if share is None or share >= gates.min_neural_engine_cost:
        return None
    return (
        f"Core ML places {share:.3f} of the estimated cost on the Neural Engine, allowed at least "
        f"{gates.min_neural_engine_cost}; the report's `coreml.plans` says which operations it leaves to others"
    )


def benchmark(
    where: places.Places,
    model: str,
    variant: params.Variant,
    report: Path,
    raw: Path,
    measure: Callable[..., dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Measure one variant, write its report, then raise `PipelineError` if a gate is missed.

    `measure` measures on a Mac (`pipeline.mac.measure`); without it nothing is measured there. What it gives is
    written to `raw` as it is.
    """
    folder = where.packages(variant.name)
    record = read_json(folder / "packages.json")
    functions = [Function(**f) for f in record["functions"]]
    layouts = {
        layout: [folder / name for name in package_names(variant.name, layout, count)]
        for layout, count in record["layouts"].items()
    }
    findings = [f for paths in layouts.values() for path in paths for f in milrun.lint(path)]
    first = next(iter(layouts.values()))
    sizes = {
        layout: sum(f.stat().st_size for p in paths for f in p.rglob("*") if f.is_file())
        for layout, paths in layouts.items()
    }
    figures: dict[str, Any] = {
        "model": model,
        "variant": variant.name,
        "bytes": next(iter(sizes.values())),
        "bytes_by_layout": sizes,
        "parts": {layout: len(paths) for layout, paths in layouts.items()},
        "operations": operations(first[0]),
        "lint_errors": sum(f.severity == "error" for f in findings),
        "lint_warnings": sum(f.severity == "warning" for f in findings),
        "lint": sorted({f"{f.severity}: {f.rule}: {f.message}" for f in findings}),
        "emulator_ms": emulator_ms(first, functions),
        "function": usual(functions).name,
        "machine": conditions.machine(),
    }
    measured = measure(layouts, functions, where.checkpoint) if measure else None
    figures |= mac.headline(measured or NOTHING, usual(functions))
    missed = judge(figures, variant.gates)
    figures["placement_passed"] = None if measured is None else missed is None
    write_json(raw, measured or {"measured": None, "reason": "needs a Mac: run `make measure` there"})
    write_json(report, figures)
    if missed:
        raise PipelineError(f"{model} {variant.name}: {missed} (report: {report}, {raw})")
    return figures


NOTHING: Mapping[str, Any] = {"settings": (), "plans": ()}


def main() -> None:
    """`python -m pipeline.benchmark MODEL VARIANT`."""
    model, variant = places.arguments_of(sys.argv, "MODEL", "VARIANT")
    benchmark(
        places.of(model),
        model,
        params.variant(variant),
        places.report("benchmark", model, variant),
        places.report("coreml", model, variant),
        mac.measure if platform.system() == "Darwin" else None,
    )


if __name__ == "__main__":
    run(main)
