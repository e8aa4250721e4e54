"""Joins two machines' `dvc.lock`: the stages that each has run since they parted.

`python -m pipeline.locks BASE OURS THEIRS` writes the result to OURS, so that git can use it as a merge driver:

    git config merge.dvclock.driver "python -m pipeline.locks %O %A %B"

A stage that both ran with different results is an error that names it; run it again on one machine.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import PipelineError, run
from pipeline.files import staged
from pipeline.places import arguments_of

Stages = dict[str, Any]


def join(base: Stages, ours: Stages, theirs: Stages) -> Stages:
    """Each stage as whichever side changed it; a stage removed by one side and untouched by the other is gone."""
    joined = {}
    for name in sorted({*ours, *theirs}):
        mine, other, before = ours.get(name), theirs.get(name), base.get(name)
        if other not in (before, mine) and mine != before:
            raise PipelineError(
                f"dvc.lock: both sides ran {name} with different results; take one side's and run dvc repro {name}"
            )
        kept = other if mine == before else mine
        if kept is not None:
            joined[name] = kept
    return joined


def _stages(path: Path) -> Stages:
    text = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
    stages: Stages = (text or {}).get("stages", {})
    return stages


def main() -> None:
    """See the module."""
    base, ours, theirs = map(Path, arguments_of(sys.argv, "BASE", "OURS", "THEIRS"))
    joined = join(_stages(base), _stages(ours), _stages(theirs))
    with staged(ours) as partial:
        text = yaml.safe_dump({"schema": "2.0", "stages": joined}, sort_keys=False, width=1000)
        partial.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run(main)
