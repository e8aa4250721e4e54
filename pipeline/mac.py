"""All measurements that need a Mac, for one variant: every layout, function and set of compute units.

Each package is compiled once. Then, for each setting, two processes: one that loads for the first time (cold: the
device's compiler runs) and one that loads again (warm) and is timed. `CPU_AND_NE` forbids the GPU; `ALL` may choose it.
PyTorch on MPS and MLX run the same model on the same token ids in the same session, where the checkpoint is here.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from corembed.release import Function
from pipeline import baseline, conditions, coreml

UNITS = ("CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE", "ALL")
NEURAL_ENGINE = "CPU_AND_NE"


def compiled(layouts: Mapping[str, Sequence[Path]], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Compile each package once; for each layout the compiled paths with what compiling took."""
    made: dict[str, list[dict[str, Any]]] = {}
    for layout, packages in layouts.items():
        made[layout] = []
        for number, package in enumerate(packages):
            target = folder / f"{layout}-{number:02d}.mlmodelc"
            result = coreml.run({"job": "compile", "package": str(package), "compiled": str(target)})
            made[layout].append({"package": package.name, "path": str(target)} | result)
    return made


def setting(
    paths: Sequence[str], function: Function, units: str, *, warmups: int, runs: int, idle_seconds: float
) -> dict[str, Any]:
    """One layout, function and set of units: a cold process, then a warm one that is timed."""
    job = {
        "job": "run",
        "compiled": list(paths),
        "function": function.name,
        "batch": function.batch,
        "length": function.length,
        "units": units,
        "warmups": max(warmups, 3),
        "idle_seconds": idle_seconds,
    }
    before = conditions.state()
    cold = coreml.run(job | {"runs": 0})
    warm = coreml.run(job | {"runs": runs})
    found = {"function": function.name, "batch": function.batch, "length": function.length, "units": units}
    if error := cold.get("error") or warm.get("error"):
        return found | {"error": error}
    return found | {
        "cold_load_seconds": cold["load_seconds"],
        "cold_first_ms": cold["first_ms"],
        "warm_load_seconds": warm["load_seconds"],
        **{k: v for k, v in warm.items() if k != "load_seconds"},
        "before": before,
        "after": conditions.state(),
    }


def placements(parts: Sequence[Mapping[str, Any]], function: Function, units: str) -> dict[str, Any]:
    """The compute plan of each part, and the least share of cost on the Neural Engine among parts that multiply.

    A part that only looks rows up has nothing for the Neural Engine to do.
    """
    found = [
        {"package": part["package"]}
        | coreml.run({"job": "plan", "compiled": part["path"], "function": function.name, "units": units})
        for part in parts
    ]
    shares = [
        (plan["share_of_cost"] or {}).get("neural_engine", 0.0) for plan in found if plan.get("products")
    ]
    return {
        "function": function.name,
        "units": units,
        "parts": found,
        "least_neural_engine_cost": min(shares, default=None),
    }


def measure(
    layouts: Mapping[str, Sequence[Path]],
    functions: Sequence[Function],
    checkpoint: Path,
    *,
    warmups: int = 5,
    runs: int = 50,
    idle_seconds: float = 30.0,
) -> dict[str, Any]:
    """Everything, and the conditions before and after."""
    started = conditions.state()
    folder = Path(tempfile.mkdtemp(prefix="coreml-"))
    try:
        made = compiled(layouts, folder)
        settings, plans = [], []
        progress = tqdm(
            total=len(layouts) * len(functions) * len(UNITS), desc="Core ML", unit="setting", disable=None
        )
        for layout, parts in made.items():
            paths = [part["path"] for part in parts]
            for function in functions:
                plans.append({"layout": layout} | placements(parts, function, NEURAL_ENGINE))
                plans.append({"layout": layout} | placements(parts, function, "ALL"))
                for units in UNITS:
                    timed = setting(
                        paths, function, units, warmups=warmups, runs=runs, idle_seconds=idle_seconds
                    )
                    settings.append({"layout": layout} | timed)
                    progress.update()
        progress.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "machine": conditions.machine(),
        "before": started,
        "after": conditions.state(),
        "compiled": made,
        "settings": settings,
        "plans": plans,
        "baselines": baseline.all_of(checkpoint, functions, warmups=warmups, runs=runs),
        "warmups": max(warmups, 3),
        "runs": runs,
        "idle_seconds": idle_seconds,
    }


def headline(measured: Mapping[str, Any], function: Function) -> dict[str, Any]:
    """The few figures of one function that tables show: the layout that is fastest on the Neural Engine."""
    fit = [
        s
        for s in measured["settings"]
        if s["units"] == NEURAL_ENGINE and s["function"] == function.name and "error" not in s
    ]
    shares = [
        p["least_neural_engine_cost"]
        for p in measured["plans"]
        if p["units"] == NEURAL_ENGINE and p["function"] == function.name
    ]
    best = min(fit, key=lambda s: s["p50_ms"], default=None)
    known = [s for s in shares if s is not None]
    return {
        "neural_engine_latency_p50_ms": best and best["p50_ms"],
        "neural_engine_latency_p95_ms": best and best["p95_ms"],
        "neural_engine_latency_p99_ms": best and best["p99_ms"],
        "neural_engine_texts_per_second": best and best["texts_per_second"],
        "neural_engine_share_of_cost": max(known, default=None),
        "cold_load_seconds": best and best["cold_load_seconds"],
        "warm_load_seconds": best and best["warm_load_seconds"],
        "first_prediction_ms": best and best["first_ms"],
        "after_idle_ms": best and best["after_idle_ms"],
        "resident_bytes": best and best["resident_bytes"],
    }
