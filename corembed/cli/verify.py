"""Check a release folder against its release.json: every byte, and what it says of its origin; needs no network.

The exit code is 0 only if all is as it says.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from corembed import release

HELP = "check every byte of a release folder against its release.json"


def add(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("folder", type=Path)


def run(options: argparse.Namespace) -> int:
    """Print each difference on stderr."""
    problems = release.verify(options.folder)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        print(f"{options.folder}: {len(problems)} problems; fetch the release again", file=sys.stderr)
        return 1
    record = release.read(options.folder)
    documents = " and ".join(path for path in (record.provenance, record.sbom) if path)
    agree = f"; {documents} agree with it" if documents else ""
    print(f"{options.folder}: every byte is what {release.FILE} says{agree}")
    return 0
