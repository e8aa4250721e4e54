"""What this machine is, as far as the choice of engine, layout and cache entry depends on it."""

from __future__ import annotations

import dataclasses
import functools
import platform
import subprocess

GIB = 2**30

_RENUMBERED = 27
"""The first macOS whose Neural Engine takes compiled models of up to 1 GiB instead of 2 (eeANE's measurements)."""

_FIRST_CHIP_SPACE = 7 * GIB // 2
"""An M1's Neural Engine addresses 3.5 GiB over all loaded models (the same source)."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """`macos` is its version as numbers, `build` the system's build, `chip` its marketing name; None if unknown."""

    system: str
    architecture: str
    build: str
    macos: tuple[int, ...] | None = None
    chip: str | None = None

    @property
    def has_neural_engine(self) -> bool:
        """Every Mac with an Apple chip has one; no Mac with an Intel chip does."""
        return self.system == "Darwin" and self.architecture == "arm64"

    @property
    def part_limit(self) -> int:
        """Bytes above which a compiled model silently leaves the Neural Engine."""
        return GIB if self.macos and self.macos[0] >= _RENUMBERED else 2 * GIB

    @property
    def neural_engine_space(self) -> int | None:
        """Bytes that all models on the Neural Engine may take together; None: no such limit is known."""
        first = self.chip is not None and self.chip.split()[:2] == ["Apple", "M1"]
        return _FIRST_CHIP_SPACE if first else None


@functools.cache
def here() -> Machine:
    """The machine that runs us."""
    system, architecture = platform.system(), platform.machine()
    if system != "Darwin":
        return Machine(system, architecture, platform.release())
    macos = tuple(int(n) for n in platform.mac_ver()[0].split("."))
    return Machine(
        system, architecture, _sysctl("kern.osversion"), macos, _sysctl("machdep.cpu.brand_string")
    )


def _sysctl(name: str) -> str:
    command = ["/usr/sbin/sysctl", "-n", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603  # names of ours
    return done.stdout.strip()
