"""Static rules for the Neural Engine: what in these packages is known to go wrong there?

A finding is a prediction from a rule with a source; nothing here measures or promises placement.
The rules for single functions are in `milrun.rules`, those for whole packages here.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from milrun.inspection import constants, flatten
from milrun.model import Model, Pipeline, load
from milrun.rules import EEANE, RULES, Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

GIB = 1 << 30
ADDRESS_SPACE = 7 * GIB // 2  # 3.5 GiB, an M1's, over all models that are loaded
_ORDER = {"error": 0, "warning": 1, "info": 2}


def lint(*paths: str | Path) -> list[Finding]:
    """Apply all rules to a package, or to several that are loaded together; the most severe findings first.

    Raises
    ------
    MilrunError
        As `milrun.load` does.
    """
    findings = []
    sizes = []
    for path in paths:
        found, size = _package(path)
        findings += [replace(f, package=Path(path).name) for f in found] if len(paths) > 1 else found
        sizes.append(size)
    findings += _together(sum(sizes), len(sizes))
    return sorted(findings, key=lambda f: (_ORDER[f.severity], f.rule, f.package, f.function))


def _package(path: str | Path) -> tuple[list[Finding], int]:
    """Findings of one package and the bytes of its weights."""
    model = load(path)
    findings: list[Finding] = []
    total = 0
    for part in flatten([model]):
        size = _weight_bytes(part)
        total += size
        findings += _compiled_size(size)
        for function in part.functions.values():
            for rule in RULES:
                findings += rule(function)
        findings += _multifunction(part)
    findings += _weight_files(model.package.root)
    if isinstance(model, Pipeline):
        message = (
            "Later models of a Core ML pipeline were seen on the CPU, with weights duplicated; load the parts "
            "as separate models."
        )
        findings.append(Finding("pipeline", "warning", message, EEANE))
    return findings, total


def _weight_bytes(model: Model) -> int:
    """Bytes of a program's weights as stored, what functions share counted once."""
    weights: dict[object, int] = {}
    for function in model.functions.values():
        for _, weight in constants(function):
            weights[weight.identity] = weight.stored_bytes
    return sum(weights.values())


def _compiled_size(size: int) -> Iterator[Finding]:
    message = (
        f"Weights of {size / GIB:.2f} GiB: a compiled model above {{}} is not placed on the "
        "Neural Engine, silently."
    )
    if size > 2 * GIB:
        yield Finding("compiled-size", "error", message.format("2 GiB (macOS 26 and older)"), EEANE)
    elif size > GIB:
        yield Finding("compiled-size", "warning", message.format("1 GiB (macOS 27)"), EEANE)


def _together(size: int, packages: int) -> Iterator[Finding]:
    if size > ADDRESS_SPACE:
        what = "this package" if packages == 1 else f"these {packages} packages"
        message = (
            f"Weights of {size / GIB:.2f} GiB in {what}: the Neural Engine of an M1 addresses 3.5 GiB over all "
            "models that are loaded."
        )
        yield Finding("address-space", "warning", message, EEANE)


def _weight_files(root: Path) -> Iterator[Finding]:
    for file in sorted(root.rglob("*.bin")):
        size = file.stat().st_size
        if size > 2 * GIB:
            message = (
                f"{file.name} of {size / GIB:.2f} GiB: a program with a weight file above 2 GiB failed at predict "
                "on macOS 13; whether later versions do is not known."
            )
            yield Finding("weight-file", "warning", message, "coremltools #1807")


def _multifunction(model: Model) -> Iterator[Finding]:
    if len(model.functions) > 1:
        message = (
            f"{len(model.functions)} functions: memory was seen to grow with the number of functions loaded."
        )
        yield Finding("multifunction-memory", "info", message, "coremltools #2351")
