"""Which weight gets how many bits? The least harm within a budget, from the measured sensitivities.

Harms add up, nearly: each is small beside the whole. So it is a knapsack, solved exactly up to the grain of sizes:
for each group of weights one of its choices, total bytes within the budget, total harm least.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import PipelineError
from pipeline.files import read_json
from pipeline.params import Scheme, Variant

MIB = 1 << 20
_GRAINS = 4096
"""Steps into which the budget is divided; sizes are rounded up to them, so the budget holds."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """One way to store a group of weights: bytes, and 1 - cosine of the worst text when it alone is stored so."""

    scheme: Scheme
    bytes: int
    harm: float


def read(record: Mapping[str, Any]) -> dict[str, list[Choice]]:
    """The choices of each group in a report of the stage `sensitivity`."""
    return {
        group["name"]: [Choice(Scheme(**c["scheme"]), c["bytes"], c["harm"]) for c in group["choices"]]
        for group in record["groups"]
    }


def allocate(groups: Mapping[str, Sequence[Choice]], budget: int, where: str) -> dict[str, Choice]:
    """The choice of each group that harms least within `budget` bytes; `where` names it in an error."""
    smallest = sum(min(c.bytes for c in choices) for choices in groups.values())
    grain = max(budget // _GRAINS, 1)
    cells = budget // grain
    if smallest > budget:
        raise PipelineError(
            f"{where}: the budget leaves {budget / MIB:.2f} MiB for quantized weights, and the smallest choices take "
            f"{smallest / MIB:.2f} MiB; raise it by {(smallest - budget) / MIB:.2f} MiB, or give `choices` fewer bits"
        )
    best = np.zeros(cells + 1)
    picks = []
    for choices in groups.values():
        table = np.full((len(choices), cells + 1), np.inf)
        for number, choice in enumerate(choices):
            size = -(-choice.bytes // grain)
            if size <= cells:
                table[number, size:] = best[: cells + 1 - size] + choice.harm
        picks.append(table.argmin(0))
        best = table.min(0)
    if not np.isfinite(best[cells]):  # only rounding sizes up to grains made it too large
        return {name: min(choices, key=lambda c: c.bytes) for name, choices in groups.items()}
    found, left = {}, cells
    for (name, choices), pick in reversed(list(zip(groups.items(), picks, strict=True))):
        found[name] = choices[pick[left]]
        left -= -(-found[name].bytes // grain)
    return {name: found[name] for name in groups}


def front(groups: Mapping[str, Sequence[Choice]], steps: int = 24) -> list[dict[str, Any]]:
    """Budgets from the smallest to the largest, each with the bytes and the foreseen harm of its allocation."""
    sizes = [sum(f(c.bytes for c in choices) for choices in groups.values()) for f in (min, max)]
    points: list[dict[str, Any]] = []
    for budget in np.linspace(*sizes, steps).astype(int).tolist():
        chosen = allocate(groups, budget, "front")
        size, harm = (sum(getattr(c, field) for c in chosen.values()) for field in ("bytes", "harm"))
        if not points or harm < points[-1]["harm"]:
            points.append(
                {"bytes": size, "harm": harm, "bits": {name: c.scheme.bits for name, c in chosen.items()}}
            )
    return points


def mixed(variant: Variant, record: Mapping[str, Any]) -> Variant:
    """A variant with a budget, as one with a scheme for each group of weights."""
    share = (variant.budget_share or 0) * record["fp16_bytes"]
    whole = share if variant.budget_mib is None else variant.budget_mib * MIB
    chosen = allocate(read(record), int(whole) - record["fixed_bytes"], f"variants.{variant.name}")
    schemes = {name: chosen[group["name"]].scheme for group in record["groups"] for name in group["weights"]}
    return dataclasses.replace(variant, layers=schemes, budget_mib=None, budget_share=None)


def resolved(variant: Variant, report: Path) -> Variant:
    """The variant itself, or one with a budget as `mixed` allocates it by the report of the stage `sensitivity`."""
    if not variant.budgeted:
        return variant
    if not report.exists():
        raise PipelineError(
            f"{report} is missing, and variant {variant.name!r} allocates by it; run the stage sensitivity of the "
            "model first"
        )
    return mixed(variant, read_json(report))
