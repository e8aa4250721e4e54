"""Puts the generated table of results into README.md; with `--check`, fails when it is stale."""

from __future__ import annotations

import re
import sys
from pathlib import Path

_BLOCK = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)


def main() -> None:
    """See the module."""
    readme = Path("README.md")
    table = Path("reports/results.md").read_text(encoding="utf-8")
    current = readme.read_text(encoding="utf-8")
    wanted = _BLOCK.sub(lambda m: m[1] + table + m[2], current)
    if "--check" in sys.argv:
        if current != wanted:
            sys.exit(
                "README.md: its table is not that of reports/results.md; run python -m benchmarks.readme"
            )
        return
    readme.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
