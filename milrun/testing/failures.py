"""`python -m milrun.testing.failures [reports/conformance.json] [docs/milrun.md]`: the failures, one by one.

Writes the part of the document between its two markers: every failed test and what shows that the test is at fault.
That is the evidence measured when it ran (`milrun.testing.evidence`), or, where the arrays alone can't decide, a reason
from `REASONS`, each of which a test of ours checks with numbers (`tests/milrun/test_failures.py`). A failure with neither says so.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

START, END = "<!-- failures: generated -->", "<!-- failures: end -->"
UNEXPLAINED = "**not explained: counts against milrun**"
_CROP = (
    "expects 7.899 where the box's corner at row 1.5, column 0.9 of the numbers 1 to 16 is 4 x 1.5 + 0.9 + 1 = 7.9; "
    "1e-3 off at a tolerance of 2e-4"
)
_WEIGHTS = (
    "the reference is torch's layer with FP32 weights and inputs; the program is given both as FP16, which alone is more than the "
    "tolerance, whatever computes it"
)
REASONS = {
    "TestCropResize::test_builder_to_backend_ios16": _CROP,
    "TestCropResize::test_builder_to_backend_ios17": _CROP,
    "TestNormalizationInstanceNorm::test_builder_to_backend_smoke_with_gamma_and_beta": (
        "gives beta as FP16 (-0.8 becomes -0.7998) and expects the result for -0.8: 2e-4 off at a tolerance of 1.6e-4"
    ),
    "TestResample::test_builder_to_backend_smoke": (
        "gives coordinates as FP16 (1.2 becomes 1.2002) and expects the result for 1.2"
    ),
    "TestLSTM::test_builder_to_backend_smoke_unilstm": _WEIGHTS,
    "TestRNN::test_builder_to_backend_smoke": _WEIGHTS,
    "TestLSTMWithPackedSequence::test_lstm": (
        "the converter makes an initial state of 10 rows (the longest sequence's length) for a batch of 3; the specification "
        "of `lstm` asks for one row an element of the batch: undefined behaviour"
    ),
    "TestStack::test_stack_dynamic_range_dim": (
        "a difference, no wrong number: expects a refusal, since the model's *default* shape doesn't fit its `stack`. The shape given does, and milrun, which doesn't "
        "compile for the default shape, computes the right result"
    ),
}


def reason(failure: dict[str, Any]) -> str:
    """What shows that the test is at fault."""
    if failure.get("evidence"):
        return str(failure["evidence"]["text"])
    name = failure["id"].split("::", 1)[1].split("[", 1)[0]
    return REASONS.get(name, UNEXPLAINED)


def _short(identifier: str) -> str:
    """A test's id without what all of them have: the path's beginning, the compute unit, class names."""
    file, rest = identifier.split("::", 1)
    rest = re.sub(r"compute_unit=ComputeUnit\.CPU_ONLY-?", "", rest)
    rest = re.sub(
        r"backend=BackendConfig\(backend='mlprogram', precision='(\w+)', opset_version=<AvailableTarget\.(\w+): \d+>\)",
        r"\1 \2", rest,
    )  # fmt: skip
    rest = re.sub(r"backend=\('mlprogram', '(\w+)'\)", r"\1", rest)
    rest = re.sub(r"<class 'numpy\.(\w+)'>", r"\1", rest)
    return f"{'/'.join(file.split('/')[-2:])}::{rest}".replace("|", "\\|")


def render(report: dict[str, Any]) -> str:
    """A table for each suite; tests with the same reason in one row, each with its id."""
    lines = []
    for name, suite in sorted(report.items()):
        lines += [f"#### {name}: {suite['failed']} of {suite['passed'] + suite['failed']}", ""]
        rows: dict[str, list[str]] = {}
        for failure in suite["failures"]:
            rows.setdefault(reason(failure), []).append(_short(failure["id"]))
        if rows:
            lines += ["| what shows that the test is at fault | tests |", "| --- | --- |"]
            lines += [f"| {text} | {'<br>'.join(f'`{i}`' for i in ids)} |" for text, ids in rows.items()]
        lines.append("")
    return "\n".join(lines).strip()


def insert(document: str, table: str) -> str:
    """The document with the part between the markers replaced."""
    before, rest = document.split(START)
    return f"{before}{START}\n\n{table}\n\n{END}{rest.split(END)[1]}"


def main() -> int:
    """Rewrite the document's list; 1 if a failure has no explanation."""
    report_path = Path(sys.argv[1] if len(sys.argv) > 1 else "reports/conformance.json")
    document = Path(sys.argv[2] if len(sys.argv) > 2 else "docs/milrun.md")
    table = render(json.loads(report_path.read_text("utf-8")))
    document.write_text(insert(document.read_text("utf-8"), table), "utf-8")
    return int(UNEXPLAINED in table)


if __name__ == "__main__":
    sys.exit(main())
