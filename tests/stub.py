"""A model that costs nothing, for tests of what is around it in processes of their own: torch takes seconds to import.

`python tests/stub.py [--delay SECONDS] COMMAND …` is `corembed COMMAND …` with it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np

from corembed import engines
from corembed.cli import main

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}


class Stub:
    """Unit vectors that depend on the ids, after `delay` seconds; `calls` counts the rows asked for."""

    name, reason, functions = "stub", "of the tests", None

    def __init__(self, request: engines.Request, delay: float = 0) -> None:
        self.dimension, self.delay, self.calls = request.release.dimension, delay, 0
        self.package = request.release.package(request.variant, request.layout)

    def run(self, _function, ids, mask):
        self.calls += len(ids)
        time.sleep(self.delay)
        seeds = (ids * mask * (np.arange(ids.shape[1]) + 1)).sum(1, keepdims=True)
        vectors = np.cos(seeds * (1 + np.arange(self.dimension))).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay", type=float, default=0)
    options, rest = parser.parse_known_args()
    engines.choose = lambda _, request: Stub(request, options.delay)
    sys.exit(main(rest))
