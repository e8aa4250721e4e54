"""What every engine is, and what it is made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from corembed.machine import Machine
from corembed.release import Function, Package, Release

Ids = npt.NDArray[np.int32]
Vectors = npt.NDArray[np.float32]


class Engine(Protocol):
    """Runs a model at fixed shapes."""

    name: str
    reason: str
    """Why this engine: who asked for it, or why each earlier one was passed over."""
    functions: tuple[Function, ...] | None
    """Shapes it runs; None: those of the release."""
    package: Package | None
    """The variant and layout it runs; None where it runs the source model."""

    def run(self, function: Function, ids: Ids, mask: Ids) -> Vectors:
        """(batch, length) int32 ids and mask to (batch, dimension) float32. Safe to call from several threads."""
        ...


@dataclasses.dataclass(frozen=True)
class Request:
    """A release that is to run here, and how its files are had.

    `packages` fetches a variant's package folders and checks them; `source` the source checkpoint's folder,
    likewise. Both raise `CorembedError`.
    """

    release: Release
    machine: Machine
    variant: str | None
    layout: str | None
    compute_units: str | None
    packages: Callable[[Package], Sequence[Path]]
    source: Callable[[], Path]


_LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)
_BATCHES = (1, 4, 16, 32)


def shapes(max_length: int) -> tuple[Function, ...]:
    """Shapes for an engine that can run any: few enough to be compiled once each, near enough to waste little.

    They make a text's vector independent of what else is in the call, as a package's fixed shapes do.
    """
    lengths = [n for n in (*_LENGTHS, *range(1024, max_length, 512)) if n < max_length]
    return tuple(
        Function(f"length_{n}" + (f"_batch_{b}" if b > 1 else ""), b, n)
        for n in (*lengths, max_length)
        for b in _BATCHES
    )
