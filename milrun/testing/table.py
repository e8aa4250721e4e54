"""`python -m milrun.testing.table [reports/conformance.json]`: the report as a Markdown table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def render(report: dict[str, Any]) -> str:
    """One row a suite: what was drawn, what really predicted, what passed, against the bar."""
    lines = [
        "| coremltools' own tests | drawn | executed predictions | passed | failed | rate | bar | seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, suite in sorted(report.items()):
        rate = "not measured" if suite["pass_rate"] is None else f"{100 * suite['pass_rate']:.1f} %"
        bar = "none" if suite["bar"] is None else f"{100 * suite['bar']:.0f} %"
        lines.append(
            f"| {name} | {suite['selected']} | {suite['predictions']} | {suite['passed']} | "
            f"{suite['failed']} "
            f"| {rate} | {bar} | {suite['seconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Print the table."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "reports/conformance.json")
    print(render(json.loads(path.read_text("utf-8"))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
