"""Where stages keep their files, and how their command lines name a build."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from pipeline.errors import PipelineError


@dataclasses.dataclass(frozen=True)
class Places:
    """The folders of one model below `artifacts/`."""

    root: Path

    @property
    def checkpoint(self) -> Path:
        """The source's files."""
        return self.root / "checkpoint"

    @property
    def source(self) -> Path:
        """Where the checkpoint came from, with the hash of each file."""
        return self.root / "source.json"

    @property
    def traced(self) -> Path:
        """Programs without weights."""
        return self.root / "traced"

    @property
    def calibration(self) -> Path:
        """Second moments of the inputs of each weight."""
        return self.root / "calibration"

    @property
    def sensitivity(self) -> Path:
        """How much each group of weights minds being quantized."""
        return self.root / "sensitivity.json"

    @property
    def reference(self) -> Path:
        """The official implementation's answers."""
        return self.root / "reference"

    @property
    def reference_record(self) -> Path:
        """Recipe, prompts, tokenizer and dimension."""
        return self.reference / "reference.json"

    def packages(self, variant: str) -> Path:
        """The folder of one variant's packages, one or more layouts."""
        return self.root / "packages" / variant


def of(model: str) -> Places:
    """The places of a model of `params.yaml`."""
    return Places(Path("artifacts") / model)


def package_names(variant: str, layout: str, count: int) -> list[str]:
    """Where the packages of a variant stand in a release, in running order."""
    if layout == "single":
        return [f"{variant}.mlpackage"]
    return [f"{variant}-parts/part{number:02d}.mlpackage" for number in range(1, count + 1)]


def report(stage: str, model: str, variant: str | None = None) -> Path:
    """The report of a stage: `reports/STAGE/MODEL-VARIANT.json`, or `MODEL.json`."""
    folder = Path("reports") / stage / model
    return folder / f"{variant}.json" if variant else folder.with_suffix(folder.suffix + ".json")


def argument(arguments: list[str], *names: str) -> str:
    """The one positional argument of a stage's command line."""
    return arguments_of(arguments, *names)[0]


def arguments_of(arguments: list[str], *names: str) -> list[str]:
    """The positional arguments of a stage's command line; `--help` prints the stage's docstring."""
    given = arguments[1:]
    if "-h" in given or "--help" in given:
        stage = sys.modules["__main__"]
        print(f"usage: python -m pipeline.{Path(arguments[0]).stem} {' '.join(names)}\n\n{stage.__doc__}")
        raise SystemExit(0)
    if len(given) != len(names):
        raise PipelineError(
            f"expected {' '.join(names)}, got {' '.join(given) or 'nothing'}; --help says more"
        )
    return given
