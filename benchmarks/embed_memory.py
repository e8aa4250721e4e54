"""Does `corembed embed` keep its memory flat, however many texts it is given?

`python -m benchmarks.embed_memory RELEASE [--texts 100000] [--engine milrun] [--json FILE]` writes files of short
texts, runs the command on a tenth of them and on all, each in a process of its own, once for each pair of formats, and
compares the peak resident memory, in bytes. The bar: all may take at most 32 MiB more than a tenth.

Everything but the model is real. By default a stand-in for the model answers at once with vectors made from the ids,
so that what is measured is the reading, tokenizing, packing and writing; `--engine` runs the release instead.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from corembed import engines
from corembed.cli import main as corembed
from corembed.engines.base import Ids, Request, Vectors, shapes
from milrun.testing.machine import describe

BAR = 32 << 20
PAIRS = (("txt", "npy"), ("jsonl", "jsonl"), ("parquet", "parquet"))
WORDS = [
    "the",
    "sea",
    "a",
    "cat",
    "sleeps",
    "on",
    "stocks",
    "fell",
    "sharply",
    "router",
    "sofa",
    "ten",
    "minutes",
    "boil",
    "pasta",
    "window",
]


class Instant:
    """An engine that costs nothing: unit vectors that depend on the ids."""

    name, reason, package = "instant", "of the benchmark", None

    def __init__(self, request: Request) -> None:
        self.dimension = request.release.dimension
        self.functions = shapes(request.release.tokenizer.max_length)

    def run(self, _function: object, ids: Ids, mask: Ids) -> Vectors:
        """See `Engine`."""
        phases = (ids * mask).sum(1, keepdims=True) + np.arange(self.dimension)
        vectors = np.cos(phases).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def child(arguments: list[str], engine: str | None) -> int:
    """Run the command, then print this process's peak: not ru_maxrss, which a child inherits from its parent."""
    if engine is None:
        engines.choose = lambda _name, request: Instant(request)  # type: ignore[assignment]
    code = corembed(["embed", *arguments, *(["--engine", engine] if engine else [])])
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    print(json.dumps({"peak_rss_bytes": 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])}))  # type: ignore[index]
    return code


def write(path: Path, count: int) -> None:
    """A file of short texts, in the format of its suffix; the same each time."""
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, random.integers(2, 20))) for _ in range(count)]
    if path.suffix == ".parquet":
        import pyarrow as pa  # noqa: PLC0415  # only this format needs it
        from pyarrow import parquet  # noqa: PLC0415

        parquet.write_table(pa.table({"id": range(count), "text": texts}), path, row_group_size=10_000)
        return
    with path.open("w", encoding="utf-8") as file:
        for index, text in enumerate(texts):
            file.write(
                json.dumps({"id": index, "text": text}) + "\n" if path.suffix == ".jsonl" else text + "\n"
            )


def measure(release: str, source: Path, out: Path, engine: str | None) -> dict[str, float]:
    """Embed one file in a process of its own: peak memory in bytes, seconds in all."""
    keep = [] if source.suffix == ".txt" else ["--keep", "id"]
    command = [sys.executable, "-m", "benchmarks.embed_memory", "--child", engine or ""]
    start = time.perf_counter()
    done = subprocess.run(
        [*command, release, str(source), "--out", str(out), "--no-progress", *keep],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds = round(time.perf_counter() - start, 2)
    return json.loads(done.stdout.splitlines()[-1]) | {"seconds": seconds, "out_bytes": out.stat().st_size}


def main() -> int:
    """Measure; exit code 1 beyond the bar."""
    if sys.argv[1:2] == ["--child"]:
        return child(sys.argv[3:], sys.argv[2] or None)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("release")
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--engine")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for suffix, result in PAIRS:
            runs = {}
            for count in (options.texts // 10, options.texts):
                source, out = folder / f"{count}.{suffix}", folder / f"{count}-out.{result}"
                write(source, count)
                runs[str(count)] = measure(options.release, source, out, options.engine)
            few, all_ = runs.values()
            growth = int(all_["peak_rss_bytes"] - few["peak_rss_bytes"])
            figures[f"{suffix} to {result}"] = {"runs": runs, "growth_bytes": growth, "passed": growth <= BAR}
    report = {
        "texts": options.texts,
        "engine": options.engine or "stand-in",
        "bar_bytes": BAR,
        "formats": figures,
        "passed": all(f["passed"] for f in figures.values()),
    } | describe("corembed", "numpy", "tokenizers")
    text = json.dumps(report, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
