"""Stage `publish`: the release folder, as it is to stand on the Hub, and a receipt.

From the packages, reference and reports of one model, writes `artifacts/MODEL/release/` and the receipt
`reports/publish/MODEL.json` (repository, version, commit, hash of every file). This first form is a dry run: it
uploads nothing and the receipt's `commit` is null. A variant that failed or was not judged is refused.
"""

from __future__ import annotations

import dataclasses
import sys

from corembed.release import FILE, verify
from pipeline import params, places
from pipeline.errors import PipelineError, run
from pipeline.files import read_json, sha256, write_json
from pipeline.release import render


def publish(model: str, variants: list[str], where: places.Places, settings: dict[str, str]) -> None:
    """Render the release folder and write the receipt."""
    reports = {v: (places.report("parity", model, v), places.report("benchmark", model, v)) for v in variants}
    for variant in variants:
        judged = read_json(places.report("evidence", model, variant))["files"]
        for path, entry in judged.items():
            file = where.packages(variant) / path
            if not file.exists() or sha256(file) != entry["sha256"]:
                raise PipelineError(f"{file}: not the file that validate judged; run validate again")
    out = where.root / "release"
    release = render(where, model, settings["version"], reports, out)
    if problems := verify(out):
        raise PipelineError(f"{out}: {problems[0]}")
    receipt = {
        "repository": f"{settings['namespace']}/{model}-coreml",
        "version": settings["version"],
        "commit": None,
        "tag": None,
        "files": {path: dataclasses.asdict(file) for path, file in release.files.items()},
        "release_json_sha256": sha256(out / FILE),
    }
    write_json(places.report("publish", model), receipt)


def main() -> None:
    """`python -m pipeline.publish MODEL`."""
    entry = params.model(places.argument(sys.argv, "MODEL"))
    everything = params.load()
    publish(entry.name, params.variants(everything), places.of(entry.name), everything["publish"])


if __name__ == "__main__":
    run(main)
