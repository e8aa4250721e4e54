"""Which machine and versions does a measurement come from, and when was it made?"""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("coremltools", "numpy", "torch")


def describe(*packages: str) -> dict[str, str]:
    """Processor with cores and memory, date (UTC), versions of Python and of `packages` (or else of `PACKAGES`)."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text("utf-8")) if info.exists() else []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    processor = names[0] if names else platform.processor() or platform.machine()
    return {
        "machine": f"{platform.system()} {platform.machine()}, {processor}, {os.cpu_count()} cores, {memory:.0f} GiB",
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages or PACKAGES},
    }
