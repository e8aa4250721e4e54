"""Stage `quantize`: the same program and the same stream as `convert`, with another encoding for each weight.

From `traced/` and `checkpoint/` (never from the FP16 package, whose rounding would add up), writes
`packages/VARIANT/`. What each kind of weight becomes is the variant's entry in `params.yaml`.
"""

from __future__ import annotations

import sys

from pipeline import params, places
from pipeline.convert import build
from pipeline.errors import run


def main() -> None:
    """`python -m pipeline.quantize MODEL VARIANT`."""
    model, variant = places.arguments_of(sys.argv, "MODEL", "VARIANT")
    build(params.model(model), params.variant(variant), places.of(model))


if __name__ == "__main__":
    run(main)
