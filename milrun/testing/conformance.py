"""Runs the stated selection of coremltools' tests and writes `reports/conformance.json`.

`python -m milrun.testing.conformance [--suite NAME ...] [--out FILE] [--jobs 2]`. Suites:

- `operations`: `converters/mil/mil/ops/tests`, all files, four parametrisations of each function
- `torch`: 2,000 tests drawn from the PyTorch front end's
- `compression`: all files that compress weights, or run compressed ones, and predict (those of
  `coremltools.optimize.torch` need torchvision to be collected); sixteen parametrisations of each function
- `compression_uniform`: 400 drawn uniformly from three of these files, where three functions with one fault
  of their own have 1,116 of 4,896 parametrisations; reported, not judged

Draws are by fixed seeds from the sorted ids, so they are the same everywhere. A test counts as
passed only if it executed a prediction, as failed only if it executed one or the stand-in raised; what
passed or failed without is `no_prediction`. Tests that the suite
expects to fail, for bugs of Core ML's own, and that predict the right numbers here count as passed;
`core_ml_fails` says how many. Tests of the neural-network back end are counted apart and not judged.
"""

from __future__ import annotations

import argparse
import collections
import inspect
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milrun.testing.machine import describe


@dataclass(frozen=True)
class Suite:
    """Which files, how many parametrisations of each function (0: no limit), how many tests in all."""

    paths: tuple[str, ...]
    per_function: int
    total: int
    seed: int
    bar: float | None


_COMPRESSION = (
    "test/optimize/coreml/test_post_training_quantization.py",
    "converters/mil/mil/ops/tests/iOS16/test_constexpr_ops.py",
    "converters/mil/mil/ops/tests/iOS18/test_compression.py",
)
_MORE_COMPRESSION = (
    "converters/mil/frontend/torch/test/test_torch_quantization_ops.py",
    "test/ml_program/test_compression.py",
    "test/optimize/api/test_optimize_api.py",
    "test/optimize/coreml/test_passes.py",
)
SUITES = {
    "operations": Suite(("converters/mil/mil/ops/tests",), 4, 0, 20261123, 0.97),
    "torch": Suite(
        (
            "converters/mil/frontend/torch/test/test_torch_ops.py",
            "converters/mil/frontend/torch/test/test_torch_conversion_api.py",
            "converters/mil/frontend/torch/test/test_custom_ops.py",
            "converters/mil/frontend/torch/test/test_torch_stateful_model.py",
        ),
        0,
        2000,
        20261123,
        0.95,
    ),
    "compression": Suite((*_COMPRESSION, *_MORE_COMPRESSION), 16, 0, 20261123, 0.95),
    "compression_uniform": Suite(_COMPRESSION, 0, 400, 20261123, None),
}
_PYTEST = (
    "-m",
    "pytest",
    "-p",
    "milrun.testing.plugin",
    "-p",
    "no:cacheprovider",
    "-q",
    "--continue-on-collection-errors",
)


_KEYS = (
    "passed",
    "failed",
    "skipped",
    "no_prediction",
    "dependency_missing",
    "neural_network",
    "core_ml_fails",
    "predictions",
)


def coremltools_root() -> Path:
    """The installed coremltools folder."""
    import coremltools  # noqa: PLC0415

    return Path(inspect.getfile(coremltools)).parent


def _environment(**extra: str) -> dict[str, str]:
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0", **threads, **extra}


def collect(suite: Suite) -> list[str]:
    """Ids of all tests of a suite's files, sorted."""
    root = coremltools_root()
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder) / "ids"
        paths = [str(root / p) for p in suite.paths]
        command = [sys.executable, *_PYTEST, "--collect-only", "--rootdir", folder, *paths]
        subprocess.run(  # noqa: S603 - our own interpreter
            command, check=False, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=_environment(MILRUN_LIST=str(listing)),
        )  # fmt: skip
        return sorted(set(json.loads(listing.read_text("utf-8"))))


def select(ids: list[str], suite: Suite) -> list[str]:
    """The suite's fixed draw from its ids. Tests of the old neural-network back end are left out."""
    ids = [i for i in ids if "neuralnetwork" not in i]
    generator = random.Random(suite.seed)  # noqa: S311 - a reproducible draw, not a secret
    if suite.per_function:
        functions = collections.defaultdict(list)
        for test in ids:
            functions[test.split("[", 1)[0]].append(test)
        chosen = []
        for name in sorted(functions):
            tests = functions[name]
            chosen += generator.sample(tests, min(suite.per_function, len(tests)))
        return sorted(chosen)
    return sorted(generator.sample(ids, min(suite.total, len(ids))))


def run(chosen: list[str], jobs: int = 2, sabotage: str = "") -> list[dict[str, Any]]:
    """Run the chosen tests in `jobs` processes; one record a test."""
    root = coremltools_root()
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for job in range(jobs):
            part, report = Path(folder) / f"select{job}", Path(folder) / f"report{job}"
            mine = chosen[job::jobs]
            part.write_text(json.dumps(mine), "utf-8")
            files = sorted({str(root / test.split("::", 1)[0]) for test in mine})
            work = Path(folder) / f"work{job}"
            work.mkdir()
            environment = _environment(
                MILRUN_SELECT=str(part), MILRUN_REPORT=str(report), MILRUN_SABOTAGE=sabotage, TMPDIR=str(work)
            )
            command = [sys.executable, *_PYTEST, "--rootdir", folder, "--tb=no", *files]
            processes.append(
                subprocess.Popen(  # noqa: S603
                    command, cwd=work, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
            )
        for process in processes:
            process.wait()
        for job in range(jobs):
            report = Path(folder) / f"report{job}"
            if report.exists():
                records += [json.loads(line) for line in report.read_text("utf-8").splitlines()]
    return records


def summarize(
    suite: Suite, chosen: list[str], records: list[dict[str, Any]], seconds: float, cpu_seconds: float
) -> dict[str, Any]:
    """Counts per file and in all, the pass rate among tests that predicted or failed, the failures."""
    files: dict[str, dict[str, Any]] = {}
    failures = []
    for record in sorted(records, key=lambda r: r["id"]):
        name = record["id"].split("::", 1)[0]
        row = files.setdefault(name, {**dict.fromkeys(_KEYS, 0), "seconds": 0.0})
        key = record["outcome"]
        if key in ("passed", "xpassed"):
            row["core_ml_fails"] += key == "xpassed" and bool(record["predictions"])
            key = "passed" if record["predictions"] else "no_prediction"
        elif key == "failed" and not (record["predictions"] or record["raised"]):
            key = "no_prediction"
        row[key] += 1
        row["predictions"] += record["predictions"]
        row["seconds"] = round(row["seconds"] + record["seconds"], 2)
        if key == "failed":
            failures.append({k: record[k] for k in ("id", "predictions", "message", "evidence")})
    totals = {k: sum(row[k] for row in files.values()) for k in _KEYS}
    judged = totals["passed"] + totals["failed"]
    return {
        "paths": list(suite.paths),
        "seed": suite.seed,
        "selected": len(chosen),
        "not_run": sorted(set(chosen) - {r["id"] for r in records}),
        **totals,
        "pass_rate": round(totals["passed"] / judged, 4) if judged else None,
        "bar": suite.bar,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "files": files,
        "failures": failures,
    }


def _cpu_seconds() -> float:
    """Processor time of all child processes that have ended: what other work on the machine doesn't change."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    """Run suites and write the report; 1 if a suite misses its bar."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", action="append", choices=sorted(SUITES))
    parser.add_argument("--out", type=Path, default=Path("reports/conformance.json"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=int, help="run only so many of the selection: for a quick look")
    options = parser.parse_args()
    report = json.loads(options.out.read_text("utf-8")) if options.out.exists() else {}
    passed = True
    for name in options.suite or list(SUITES):
        suite = SUITES[name]
        started, cpu = time.monotonic(), _cpu_seconds()
        chosen = select(collect(suite), suite)
        if options.limit:
            chosen = sorted(random.Random(0).sample(chosen, min(options.limit, len(chosen))))  # noqa: S311
        records = run(chosen, options.jobs)
        wall, used = time.monotonic() - started, _cpu_seconds() - cpu
        report[name] = {**summarize(suite, chosen, records, wall, used), "environment": describe()}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", "utf-8")
        rate = report[name]["pass_rate"]
        passed &= suite.bar is None or (rate is not None and rate >= suite.bar)
        print(
            f"{name}: {report[name]['passed']} passed, {report[name]['failed']} failed, rate "
            f"{rate}, bar {suite.bar}"
        )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
