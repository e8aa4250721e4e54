"""Is a build worse than the last released one?

`reports/released.json` holds the figures of the last release: `python -m pipeline.regression VERSION` writes it from
`reports/summary.json` when a release is made, and it is committed with the release. `summarize` compares every build
with it, shows the differences, and fails where the worst text got worse beyond noise. `dvc metrics diff TAG` shows
every other figure between two commits.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import places
from pipeline.errors import PipelineError, run
from pipeline.files import read_json, write_json

RELEASED = Path("reports/released.json")

SHOWN = ("min_cosine", "median_cosine", "top10_overlap", "ndcg10", "bytes", "neural_engine_latency_p50_ms")

NOISE = 2e-6
"""Cosine that FP16 itself costs: two orders of the same sums may differ by so much on the worst text."""

SLACK = 1.25
"""Times the released error (1 - cosine): other engines and processors round other values."""


def worse(before: float, now: float) -> bool:
    """Whether a least cosine fell beyond noise."""
    return not 1 - now <= (1 - before) * SLACK + NOISE


def compare(released: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each build the figures before and now; `before` is null for a build that was not released."""
    builds = released.get("builds", {})
    found = []
    for row in rows:
        before = builds.get(row["build"])
        changes = {
            name: {"before": before.get(name) if before else None, "now": row.get(name)} for name in SHOWN
        }
        bad = bool(before) and worse(before["min_cosine"], row["min_cosine"])
        record = {"build": row["build"], "gone": False, "released": bool(before), "worse": bad}
        found.append(record | {"figures": changes})
    gone = sorted(set(builds) - {row["build"] for row in rows})
    return [*found, *({"build": name, "gone": True} for name in gone)]


def check(differences: Sequence[Mapping[str, Any]], version: str | None) -> None:
    """Raise `PipelineError` if a build is worse than the released one."""
    bad = [d for d in differences if d.get("worse")]
    if bad:
        figures = bad[0]["figures"]["min_cosine"]
        raise PipelineError(
            f"{bad[0]['build']}: min_cosine {figures['now']:.7f}, {figures['before']:.7f} in release {version}: worse "
            f"beyond noise (allowed: {SLACK} times its error and {NOISE:g}){f'; {len(bad) - 1} more' if bad[1:] else ''}"
        )


def released() -> dict[str, Any]:
    """The last release's figures; `version` is null before the first."""
    if not RELEASED.exists():
        return {"version": None, "builds": {}}
    found: dict[str, Any] = read_json(RELEASED)
    return found


def main() -> None:
    """`python -m pipeline.regression VERSION`."""
    version = places.argument(sys.argv, "VERSION")
    rows = read_json(Path("reports/summary.json"))
    builds = {row["build"]: {name: row.get(name) for name in SHOWN} for row in rows if row["passed"]}
    write_json(RELEASED, {"version": version, "builds": builds})


if __name__ == "__main__":
    run(main)
