"""Puts the generated tables of results into README.md; with `--check`, fails when they are stale."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def tables() -> dict[str, str]:
    """Each generated table, by the name of its place in the README."""
    conformance = [sys.executable, "-m", "milrun.testing.table"]
    return {
        "results": Path("reports/results.md").read_text(encoding="utf-8"),
        "conformance": subprocess.run(conformance, capture_output=True, text=True, check=True).stdout,
    }


def main() -> None:
    """See the module."""
    readme = Path("README.md")
    current = wanted = readme.read_text(encoding="utf-8")
    for name, table in tables().items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        wanted = block.sub(lambda m, t=table: m[1] + t + m[2], wanted)
    if "--check" in sys.argv:
        if current != wanted:
            sys.exit("README.md: a table is not that of reports/; run python -m benchmarks.readme")
        return
    readme.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
