"""What converting a 4B costs: peak resident memory, wall time and bytes of every variant and layout.

Usage: `python -m benchmarks.convert_4b CHECKPOINT [VARIANT ...] [--layouts single parts] [--calibrated] [--out FILE]` on a
checkpoint of `benchmarks.make_checkpoint`, or a real one. Each step is a process of its own, whose peak is the
kernel's (`VmHWM`). A step's wall time is from the first weight read to the last byte on disk (fsync); just before
it, the checkpoint's files are copied on the same disk (fsync too) and deleted, and `ratio_to_copy` compares the two. `trace`
is the graph's part: tracing the pieces at three lengths and joining the programs of both layouts. Variants are
rounded to nearest, or with `--calibrated` as `params.yaml` says, by moments of inputs that are drawn at random, one
for each number of columns. Packages are written to a temporary folder and deleted. Prints one JSON line in bytes and
seconds; `--out` keeps it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from coremltools.proto import MIL_pb2

from benchmarks import steps
from milrun.testing.machine import describe
from pipeline import params
from pipeline.cut import cut
from pipeline.errors import run
from pipeline.files import read_json, sha256, write_json
from pipeline.splice import Span, splice
from pipeline.trace import trace

LENGTHS = (32, 128, 512)
_METADATA = {"corembed.summary": "measurement"}


def used(name: str, *, calibrated: bool) -> params.Variant:
    """The variant as it is measured."""
    variant = params.variant(name)
    return variant if calibrated else variant.uncalibrated()


def copy(checkpoint: Path, folder: Path) -> float:
    """Seconds to copy the checkpoint's weights into `folder` and have them on disk; they are deleted again."""
    copies = folder / "copy"
    copies.mkdir()
    started = time.monotonic()
    for shard in sorted(checkpoint.glob("*.safetensors")):
        shutil.copyfile(shard, copies / shard.name)
        with (copies / shard.name).open("rb+") as file:
            os.fsync(file.fileno())
    seconds = time.monotonic() - started
    shutil.rmtree(copies)
    return seconds


def step_trace(checkpoint: str, out: str) -> dict[str, Any]:
    """Trace three lengths and join the programs of both layouts in FP16."""
    folder, traced = Path(checkpoint), Path(out)
    entry = params.Model("4b", f"path:{checkpoint}", None, None, LENGTHS, ("single", "parts"))
    started = time.monotonic()
    trace(entry, folder, traced)
    layers = json.loads((folder / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    spans = [Span(0, layers, table=True, head=True), *cut([202] * layers, 0, 0, 1074)]  # MB
    programs = 0
    for function in (path for path in traced.iterdir() if path.is_dir()):
        pieces = {path.stem: MIL_pb2.Program.FromString(path.read_bytes()) for path in function.glob("*.mil")}
        programs += len([splice(pieces, span, 1) for span in spans])
    return {"seconds": time.monotonic() - started, "programs": programs}


def step_moments(traced: str, out: str) -> dict[str, Any]:
    """Write `out` as the stage calibrate does, with drawn moments that all weights of a number of columns share."""
    # Imported here: the trace, whose memory is measured by itself, does without them.
    import numpy as np  # noqa: PLC0415
    from safetensors.numpy import save_file  # noqa: PLC0415

    folder, random, inputs = Path(out), np.random.default_rng(0), {}
    folder.mkdir()
    for name, weight in read_json(Path(traced) / "trace.json")["weights"].items():
        if weight["kind"] != "linear":
            continue
        columns = weight["shape"][1]
        path = folder / f"{columns}.safetensors"
        if not path.exists():
            spread = np.exp(random.standard_normal(columns, np.float32))
            states = random.standard_normal((2 * columns, columns), np.float32) * spread
            save_file({"moment": states.T @ states / len(states)}, path)
        inputs[name] = {"file": path.name, "sha256": sha256(path)}
    write_json(folder / "calibration.json", {"inputs": inputs})
    return {"weights": len(inputs)}


def step_stream(source: str, traced: str, name: str, layout: str, calibration: str) -> dict[str, Any]:
    """Copy the checkpoint, then write the packages of one variant and layout beside it."""
    # Imported here: the trace, whose memory is measured by itself, does without the compiler of k-means.
    from pipeline.assemble import Feed, Part, Plan, Traced, package_names, write_package  # noqa: PLC0415
    from pipeline.calibration import Calibration  # noqa: PLC0415
    from pipeline.kept import Kept  # noqa: PLC0415

    checkpoint, made = Path(source), Traced(Path(traced))
    moments = Calibration(Path(calibration)) if Path(calibration).exists() else None
    variant = used(name, calibrated=moments is not None)
    spans = made.spans(layout, variant)
    folder = Path(tempfile.mkdtemp(prefix="packages-", dir=Path(traced).parent))
    try:
        copied = copy(checkpoint, folder)
        seconds = 0.0
        sizes = []
        feed = Feed(checkpoint, Kept(folder / "kept"), moments)
        for path, span in zip(package_names(name, layout, len(spans)), spans, strict=True):
            plan = Plan(Part(made, span), variant)
            started = time.monotonic()
            write_package(plan, feed, folder / path, _METADATA)
            seconds += time.monotonic() - started
            sizes.append(sum(f.stat().st_size for f in (folder / path).rglob("*") if f.is_file()))
    finally:
        shutil.rmtree(folder)
    return {
        "seconds": seconds,
        "copy_seconds": copied,
        "ratio_to_copy": seconds / copied,
        "packages": len(sizes),
        "bytes": sum(sizes),
        "largest_package_bytes": max(sizes[1:] or sizes),
    }


def main() -> None:
    """See the module."""
    if steps.asked({"trace": step_trace, "moments": step_moments, "stream": step_stream}):
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("variants", nargs="*", default=["fp16", "int8", "palette4"])
    parser.add_argument("--layouts", nargs="+", default=["single", "parts"])
    parser.add_argument("--calibrated", action="store_true")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    checkpoint = chosen.checkpoint.resolve()
    with tempfile.TemporaryDirectory(prefix="convert-4b-", dir=checkpoint.parent) as folder:
        traced = Path(folder) / "traced"
        figures = {"trace": steps.measure("convert_4b", "trace", checkpoint, traced)}
        calibration = Path(folder) / "calibration"
        if chosen.calibrated:
            steps.measure("convert_4b", "moments", traced, calibration)  # no step of the pipeline
        # Not counted: the first copy finds memory cold, which a virtual machine's host has yet to give.
        copy(checkpoint, Path(folder))
        for variant in chosen.variants:
            for layout in chosen.layouts:
                figures[f"{variant}-{layout}"] = steps.measure(
                    "convert_4b", "stream", checkpoint, traced, variant, layout, calibration
                )
                print(f"{variant} {layout}: {figures[f'{variant}-{layout}']}", file=sys.stderr)
    settings = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    line = {
        "checkpoint_bytes": sum(f.stat().st_size for f in checkpoint.glob("*.safetensors")),
        "layers": settings["num_hidden_layers"],
        "hidden": settings["hidden_size"],
        "max_lengths": LENGTHS,
        "steps": figures,
        "calibrated": chosen.calibrated,
        "variants": {v: dataclasses.asdict(used(v, calibrated=chosen.calibrated)) for v in chosen.variants},
        "load_average": os.getloadavg()[0],
    } | describe()
    print(json.dumps(line))
    if chosen.out:
        write_json(chosen.out, line)


if __name__ == "__main__":
    run(main)
