"""Is the committed `dvc.lock` that of the committed code and parameters? Needs no data.

`dvc repro --dry --allow-missing` exits with 0 even when stages would run, so its output is searched as well.
Usage: `python -m benchmarks.up_to_date MODEL`. Exit code 1, with the stages, when something would run.
"""

from __future__ import annotations

import re
import subprocess
import sys


def stale(model: str) -> list[str]:
    """The stages that DVC would run for a model, `summarize` included."""
    targets = [
        ["--glob", f"validate@{model}-*", f"benchmark@{model}-*"],
        [f"publish@{model}"],
        ["--single-item", "summarize"],
    ]
    found: list[str] = []
    for target in targets:
        command = [sys.executable, "-m", "dvc", "repro", "--dry", "--allow-missing", *target]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        running = re.findall(r"Running stage '([^']+)'", said)
        if done.returncode and not running:
            running = [said.strip().splitlines()[-1]]
        found += running
    return list(dict.fromkeys(found))


def main() -> None:
    """See the module."""
    if missing := stale(sys.argv[1]):
        sys.exit(
            f"not up to date with dvc.lock: {', '.join(missing)}. Run `make demo` and commit dvc.lock and reports/"
        )
    print("up to date")


if __name__ == "__main__":
    main()
