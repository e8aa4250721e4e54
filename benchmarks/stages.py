"""What the stages of one model cost: peak resident memory and wall time of each, and whether two runs give the same bytes.

Usage: `python -m benchmarks.stages [MODEL]` after `make demo`. Works in a temporary folder; prints
one JSON line with bytes and seconds. Peak memory is the kernel's `ru_maxrss` of the stage's own process.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from milrun.testing.machine import describe
from pipeline.files import inventory


def measure(code: Path, *stage: str) -> dict[str, float]:
    """Run `python -m pipeline.STAGE ...` from `code` in this folder; peak in bytes, wall and processor time in seconds."""
    start = time.monotonic()
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", f"pipeline.{stage[0]}", *stage[1:]],
        os.environ | {"PYTHONPATH": str(code)},
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    _, status, usage = os.wait4(pid, 0)
    if status:
        sys.exit(f"{' '.join(stage)} failed")
    scale = 1 if sys.platform == "darwin" else 1024
    return {
        "peak_rss_bytes": usage.ru_maxrss * scale,
        "seconds": round(time.monotonic() - start, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
    }


def main() -> None:
    """See the module."""
    model = sys.argv[1] if len(sys.argv) > 1 else "all-minilm-l6-v2"
    stages = [
        ("download", model),
        ("trace", model),
        ("reference", model),
        ("convert", model),
        ("quantize", model, "int8"),
        ("quantize", model, "palette4"),
        ("quantize", model, "int4"),
    ]
    code = Path.cwd()
    digests, figures = [], {}
    for _ in range(2):
        with tempfile.TemporaryDirectory(prefix="stages-") as folder:
            root = Path(folder)
            shutil.copy(code / "params.yaml", root)
            os.chdir(root)
            for stage in stages:
                figures["-".join(stage)] = measure(code, *stage)
            digests.append(inventory(root / "artifacts" / model / "packages"))
            os.chdir(code)
    line = {
        "stages": figures,
        "identical_bytes": digests[0] == digests[1],
        "files": len(digests[0]),
    } | describe()
    print(json.dumps(line))


if __name__ == "__main__":
    main()
