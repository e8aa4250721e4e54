"""The command line: `corembed verify FOLDER`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from corembed import release


def main(arguments: list[str] | None = None) -> int:
    """Run a command; exit code 0 only if all is well."""
    parser = argparse.ArgumentParser(prog="corembed", description="Text-embedding models on Apple silicon.")
    commands = parser.add_subparsers(dest="command", required=True)
    verify = commands.add_parser(
        "verify", help="check every byte of a release folder against its release.json"
    )
    verify.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    try:
        problems = release.verify(options.folder)
    except release.ReleaseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        print(f"{options.folder}: {len(problems)} problems; fetch the release again", file=sys.stderr)
        return 1
    print(f"{options.folder}: every byte is what {release.FILE} says")
    return 0


if __name__ == "__main__":
    sys.exit(main())
