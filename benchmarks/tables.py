"""Puts the generated tables of results into README.md and `docs/`; with `--check`, fails when they are stale.

A table stands between `<!-- NAME -->` and `<!-- /NAME -->` and comes from a file under `reports/` alone.
"""

from __future__ import annotations

import collections
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from milrun.testing import table
from pipeline.errors import PipelineError, run
from pipeline.files import read_json

MIB, GIB = 1 << 20, 1 << 30
_TOLD = ("machine", "date", "model")


def rows(head: Iterable[str], lines: Iterable[Iterable[object]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    names = list(head)
    made = [names, ["---", *["---:"] * (len(names) - 1)], *lines]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in made)


def source(report: Mapping[str, Any]) -> str:
    """Machine, date and versions of a report."""
    versions = [f"{k} {v}" for k, v in report.items() if isinstance(v, str) and k not in _TOLD]
    return f"\n{report['date']}, {report['machine']}; {', '.join(versions)}.\n"


def conversion(report: Mapping[str, Any]) -> str:
    """What each step of converting a large checkpoint cost."""
    lines = []
    for name, step in report["steps"].items():
        ratio = f"{step['ratio_to_copy']:.2f} x" if "ratio_to_copy" in step else ""
        lines.append(
            [
                name,
                f"{step['seconds']:.0f} s",
                ratio,
                f"{step['peak_rss_bytes'] / GIB:.2f} GiB",
                f"{step['bytes']:,}" if "bytes" in step else "",
                f"{step['packages']}" if "packages" in step else "",
                f"{step['largest_package_bytes']:,}" if "packages" in step else "",
            ]
        )
    head = ("step", "wall time", "against the copy", "peak memory", "bytes", "packages", "largest")
    return rows(head, lines) + source(report)


def growth(report: Mapping[str, Any]) -> str:
    """Peak memory of each step for three sizes of model; `report` is the largest's."""
    sizes = {size: read_json(REPORTS / f"{size}.json")["steps"] for size in ("0.6b", "4b")} | {
        "8b": report["steps"]
    }
    lines = [
        [step, *(f"{steps[step]['peak_rss_bytes'] / GIB:.2f} GiB" for steps in sizes.values())]
        for step in report["steps"]
    ]
    return rows(("peak memory", *sizes), lines)


def parity(report: Mapping[str, Any]) -> str:
    """Packages in milrun against sentence-transformers."""
    lines = []
    for name, found in report["figures"].items():
        if "min_cosine" not in found:
            continue
        same = report["figures"].get(f"{name.rsplit('-', 1)[0]}-layouts", {}).get("bit_equal")
        inside = found.get("inside", {})
        lines.append(
            [
                name,
                found["packages"],
                f"{found['min_cosine']:.6f}",
                f"{found['median_cosine']:.6f}",
                {True: "yes", False: "no", None: "not compared"}[same],
                f"{inside['peak_norm_input']:,.0f}" if inside else "not looked at",
                inside["not_finite"] + len(inside["lost"]) if inside else "not looked at",
            ]
        )
    head = (
        "variant and layout",
        "packages",
        "min cosine",
        "median",
        "both layouts alike, bit for bit",
        "peak at a norm's input",
        "values overflowed or rows lost",
    )
    return rows(head, lines) + f"\n{report['reference']['texts']} texts. " + source(report).lstrip()


def quantization(report: Mapping[str, Any]) -> str:
    """Size and quality of all variants, weights alone rounded."""
    lines = [
        [
            name,
            f"{v['share']:.3f}",
            f"{v['min_cosine']:.4f}",
            f"{v['median_cosine']:.4f}",
            f"{v['spearman_drop']:+.4f}",
            f"{v['ndcg10_drop']:+.4f} ({v['ndcg10_drop_low']:+.4f} to {v['ndcg10_drop_high']:+.4f})",
        ]
        for name, v in sorted(report["variants"].items(), key=lambda item: (item[1]["share"], item[0]))
    ]
    head = ("variant", "size", "min cosine", "median", "Spearman, drop", "nDCG@10, drop (95 % interval)")
    return rows(head, lines) + source(report)


def front(report: Mapping[str, Any]) -> str:
    """Mixed precision's Pareto front as foreseen, every second point."""
    lines = []
    for point in report["front_foreseen"][::2]:
        bits = collections.Counter(point["bits"].values())
        lines.append(
            [
                f"{point['bytes'] / MIB:.1f} MiB",
                f"{point['harm']:.4f}",
                ", ".join(f"{count} x {n}" for n, count in sorted(bits.items())),
            ]
        )
    return rows(("size", "foreseen harm", "groups x bits"), lines)


def palettes(report: Mapping[str, Any]) -> str:
    """Time and squared error of palettes against coremltools'."""
    lines = [
        [
            row["tensor"].removeprefix("encoder.").removesuffix(".weight"),
            row["bits"],
            row["group"] or "all",
            f"{1e3 * row['seconds']:.1f} ms",
            f"{1e3 * row['coremltools_seconds']:.0f} ms",
            f"{row['times_faster']:.0f} x",
            f"{row['error_ratio']:.3f}",
        ]
        for row in report["cases"]
    ]
    head = ("tensor", "bits", "rows a table", "here", "coremltools", "faster", "squared error against its")
    whole = f"\nAll cases together: {report['times_faster']:.0f} times as fast.\n"
    if "large_calibrated" in report:
        told = report["large_calibrated"]
        whole += (
            f"All linear layers of the 4B ({told['layers']} layers) rounded by inputs instead, told from a block of each "
            f"weight of one: {told['minutes_whole']:.0f} minutes.\n"
        )
    return rows(head, lines) + whole + source(report)


def milrun_speed(report: Mapping[str, Any]) -> str:
    """The emulator against PyTorch eager."""
    lines = [
        [
            row["model"],
            row["semantics"].upper(),
            "yes" if row["keep_weights"] else "no",
            f"{row['milrun_ms']:.0f} ms",
            f"{row['torch_fp32_ms']:.0f} ms",
            f"{row['ratio']:.2f} x",
            f"{row['bar']:.1f} x",
        ]
        for row in report["rows"]
    ]
    head = ("model", "semantics", "weights kept", "milrun", "PyTorch, FP32", "ratio", "bar")
    return rows(head, lines) + source(report)


def evidence(report: Mapping[str, Any]) -> str:
    """What audit and validate cost."""
    lines = [
        [
            name,
            f"{step['seconds']:.0f} s",
            f"{step['cpu_seconds']:.0f} s",
            f"{step['peak_rss_bytes'] / GIB:.2f} GiB",
        ]
        for name, step in report["stages"].items()
    ]
    total = sum(step["seconds"] for step in report["stages"].values())
    whole = f"\nOne after another: {total:.0f} s.\n"
    return rows(("stage", "wall time", "processor time", "peak memory"), lines) + whole + source(report)


REPORTS = Path("reports")
NOT_MEASURED = "not measured\n"
"""Stands where a report is not there yet."""

TABLES: dict[str, tuple[str, str, Callable[[Any], str]]] = {
    "results": ("README.md", "", lambda _: (REPORTS / "results.md").read_text(encoding="utf-8")),
    "conformance": ("README.md", "conformance", lambda report: table.render(report) + "\n"),
    "conversion-4b": ("docs/qwen3-embedding-4b.md", "4b", conversion),
    "conversion-4b-calibrated": ("docs/qwen3-embedding-4b.md", "4b_calibrated", conversion),
    "conversion-8b": ("docs/qwen3-embedding-4b.md", "8b", conversion),
    "growth": ("docs/qwen3-embedding-4b.md", "8b", growth),
    "parity-4b": ("docs/qwen3-embedding-4b.md", "4b_parity", parity),
    "parity-smollm2": ("docs/qwen3-embedding-4b.md", "smollm2", parity),
    "quantization": ("docs/quantization.md", "quantization/all-minilm-l6-v2", quantization),
    "quantization-front": ("docs/quantization.md", "quantization/all-minilm-l6-v2", front),
    "quantization-smollm2": ("docs/quantization.md", "quantization/smollm2-135m", quantization),
    "palettes": ("docs/quantization.md", "quantization/speed", palettes),
    "milrun-speed": ("docs/milrun.md", "milrun_speed", milrun_speed),
    "evidence": ("docs/evidence.md", "evidence_cost", evidence),
    "evidence-4b": ("docs/evidence.md", "evidence_cost_4b", evidence),
}
"""Each table by name: the document, the report, and what renders it."""


def main() -> None:
    """See the module."""
    stale = []
    for name, (document, report, render) in TABLES.items():
        path = Path(document)
        current = path.read_text(encoding="utf-8")
        file = REPORTS / f"{report}.json"
        made = render(read_json(file) if report else None) if not report or file.exists() else NOT_MEASURED
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not block.search(current):
            raise PipelineError(f"{document} has no place for the table: <!-- {name} --> … <!-- /{name} -->")
        wanted = block.sub(lambda m, t=made: m[1] + t + m[2], current)
        if wanted != current:
            stale.append(f"{document}: the table {name!r} is not that of {REPORTS / report}")
            if "--check" not in sys.argv:
                path.write_text(wanted, encoding="utf-8")
    if stale and "--check" in sys.argv:
        raise PipelineError("; ".join(stale) + ". Run python -m benchmarks.tables")


if __name__ == "__main__":
    run(main)
