"""Tables of results in README and docs are those of the reports, or the check fails."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.tables import TABLES

ROOT = Path(__file__).parent.parent


@pytest.fixture
def project(tmp_path):
    for name in ("docs", "reports"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def tables(project, *options):
    command = [sys.executable, "-m", "benchmarks.tables", *options]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["results", "quantization", "milrun-speed"])
def test_a_figure_that_is_not_the_reports_fails_the_check_and_is_put_right(project, name):
    document = project / TABLES[name][0]
    current = document.read_text()
    start = current.index(f"<!-- {name} -->")
    digit = next(i for i in range(start, len(current)) if current[i].isdigit())
    document.write_text(current[:digit] + "x" + current[digit + 1 :])
    found = tables(project, "--check")

    assert found.returncode == 1
    assert f"the table '{name}' is not that of reports" in found.stderr
    assert tables(project).returncode == 0
    assert document.read_text() == current
    assert tables(project, "--check").returncode == 0


def test_a_document_without_a_place_for_its_table_fails(project):
    document = project / "docs" / "milrun.md"
    document.write_text(document.read_text().replace("<!-- milrun-speed -->", ""))

    assert "no place for the table" in tables(project, "--check").stderr
