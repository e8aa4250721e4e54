"""One checkpoint to a release folder, without DVC and without an entry in `params.yaml`.

Runs download, trace, convert, quantize and validate with the code of the stages. The last line on stdout is JSON;
progress goes to stderr. Exit code 0 only if all gates pass. What was finished before an interruption is kept
beside FOLDER and used by the next run with the same options.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import convert, params, places
from pipeline.assemble import Traced
from pipeline.audit import audit
from pipeline.benchmark import benchmark
from pipeline.calibrate import calibrate
from pipeline.download import download
from pipeline.errors import PipelineError, run
from pipeline.files import read_json, remove, write_json
from pipeline.recipe import POOLINGS
from pipeline.reference import reference
from pipeline.release import Reports, render
from pipeline.sensitivity import sensitivity
from pipeline.trace import open_source, trace
from pipeline.validate import validate

_PARAMS = Path(__file__).parent.parent / "params.yaml"
_BUCKETS = (32, 128, 512)
_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def size(text: str) -> int:
    """Bytes of `1GiB`, `900MiB`, `123456`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KiB|MiB|GiB|)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 900MiB, 1GiB or a number of bytes")
    return int(float(match[1]) * _UNITS[match[2]])


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", metavar="SOURCE", help="path:FOLDER, package:DISTRIBUTION or hub:OWNER/REPO@COMMIT"
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FOLDER", help="the release folder to write"
    )
    parser.add_argument(
        "--max-length",
        type=int,
        nargs="+",
        metavar="N",
        help="tokens, one function each (default: 32 128 512, as far as the model goes)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        nargs="+",
        default=[1],
        metavar="N",
        help="texts in one call, one function each for every length (default: 1)",
    )
    parser.add_argument(
        "--variant",
        nargs="+",
        default=["fp16"],
        metavar="NAME",
        help="variants of params.yaml (default: fp16)",
    )
    parser.add_argument(
        "--layout",
        choices=("single", "parts"),
        nargs="+",
        default=["single"],
        help="one package, several below --size-limit, or both",
    )
    parser.add_argument(
        "--size-limit",
        type=size,
        default=size("1GiB"),
        metavar="SIZE",
        help="largest package of the parts layout (default: 1GiB)",
    )
    parser.add_argument(
        "--pooling",
        choices=(*POOLINGS, "mean_all"),
        help="instead of the checkpoint's own, for vectors that you already have; mean_all averages padding too",
    )
    parser.add_argument(
        "--last-layers",
        type=int,
        metavar="N",
        help="pool the mean of the last N layers (default: the last one)",
    )
    return parser.parse_args(arguments)


def prepare(entry: params.Model, variants: Sequence[params.Variant], where: places.Places) -> None:
    """What all variants share, as far as it is not there yet: trace, reference, and what rounding goes by."""
    if not where.traced.exists():
        trace(entry, where.checkpoint, where.traced)
    made = Traced(where.traced)
    for variant in variants:
        for layout in entry.layouts if not variant.budgeted else ():
            made.spans(layout, variant)  # a limit that no layer fits is told before the original is run
    if not where.reference.exists():
        reference(entry, where.checkpoint, where.reference)
    if any(variant.calibrated for variant in variants) and not where.calibration.exists():
        calibrate(where.checkpoint, where.traced, where.calibration)
    if any(variant.budgeted for variant in variants) and not where.sensitivity.exists():
        among = params.choices(params.load(_PARAMS))
        found = sensitivity(where.checkpoint, where.traced, where.calibration, among)
        write_json(where.sensitivity, found)


def build(chosen: argparse.Namespace) -> dict[str, Any]:
    """All stages up to validate; gives the figures of the last line."""
    started = time.monotonic()
    variants = [params.variant(name, params.load(_PARAMS)) for name in dict.fromkeys(chosen.variant)]
    source, _, revision = (
        chosen.source.partition("@") if chosen.source.startswith("hub:") else (chosen.source, "", "")
    )
    asked = {"pooling": chosen.pooling, "layers": chosen.last_layers}
    recipe = {key: value for key, value in asked.items() if value is not None}
    out = chosen.out.resolve()
    where = places.Places(out.parent / f".build-{out.name}")
    wanted = {
        "source": source,
        "revision": revision or None,
        "max_lengths": chosen.max_length,
        "batches": chosen.batch,
        "layouts": chosen.layout,
        "recipe": recipe,
        "size_limit": chosen.size_limit,
        "variants": {v.name: dataclasses.asdict(v) for v in variants},
        "folder": _stamps(Path(source.removeprefix("path:"))) if source.startswith("path:") else None,
    }
    if not (where.root / "options.json").exists() or read_json(where.root / "options.json") != wanted:
        remove(where.root)
        write_json(where.root / "options.json", wanted)
    if not where.source.exists():
        download(source, revision or None, where, None)
    positions = open_source(where.checkpoint).config.positions
    lengths = tuple(chosen.max_length or [n for n in _BUCKETS if n <= positions] or [positions])
    params.check_lengths(lengths, "--max-length")
    params.check_batches(tuple(chosen.batch), "--batch")
    entry = params.Model(
        out.name,
        source,
        revision or None,
        None,
        lengths,
        tuple(dict.fromkeys(chosen.layout)),
        chosen.size_limit,
        batches=tuple(chosen.batch),
        recipe=recipe,
    )
    prepare(entry, variants, where)
    failures, figures, reports = [], {}, {}
    for variant in variants:
        if not where.packages(variant.name).exists():
            convert.build(entry, variant, where)
        parity, details = (
            where.root / "reports" / kind / f"{variant.name}.json" for kind in ("parity", "evidence")
        )
        try:
            audit(where, entry.name, variant, where.root / "reports" / "audit" / f"{variant.name}.json")
            validate(where, entry.name, variant, parity, details)
        except PipelineError as error:
            if not parity.exists():
                raise
            failures.append(str(error))
        measured = where.root / "reports" / "benchmark" / f"{variant.name}.json"
        total = benchmark(where, entry.name, variant, measured, measured.with_suffix(".raw.json"))["bytes"]
        figures[variant.name] = {"min_cosine": read_json(parity)["min_cosine"], "bytes": total}
        reports[variant.name] = Reports(parity, details, measured)
    if not failures:
        render(where, entry.name, "0.0.0", reports, out)
        remove(where.root)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "passed": not failures,
        "model": entry.name,
        "dimension": read_json(where.reference_record)["dimension"] if failures else _dimension(out),
        "variants": figures,
        "peak_rss_bytes": peak,
        "seconds": round(time.monotonic() - started, 2),
    }


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Size and time of change of a folder's files: work kept from an earlier run is of use only if they are the same."""
    files = sorted(p for p in folder.expanduser().rglob("*") if p.is_file())
    return {str(p.relative_to(folder.expanduser())): [p.stat().st_size, p.stat().st_mtime_ns] for p in files}


def _dimension(out: Path) -> int:
    dimension: int = read_json(out / "release.json")["dimension"]
    return dimension


def main() -> None:
    """See the module."""
    result = build(options())
    print(json.dumps(result))
    if not result["passed"]:
        raise SystemExit(1)


if __name__ == "__main__":
    run(main)
