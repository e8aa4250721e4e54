"""Runs each step of a measurement in a process of its own, so that its peak of memory is its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def peak() -> int:
    """The kernel's high-water mark of this process, in bytes."""
    if sys.platform == "linux":  # not ru_maxrss: that is inherited from the parent across exec
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]
    import resource  # noqa: PLC0415

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(module: str, *step: object) -> dict[str, Any]:
    """What a step of `benchmarks.MODULE` gives, with `peak_rss_bytes`; floats to seven digits."""
    command = [sys.executable, "-m", f"benchmarks.{module}", "--step", *map(str, step)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {k: round(v, 7) if isinstance(v, float) else v for k, v in found.items()}


def asked(steps: Mapping[str, Callable[..., dict[str, Any]]]) -> bool:
    """Whether this process was started by `measure`; then its step is run and its result printed."""
    if sys.argv[1:2] != ["--step"]:
        return False
    kind, *arguments = sys.argv[2:]
    print(json.dumps(steps[kind](*arguments) | {"peak_rss_bytes": peak()}))
    return True
