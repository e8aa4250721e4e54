"""What Core ML and milrun share: the packages of a layout run one after another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from corembed.engines.base import Ids, Vectors
from corembed.release import Function, Package

Array = npt.NDArray[Any]
Predict = Callable[[Mapping[str, Array]], Mapping[str, Array]]


class PackageEngine:
    """Runs packages one after another: `hidden` of one is the input of the next, the mask goes to all.

    A function is loaded when it is first run. One call at a time: an `MLModel` is to be used by one thread at a
    time (Core ML's documentation), and callers that share an engine take turns by the batch.
    """

    functions: tuple[Function, ...] | None = None
    package: Package | None = None
    reason = ""

    def __init__(
        self, name: str, packages: Sequence[Path], load: Callable[[Path, Function], Predict]
    ) -> None:
        self.name, self._packages, self._load = name, packages, load
        self._loaded: dict[tuple[Path, str], Predict] = {}
        self._lock = threading.Lock()

    def run(self, function: Function, ids: Ids, mask: Ids) -> Vectors:
        """See `Engine`."""
        state: dict[str, Array] = {"input_ids": ids}
        with self._lock:
            for package in self._packages:
                key = (package, function.name)
                if key not in self._loaded:
                    self._loaded[key] = self._load(package, function)
                outputs = self._loaded[key]({**state, "attention_mask": mask})
                state = {name: np.asarray(value) for name, value in outputs.items()}
        return np.asarray(state["embedding"], np.float32)
