"""Under which conditions was something measured? The machine, its system, its power and heat; null where unknown."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any


def _said(*command: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - the commands below
            command, capture_output=True, text=True, check=False, timeout=30
        )
    except OSError:  # not on this system
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _found(pattern: str, text: str | None) -> str | None:
    match = re.search(pattern, text or "")
    return match[1] if match else None


def _processor() -> str | None:
    if name := _said("sysctl", "-n", "machdep.cpu.brand_string"):
        return name
    path = Path("/proc/cpuinfo")
    return _found(r"model name\s*:\s*(.+)", path.read_text()) if path.exists() else None


def _memory() -> int | None:
    if size := _said("sysctl", "-n", "hw.memsize"):
        return int(size)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def machine() -> dict[str, Any]:
    """What does not change while something is measured: chip, cores, memory in bytes, system and its build."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "model": _said("sysctl", "-n", "hw.model"),
        "cores": os.cpu_count(),
        "memory_bytes": _memory(),
        "macos": _said("sw_vers", "-productVersion"),
        "macos_build": _said("sw_vers", "-buildVersion"),
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("coremltools", "torch", "numpy", "corembed")
        },
    }


def state() -> dict[str, Any]:
    """What may change: power source, low-power mode, thermal warnings, load of the last minute."""
    settings, heat = _said("pmset", "-g"), _said("pmset", "-g", "therm")
    low = _found(r"lowpowermode\s+(\d)", settings)
    return {
        "power": _found(r"drawing from '([^']+)'", _said("pmset", "-g", "batt")),
        "low_power_mode": None if low is None else low == "1",
        "thermal": None if heat is None else " ".join(heat.split()),
        "load_average": round(os.getloadavg()[0], 2),
    }
