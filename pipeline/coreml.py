"""One measurement of packages in Core ML, in a process of its own: `python -m pipeline.coreml < job.json`.

A process has loaded nothing before, so a load here is a real load, and memory is the model's own. The job is JSON on
stdin, the result one line of JSON on stdout. Jobs: `compile` a package once (each compilation is a new model to the
device's cache, and costs a cold load), `run` a function, `plan` where its operations would be placed. Times are
milliseconds unless the name says seconds; a failure of Core ML is the job's result, with its message.

Written against coremltools 9.0 (`CompiledMLModel`, `MLComputePlan`, macOS 15).
"""

from __future__ import annotations

import collections
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

Job = Mapping[str, Any]


def percentiles(times: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 of times."""
    return {f"p{p}_ms": round(float(np.percentile(times, p)), 3) for p in (50, 95, 99)}


def compile_package(job: Job) -> dict[str, Any]:
    """Compile `package` to the folder `compiled`."""
    from coremltools.models.utils import compile_model  # noqa: PLC0415

    start = time.perf_counter()
    compile_model(job["package"], job["compiled"])
    return {"compile_seconds": round(time.perf_counter() - start, 3)}


def _load(job: Job) -> list[Any]:
    import coremltools as ct  # noqa: PLC0415

    units = getattr(ct.ComputeUnit, job["units"])
    name = None if job["function"] == "main" else job["function"]
    return [ct.models.CompiledMLModel(path, units, function_name=name) for path in job["compiled"]]


def _predict(models: Sequence[Any], ids: Any, mask: Any) -> float:
    """One pass through all parts: milliseconds."""
    start = time.perf_counter()
    state: dict[str, Any] = {"input_ids": ids}
    for model in models:
        state = model.predict({**state, "attention_mask": mask})
    return (time.perf_counter() - start) * 1e3


def resident_bytes() -> dict[str, int]:
    """What this process holds now, by `ps`, and at most so far."""
    now = subprocess.run(  # noqa: S603
        ["ps", "-o", "rss=", "-p", str(os.getpid())],  # noqa: S607 - wherever the system has it
        capture_output=True,
        text=True,
        check=True,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"resident_bytes": int(now.stdout) * 1024, "peak_resident_bytes": peak}


def measure(job: Job) -> dict[str, Any]:
    """Load all parts of one function, then time predictions after `warmups`, and once more after `idle_seconds`."""
    batch, length = job["batch"], job["length"]
    ids = np.tile(np.arange(1, length + 1, dtype=np.int32) % 997 + 1000, (batch, 1)).astype(np.int32)
    mask = np.ones_like(ids)
    start = time.perf_counter()
    models = _load(job)
    loaded = time.perf_counter() - start
    first = _predict(models, ids, mask)
    found: dict[str, Any] = {"load_seconds": round(loaded, 3), "first_ms": round(first, 3)}
    if job["runs"]:
        for _ in range(job["warmups"]):
            _predict(models, ids, mask)
        times = [_predict(models, ids, mask) for _ in range(job["runs"])]
        found |= percentiles(times) | {"texts_per_second": round(batch * len(times) / sum(times) * 1e3, 2)}
        found["times_ms"] = [round(t, 3) for t in times]
        time.sleep(job["idle_seconds"])
        found["after_idle_ms"] = round(_predict(models, ids, mask), 3)
    return found | resident_bytes()


def _operations(block: Any) -> Iterator[Any]:
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from _operations(inner)


def _kind(device: Any) -> str:
    return {"MLCPUComputeDevice": "cpu", "MLGPUComputeDevice": "gpu"}.get(
        type(device).__name__, "neural_engine"
    )


def plan(job: Job) -> dict[str, Any]:
    """Where Core ML would place the operations of one compiled package: by number and by estimated cost.

    Constants have no place and are left out. The API says which devices support an operation, not why one does not:
    what stays off the Neural Engine is told apart by whether it could be there.
    """
    import coremltools as ct  # noqa: PLC0415
    from coremltools.models.compute_plan import MLComputePlan  # noqa: PLC0415

    found = MLComputePlan.load_from_path(job["compiled"], getattr(ct.ComputeUnit, job["units"]))
    program = found.model_structure.program
    if program is None:
        raise RuntimeError(f"{job['compiled']}: no ML Program in the compute plan")
    counts: collections.Counter[str] = collections.Counter()
    costs: collections.Counter[str] = collections.Counter()
    elsewhere: collections.Counter[tuple[str, str, str]] = collections.Counter()
    products = 0
    for operation in _operations(program.functions[job["function"]].block):
        usage = found.get_compute_device_usage_for_mlprogram_operation(operation)
        if usage is None:
            continue
        cost = found.get_estimated_cost_for_mlprogram_operation(operation)
        device = _kind(usage.preferred_compute_device)
        kind = operation.operator_name.rsplit(".", 1)[-1]
        products += kind in {"linear", "matmul", "conv"}
        counts[device] += 1
        costs[device] += 0.0 if cost is None else cost.weight
        if device != "neural_engine":
            able = any(_kind(d) == "neural_engine" for d in usage.supported_compute_devices)
            reason = "could run there, another device is preferred" if able else "not supported there"
            elsewhere[kind, device, reason] += 1
    total, cost_total = sum(counts.values()), sum(costs.values())
    return {
        "operations": total,
        "products": products,
        "share_of_operations": {d: n / total for d, n in sorted(counts.items())},
        "share_of_cost": {d: c / cost_total for d, c in sorted(costs.items())} if cost_total else None,
        "not_on_neural_engine": [
            {"operation": kind, "device": device, "reason": reason, "count": count}
            for (kind, device, reason), count in elsewhere.most_common()
        ],
    }


JOBS = {"compile": compile_package, "run": measure, "plan": plan}


def main() -> None:
    """Do the job on stdin."""
    job = json.load(sys.stdin)
    try:
        result = JOBS[job["job"]](job)
    except Exception as error:  # noqa: BLE001 - Core ML raises bare exceptions; the parent reports them
        result = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(result))


def run(job: Job) -> dict[str, Any]:
    """Do a job in a process of its own; its result, or `error` with what the process said last."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.coreml"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stdout.strip().splitlines()[-1:] or ["{}"]
    try:
        result: dict[str, Any] = json.loads(last[0])
    except ValueError:
        result = {}
    if done.returncode or not result:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return {"error": said[0]}
    return result


if __name__ == "__main__":
    main()
