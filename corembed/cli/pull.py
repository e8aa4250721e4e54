"""Fetch a variant of a release into the cache, so that later uses need no network.

Only the files of that variant, in the layout that this machine would run, are fetched; an interrupted fetch is
continued, and every file is checked against release.json.

For example: corembed pull ORG/MODEL --revision v1.2.0 --variant int8
"""

from __future__ import annotations

import argparse
import json

from corembed import download, machine
from corembed.cli import text
from corembed.engines import coreml
from corembed.release import Package

HELP = "fetch a variant of a release into the cache"


def add(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument(
        "model", help="a Hub repository (ORG/NAME), or a release folder, which is only checked"
    )
    parser.add_argument("--revision", help="tag or commit; default: main")
    parser.add_argument("--variant", action="append", help="repeat for more; default: the release's first")
    parser.add_argument("--layout", choices=("single", "parts"), help="default: what this machine would run")
    parser.add_argument("--all", action="store_true", help="every variant in every layout")
    parser.add_argument("--json", action="store_true", help="print what was fetched as JSON")


def run(options: argparse.Namespace) -> int:
    """Fetch."""
    located = download.locate(options.model, options.revision)
    record = located.record
    packages: list[Package] = list(record.packages)
    if not options.all:
        packages = [
            coreml.choose_package(
                machine.here(),
                record,
                variant,
                options.layout,
                coreml.units_of(machine.here(), record, variant, None),
            )
            for variant in options.variant or [None]
        ]
    located.basics()
    for package in packages:
        located.packages(package)
    total = sum(package.bytes for package in packages)
    if options.json:
        fetched = [
            {"variant": p.variant, "layout": p.layout, "paths": p.paths, "bytes": p.bytes} for p in packages
        ]
        print(json.dumps({"folder": str(located.folder), "commit": located.commit, "packages": fetched}))
        return 0
    names = ", ".join(f"{p.variant} ({p.layout})" for p in packages)
    print(f"{record.model} {record.version}: {names}, {text.size(total)}, checked, in {located.folder}")
    return 0
