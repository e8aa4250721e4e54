"""The engine `coreml`: Core ML through coremltools, on a Mac, with compiled models kept between runs.

Written against coremltools 9.0's source. Without a Mac it runs where something stands in for coremltools' extension
module, as milrun's `install` does in tests.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from corembed.engines.base import Request
from corembed.engines.packages import PackageEngine, Predict
from corembed.errors import EngineError, ReleaseError
from corembed.machine import Machine
from corembed.release import Function, Package, Release

NAME = "coreml"
UNITS = ("ALL", "CPU_AND_NE", "CPU_AND_GPU", "CPU_ONLY")
_NEURAL = ("ALL", "CPU_AND_NE")
_MINIMUM_MACOS = {"iOS15": 12, "iOS16": 13, "iOS17": 14, "iOS18": 15, "iOS26": 26}

_log = logging.getLogger("corembed")


def passed_over(request: Request) -> str | None:
    """Why this engine cannot run here."""
    machine, target = request.machine, request.release.target
    if machine.system != "Darwin" and not _stood_in():
        return f"Core ML runs on a Mac only, this is {machine.system}"
    if importlib.util.find_spec("coremltools") is None:
        return "coremltools is not installed: pip install coremltools"
    needed = _MINIMUM_MACOS.get(target)
    if machine.macos and needed and machine.macos[0] < needed:
        return f"the release needs macOS {needed} ({target}), this is {'.'.join(map(str, machine.macos))}"
    return None


def _stood_in() -> bool:
    return "coremltools.libcoremlpython" in sys.modules


def weight(release: Release, package: Package) -> list[int]:
    """Bytes of each package folder."""
    return [
        sum(file.bytes for name, file in release.files.items() if name.startswith(path + "/"))
        for path in package.paths
    ]


def units_of(machine: Machine, release: Release, variant: str | None, asked: str | None) -> str:
    """The compute units: those asked for, else the Neural Engine where there is one that holds the model.

    `CPU_AND_NE` and not `ALL`, which may choose the GPU and is then less predictable.
    """
    if asked is not None:
        if asked not in UNITS:
            raise EngineError(f"compute_units={asked!r}: expected one of {', '.join(UNITS)}")
        return asked
    if machine.system == "Darwin" and not machine.has_neural_engine:
        return "CPU_AND_GPU"
    total, space = sum(weight(release, release.package(variant))), machine.neural_engine_space
    if space is not None and total > space:
        _log.warning(
            "%s takes %.1f GiB, an M1's Neural Engine addresses 3.5 GiB: using the GPU; a smaller variant may fit",
            release.model,
            total / 2**30,
        )
        return "CPU_AND_GPU"
    return "CPU_AND_NE"


def choose_package(
    machine: Machine, release: Release, variant: str | None, layout: str | None, units: str
) -> Package:
    """The layout: `parts` where the Neural Engine is asked for and the release has it, `single` otherwise.

    A package too large for the Neural Engine of this macOS is reported, since Core ML would move it to the CPU
    without a word.
    """
    if layout is None:
        neural = units in _NEURAL and (machine.has_neural_engine or machine.system != "Darwin")
        first = release.package(variant)
        wanted = "parts" if neural else "single"
        there = {p.layout for p in release.packages if p.variant == first.variant}
        layout = wanted if wanted in there else None
        variant = first.variant
    package = release.package(variant, layout)
    largest = max(weight(release, package))
    if units in _NEURAL and largest > machine.part_limit:
        _log.warning(
            "%s (%s) has a package of %.2f GiB; the Neural Engine of this macOS takes %d GiB, so Core ML will run it "
            "on the CPU or GPU",
            package.variant,
            package.layout,
            largest / 2**30,
            machine.part_limit // 2**30,
        )
    return package


def make(request: Request) -> PackageEngine:
    """Load the asked variant; each function is loaded when it is first run."""
    release = request.release
    units = units_of(request.machine, release, request.variant, request.compute_units)
    package = choose_package(request.machine, release, request.variant, request.layout, units)
    folders = request.packages(package)
    digests = {folder: release.digest(path) for folder, path in zip(folders, package.paths, strict=True)}
    engine = of(folders, units, digests, request.machine.build)
    engine.package = package
    return engine


def of(
    packages: Sequence[Path], units: str, digests: Mapping[Path, str] | None = None, build: str = ""
) -> PackageEngine:
    """An engine that runs package folders; those of a known digest are compiled once and kept."""
    if units not in UNITS:
        raise EngineError(f"compute_units={units!r}: expected one of {', '.join(UNITS)}")

    def load(package: Path, function: Function) -> Predict:
        import coremltools as ct  # noqa: PLC0415  # heavy, and only a Mac's

        from corembed import cache  # noqa: PLC0415

        unit = getattr(ct.ComputeUnit, units)
        name = None if function.name == "main" else function.name
        predict: Predict
        if not digests:
            predict = ct.models.MLModel(str(package), compute_units=unit, function_name=name).predict
            return predict
        compiled = cache.compiled(
            package, digests[package], build, importlib.metadata.version("coremltools"), _compile
        )
        try:
            predict = ct.models.CompiledMLModel(str(compiled), compute_units=unit, function_name=name).predict
        except RuntimeError as error:
            raise EngineError(
                f"Core ML could not load {package.name}, function {function.name}: {error}"
            ) from error
        return predict

    return PackageEngine(NAME, packages, load)


def _compile(package: Path, target: Path) -> None:
    import coremltools as ct  # noqa: PLC0415  # heavy, and only a Mac's

    try:
        ct.models.utils.compile_model(str(package), str(target))
    except RuntimeError as error:
        raise ReleaseError(
            f"Core ML could not compile {package}: {error}; fetch the release again, or report it"
        ) from error
