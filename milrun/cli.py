"""`milrun inspect|run|compare|lint`: a table, or `--json`."""

from __future__ import annotations

import argparse
import json
import math
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from milrun.errors import InputError, MilrunError

if TYPE_CHECKING:
    from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns as wide as their content, numbers to the right."""
    text = [[f"{c:.3g}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    widths = [max(len(h), *(len(r[i]) for r in text), 0) if text else len(h) for i, h in enumerate(header)]
    numeric = [bool(rows) and isinstance(rows[0][i], int | float) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(
            c.rjust(w) if n else c.ljust(w) for c, w, n in zip(cells, widths, numeric, strict=True)
        ).rstrip()

    return "\n".join([line(header), line(["-" * w for w in widths]), *(line(r) for r in text)])


def plain(value: Any) -> Any:
    """Data that JSON can hold: what is not finite becomes null, since JSON knows neither NaN nor infinity."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print(options: argparse.Namespace, data: Any, text: str) -> None:
    print(json.dumps(plain(data), indent=1, allow_nan=False) if options.json else text)


def _inspect(options: argparse.Namespace) -> int:
    from milrun.inspection import inspect  # noqa: PLC0415 - torch only when needed

    found = inspect(options.package)
    parts = [f"{found.kind}, specification {found.specification_version}, {found.file_bytes:,} bytes"]
    for function in found.functions:
        parts.append(f"\nfunction {function.name} (opset iOS {function.opset})")
        parts += [f"  in   {v.name}: {v.type}" for v in function.inputs]
        parts += [f"  out  {v.name}: {v.type}" for v in function.outputs]
        parts.append(table(["operation", "count"], list(function.operations.items())))
    parts.append("\n" + table(["encoding", "bytes"], list(found.encodings.items())))
    parts.append("\n" + table(["layer", "bytes"], list(found.layers.items())))
    if options.weights:
        rows = [(w.name, w.type, w.encoding, w.bytes) for w in found.weights]
        parts.append("\n" + table(["weight", "type", "encoding", "bytes"], rows))
    _print(options, found.to_dict(), "\n".join(parts))
    return 0


def _read_inputs(options: argparse.Namespace, model: Any) -> dict[str, Any]:
    from milrun.images import GRAYSCALE, GRAYSCALE_FLOAT16  # noqa: PLC0415

    if options.inputs:
        try:
            arrays = np.load(options.inputs, allow_pickle=False)
            if isinstance(arrays, np.ndarray):
                raise InputError(f"{options.inputs} holds one array without a name; save with numpy.savez.")
            with arrays:
                return dict(arrays)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{options.inputs} is not an .npz file of arrays ({error}).") from None
    function = getattr(options, "function", None) or model.default_function
    generator = np.random.default_rng(options.seed)
    made = {}
    for name, feature in model.inputs[function].items():
        if feature.kind == "image":
            channels = 1 if feature.color in (GRAYSCALE, GRAYSCALE_FLOAT16) else 3
            made[name] = generator.integers(0, 256, (1, channels, *feature.shape)).astype(np.float32)
        elif (feature.dtype or "").startswith("int"):
            made[name] = generator.integers(0, 2, feature.shape, dtype=np.int32)
        else:
            made[name] = generator.standard_normal(feature.shape, np.float32)
    return made


def _load(options: argparse.Namespace, path: str) -> Any:
    from milrun.model import load  # noqa: PLC0415

    return load(path, precision=options.precision, accumulate=options.accumulate, threads=options.threads)


def _run(options: argparse.Namespace) -> int:
    model = _load(options, options.package)
    outputs = model.predict(_read_inputs(options, model), options.function)
    if options.output:
        arrays: dict[str, Any] = {k: v for k, v in outputs.items() if isinstance(v, np.ndarray)}
        np.savez(options.output, **arrays)
    rows = []
    for name, value in outputs.items():
        if isinstance(value, np.ndarray) and value.size:
            v = value.astype(np.float64)
            rows.append(
                (name, f"{value.dtype}{list(value.shape)}", float(v.min()), float(v.max()), float(v.mean()))
            )
        else:
            rows.append((name, str(value)[:60], 0.0, 0.0, 0.0))
    data = {n: v.tolist() if isinstance(v, np.ndarray) else _scalar(v) for n, v in outputs.items()}
    _print(options, data, table(["output", "type", "min", "max", "mean"], rows))
    return 0


def _scalar(value: Any) -> Any:
    """A classifier's label or dictionary as it is; an image in words."""
    return value if isinstance(value, str | int | float | dict) else str(value)


def _compare(options: argparse.Namespace) -> int:
    from milrun.compare import compare  # noqa: PLC0415

    model = _load(options, options.package)
    found = compare(options.package, options.other, _read_inputs(options, model), options.function)
    worst = sorted(found, key=lambda d: -d.relative)[: options.top]
    rows = [
        (
            d.name,
            d.operation,
            d.max_error,
            d.relative,
            d.cosine,
            d.peak,
            d.range_used,
            d.zero_rows,
            d.subnormal,
            d.nonfinite,
        )
        for d in (worst if options.top else found)
    ]
    header = [
        "value",
        "operation",
        "max error",
        "relative",
        "cosine",
        "peak",
        "of FP16",
        "zero rows",
        "subnormal",
        "not finite",
    ]
    _print(options, [d.to_dict() for d in found], table(header, rows))
    return 0


def _lint(options: argparse.Namespace) -> int:
    from milrun.linting import lint  # noqa: PLC0415

    found = lint(options.package, *options.others)
    rows = [(f.severity, f.rule, f.package, f.function, f.operation, f.message, f.source) for f in found]
    header = ["severity", "rule", "package", "function", "first operation", "message", "source"]
    text = table(header, rows) if rows else "No findings."
    _print(options, [asdict(f) for f in found], text + "\nPredicted from rules; nothing was measured.")
    return 1 if any(f.severity == "error" for f in found) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="milrun", description="Run Core ML ML Programs where there is no Mac."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, function: Any, text: str, *, runs: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("package", type=Path)
        sub.add_argument("--json", action="store_true", help="print JSON instead of a table")
        if runs:
            sub.add_argument("--inputs", type=Path, help=".npz with one array an input; default: random")
            sub.add_argument("--seed", type=int, default=0, help="of the random inputs")
            sub.add_argument("--function", help="of a multifunction program")
            sub.add_argument("--precision", choices=["declared", "fp32"], default="declared")
            sub.add_argument("--accumulate", choices=["fp32", "fp16"], default="fp32")
            sub.add_argument("--threads", type=int)
        sub.set_defaults(function_to_run=function)
        return sub

    command("inspect", _inspect, "operations, functions, weights").add_argument(
        "--weights", action="store_true"
    )
    command("run", _run, "run once", runs=True).add_argument(
        "--output", type=Path, help="write outputs as .npz"
    )
    compare = command("compare", _compare, "run two packages, or one against FP32", runs=True)
    compare.add_argument("other", type=Path, nargs="?")
    compare.add_argument("--top", type=int, default=20, help="worst values to show; 0: all, in order")
    rules = command("lint", _lint, "rules for the Neural Engine; exits 1 on errors")
    rules.add_argument(
        "others", type=Path, nargs="*", help="packages that are loaded together with the first"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 2 with a message where the package or the inputs are at fault."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.function_to_run(options)
    except MilrunError as error:
        print(f"milrun: {error}", file=sys.stderr)
        return 2
    return status
