"""Opens a `.mlpackage`: which files is it made of, and what does its model description promise?

Answers from `Manifest.json` and the model's protobuf alone; weights are looked at by `milrun.blob`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from coremltools import proto
from google.protobuf.message import DecodeError

from milrun.blob import BlobFile, open_blob_file
from milrun.errors import PackageError, UnsupportedModelError

_MANIFEST_LIMIT = 16 << 20
_SPEC_LIMIT = 2 << 30  # protobuf's own limit
_PREFIX = "@model_path/"
_REFUSED = {
    "neuralNetwork": "a neural network of the format before ML Programs",
    "neuralNetworkClassifier": "a neural network of the format before ML Programs",
    "neuralNetworkRegressor": "a neural network of the format before ML Programs",
}


@dataclass(frozen=True)
class Package:
    """A model's specification and the folder that its weight files are relative to."""

    path: Path
    root: Path
    spec: Any

    def blob_file(self, name: str) -> BlobFile:
        """Open the weight file that a program calls `@model_path/weights/...`.

        Raises
        ------
        PackageError
            If the name leaves the package or the file is absent.
        """
        relative = PurePosixPath(name.removeprefix(_PREFIX))
        if relative.is_absolute() or ".." in relative.parts:
            raise PackageError(f"Weight file {name!r} lies outside the package {self.path.name}.")
        path = self.root / relative
        if not path.is_file():
            raise PackageError(
                f"{self.path.name}: the program refers to {name!r}, and there is no such file."
            )
        return open_blob_file(path)

    def with_spec(self, spec: Any) -> Package:
        """The same files under another specification: one model of a pipeline."""
        return Package(self.path, self.root, spec)


def read_package(path: str | Path) -> Package:
    """Read a `.mlpackage` folder, a folder of the stand-in's compiler, or a bare `.mlmodel` file.

    Raises
    ------
    PackageError
        If something is missing or can't be parsed; the message names the file.
    UnsupportedModelError
        If the model is not an ML Program or a pipeline.
    """
    path = Path(path)
    spec_path = _spec_path(path)
    if spec_path.stat().st_size > _SPEC_LIMIT:
        raise PackageError(f"{spec_path.name}: larger than 2 GiB, no protobuf can be.")
    spec = proto.Model_pb2.Model()
    try:
        spec.ParseFromString(spec_path.read_bytes())
    except (DecodeError, RecursionError) as error:
        raise PackageError(
            f"{path.name}: {spec_path.name} is not a Core ML specification ({error})."
        ) from None
    check_kind(spec, path.name)
    return Package(path, spec_path.parent, spec)


def check_kind(spec: Any, name: str) -> None:
    """Refuse a specification that is neither an ML Program nor a pipeline."""
    kind = spec.WhichOneof("Type")
    if kind not in ("mlProgram", "pipeline", "pipelineClassifier", "pipelineRegressor"):
        what = _REFUSED.get(kind, f"of type {kind!r}" if kind else "empty")
        raise UnsupportedModelError(
            f"{name} is {what}; milrun runs ML Programs (and pipelines of them) only. "
            "Convert with convert_to='mlprogram'."
        )


def _spec_path(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise PackageError(f"{path}: no such package.")
    if path.suffix == ".mlmodelc" or not (path / "Manifest.json").exists():
        compiled = path / "model.mlmodel"
        if compiled.is_file():
            return compiled
        if path.suffix == ".mlmodelc":
            raise PackageError(
                f"{path.name} was compiled by Core ML itself; milrun reads the .mlpackage it came from."
            )
        raise PackageError(f"{path.name}: Manifest.json is missing; a .mlpackage starts with it.")
    return _manifest_model(path)


def _manifest_model(path: Path) -> Path:
    manifest_path = path / "Manifest.json"
    if manifest_path.stat().st_size > _MANIFEST_LIMIT:
        raise PackageError(f"{path.name}: Manifest.json is implausibly large.")
    try:
        manifest = json.loads(manifest_path.read_text("utf-8"))
        root = manifest["rootModelIdentifier"]
        relative = PurePosixPath(manifest["itemInfoEntries"][root]["path"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PackageError(
            f"{path.name}: Manifest.json doesn't name a root model ({type(error).__name__}: {error})."
        ) from None
    if relative.is_absolute() or ".." in relative.parts:
        raise PackageError(f"{path.name}: Manifest.json points outside the package: {relative}.")
    spec_path = path / "Data" / relative
    if not spec_path.is_file():
        raise PackageError(f"{path.name}: Manifest.json names Data/{relative}, and there is no such file.")
    return spec_path
