"""What is installed stays small, and needs little."""

import subprocess
import sys
import zipfile
from email.parser import Parser

import pytest
from helpers import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_is_small_and_holds_the_two_packages_that_ship(wheel):
    with zipfile.ZipFile(wheel) as opened:
        tops = {name.split("/")[0] for name in opened.namelist()}

    assert wheel.stat().st_size <= 200_000
    assert {t for t in tops if not t.endswith(".dist-info")} == {"corembed", "milrun"}


def test_required_dependencies_are_few(wheel):
    with zipfile.ZipFile(wheel) as opened:
        name = next(n for n in opened.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(opened.read(name).decode())
    required = [r for r in metadata.get_all("Requires-Dist") if "extra ==" not in r]

    assert sorted(r.split(";")[0].split(">")[0] for r in required) == [
        "coremltools",
        "huggingface-hub",
        "numpy",
        "tokenizers",
    ]
    assert next(r for r in required if r.startswith("coremltools")).endswith("sys_platform == 'darwin'")
