"""How much memory does running a large package take?

`python -m benchmarks.milrun_memory [--gib 7.5] [--json FILE]` writes a package of FP16 linear layers
(their values are zeros: memory doesn't depend on them), then loads and runs it once in a process of its own.
Prints that process's peak resident memory, in bytes, and the bar: 3 GiB for 7.5 GiB of weights.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

BAR = 3 << 30
WIDTH = 3584
_RUN = """
import json, re, sys, time
import numpy as np, torch, coremltools, milrun
def peak():  # not ru_maxrss: that is inherited from the parent across exec
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1))
base = peak()
start = time.perf_counter()
model = milrun.load(sys.argv[1], threads=int(sys.argv[2]))
loaded = time.perf_counter()
model.predict({"x": np.ones((1, 128, int(sys.argv[3])), np.float16)})
print(json.dumps({
    "base_rss_bytes": base,
    "peak_rss_bytes": peak(),
    "load_seconds": round(loaded - start, 2),
    "predict_seconds": round(time.perf_counter() - loaded, 2),
}))
"""


def make(folder: Path, gib: float) -> Path:
    """Write a package with about `gib` GiB of FP16 weights, a tensor at a time."""
    import coremltools as ct  # noqa: PLC0415
    from coremltools.converters.mil import Builder as mb  # noqa: PLC0415, N813
    from coremltools.converters.mil.mil import types  # noqa: PLC0415

    count = round(gib * (1 << 30) / (2 * WIDTH * WIDTH))
    sparse = folder / "zeros"
    with sparse.open("wb") as file:
        file.truncate(2 * WIDTH * WIDTH)

    @mb.program(input_specs=[mb.TensorSpec((1, 128, WIDTH), dtype=types.fp16)], opset_version=ct.target.iOS18)
    def program(x):
        for _ in range(count):
            x = mb.linear(x=x, weight=np.memmap(sparse, np.float16, "r", shape=(WIDTH, WIDTH)))
        return mb.identity(x=x, name="y")

    path = folder / "large.mlpackage"
    ct.convert(
        program,
        source="milinternal",
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS18,
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
        package_dir=str(path),
    )
    return path


def main() -> int:
    """Measure; 1 if the bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gib", type=float, default=7.5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        path = make(Path(folder), options.gib)
        size = next(path.rglob("weight.bin")).stat().st_size
        command = [sys.executable, "-c", _RUN, str(path), str(options.threads), str(WIDTH)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    from milrun.testing.machine import describe  # noqa: PLC0415

    result = {
        **describe(),
        "weight_bytes": size,
        "bar_bytes": BAR,
        **json.loads(done.stdout.splitlines()[-1]),
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return int(result["peak_rss_bytes"] > BAR)


if __name__ == "__main__":
    sys.exit(main())
