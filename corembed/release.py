"""What a release says of itself: `release.json`, the contract between the pipeline and the loader.

The pipeline fills these records in and the loader reads them, so the two cannot drift. A figure that was not
measured is `None`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from corembed import provenance
from corembed.errors import ReleaseError as ReleaseError  # noqa: PLC0414  # part of this module's face

SCHEMA = 1
"""Version of the records below; a reader refuses a newer one."""

FILE = "release.json"


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the weights come from: `hub:`, `package:` or `path:`, at which revision, under which licence."""

    name: str
    revision: str | None
    license: str | None
    files: Mapping[str, File]


@dataclasses.dataclass(frozen=True)
class File:
    """Size in bytes and hex SHA-256 of a file."""

    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Dense:
    """A linear layer after pooling, with its activation (`identity`, `tanh`, `gelu`, `relu`, `sigmoid`)."""

    path: str
    in_features: int
    out_features: int
    bias: bool
    activation: str


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How token vectors become one embedding: as the checkpoint's sentence-transformers files declare it, or otherwise.

    `pooling` is `mean`, `cls`, `lasttoken`, or `mean_all` (padding too, so the bucket's length matters); pooled is
    the mean of what the last `layers` layers give.
    """

    pooling: str
    normalize: bool
    dense: tuple[Dense, ...] = ()
    layers: int = 1


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """How text becomes token ids: `max_length` counts special tokens; `padding` and `truncation` are `left` or `right`."""

    max_length: int
    pad_id: int
    padding: str
    lowercase: bool = False
    truncation: str = "right"


@dataclasses.dataclass(frozen=True)
class Function:
    """One entry point of a package: int32 `input_ids` and `attention_mask` of shape (batch, length)."""

    name: str
    batch: int
    length: int


@dataclasses.dataclass(frozen=True)
class Package:
    """One variant in one layout: package folders in running order, what they weigh, how good they are."""

    variant: str
    layout: str
    paths: tuple[str, ...]
    bytes: int
    parity: Mapping[str, float] | None = None
    benchmark: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Release:
    """Everything a loader needs to know.

    `files` lists each file of the release but `release.json` itself; `aliases` the folders that hold a package a
    second time, under a name that other clients look for; `provenance` and `sbom` where those documents are.
    """

    schema: int
    model: str
    version: str
    source: Source
    dimension: int
    recipe: Recipe
    prompts: Mapping[str, str]
    default_prompt: str | None
    matryoshka_dimensions: tuple[int, ...]
    tokenizer: Tokenizer
    target: str
    functions: tuple[Function, ...]
    packages: tuple[Package, ...]
    files: Mapping[str, File]
    tools: Mapping[str, str]
    embedding_space: str = ""
    provenance: str | None = None
    sbom: str | None = None
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def package(self, variant: str | None = None, layout: str | None = None) -> Package:
        """The package of a variant (default: the first) in a layout (default: the first that fits)."""
        for package in self.packages:
            if variant in {None, package.variant} and layout in {None, package.layout}:
                return package
        there = ", ".join(f"{p.variant} ({p.layout})" for p in self.packages)
        raise ReleaseError(
            f"{self.model} has no variant {variant!r} in layout {layout or 'any'!r}; it has {there}"
        )

    def digest(self, path: str) -> str:
        """A package's SHA-256, hex: over the names and hashes of its files, sorted."""
        files = {
            name.removeprefix(f"{path}/"): f.sha256
            for name, f in self.files.items()
            if name.startswith(f"{path}/")
        }
        return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, two spaces, a final newline."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def embedding_space(source: Source, recipe: Recipe, prompts: Mapping[str, str], max_length: int) -> str:
    """A fingerprint of all that decides what a vector means: 16 hex digits.

    Two collections may be mixed only if theirs are equal. Variants of one release share it: quantization
    changes how exact a vector is, not which space it lies in.
    """
    weights = sorted(file.sha256 for name, file in source.files.items() if name.endswith(".safetensors"))
    meaning = [weights, dataclasses.asdict(recipe), dict(prompts), max_length]
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:16]


def decode(kind: Any, value: Any, where: str) -> Any:
    """A record of this module from parsed JSON; a missing field or a wrong type is a `ReleaseError`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ReleaseError(f"{FILE}: {where} must be an object")
        hints = typing.get_type_hints(kind)
        fields = {f.name: f for f in dataclasses.fields(kind)}
        missing = [
            n
            for n, f in fields.items()
            if n not in value and f.default is f.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise ReleaseError(f"{FILE}: {where}.{missing[0]} is missing")
        return kind(**{n: decode(hints[n], value[n], f"{where}.{n}") for n in fields if n in value})  # type: ignore[operator]
    if origin is tuple:
        if not isinstance(value, list):
            raise ReleaseError(f"{FILE}: {where} must be a list")
        return tuple(decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin in {typing.Union, types.UnionType}:
        if value is None:
            return None
        return decode(next(a for a in arguments if a is not type(None)), value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise ReleaseError(f"{FILE}: {where} must be an object")
        return {key: decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is Any or isinstance(value, kind) or (kind is float and isinstance(value, int)):
        return value
    raise ReleaseError(f"{FILE}: {where} must be {kind.__name__}, it is {type(value).__name__}")


def parse(text: str) -> Release:
    """Read `release.json`; a newer schema, a missing field or a wrong type is a `ReleaseError`."""
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise ReleaseError(f"{FILE} is not JSON: {error}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("schema"), int):
        raise ReleaseError(f"{FILE} has no schema version: this is not a corembed release")
    if raw["schema"] > SCHEMA:
        raise ReleaseError(
            f"{FILE} has schema {raw['schema']}, this corembed reads up to {SCHEMA}: upgrade corembed"
        )
    release: Release = decode(Release, raw, "release")
    named = (release.provenance, release.sbom)
    for path in [
        *release.files,
        *(p for package in release.packages for p in package.paths),
        *filter(None, named),
    ]:
        confined(path)
    return release


def confined(path: str) -> PurePosixPath:
    """A path inside the release; one that leaves it is refused."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or not pure.parts:
        raise ReleaseError(f"{FILE} names {path!r}, which is not inside the release: do not use it")
    return pure


def read(folder: Path) -> Release:
    """The record of a release folder."""
    path = folder / FILE
    if not path.is_file():
        raise ReleaseError(f"{folder} holds no {FILE}: it is not a corembed release")
    return parse(path.read_text(encoding="utf-8"))


def verify(folder: Path) -> list[str]:
    """Compare every byte of a release folder, and what it says of its origin, with `release.json`.

    One line for each difference.
    """
    release = read(folder)
    problems = []
    present = {
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.is_file() and not p.relative_to(folder).parts[0].startswith(".")
    }
    for path, expected in sorted(release.files.items()):
        file = folder / path
        if path not in present:
            problems.append(f"{path}: missing")
        elif file.resolve() != (folder.resolve() / path) and not file.is_symlink():
            problems.append(f"{path}: leads outside the release")
        elif file.stat().st_size != expected.bytes:
            problems.append(f"{path}: {file.stat().st_size} bytes, expected {expected.bytes}")
        else:
            with file.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            if digest != expected.sha256:
                problems.append(f"{path}: SHA-256 {digest}, expected {expected.sha256}")
    problems += [f"{path}: not listed in {FILE}" for path in sorted(present - set(release.files) - {FILE})]
    return problems + provenance.problems(folder, release)
