"""Check every byte of a release folder against its release.json; exit code 0 only if all are as it says."""

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
    print(f"{options.folder}: every byte is what {release.FILE} says")
    return 0
