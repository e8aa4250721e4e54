"""What to build: the entries of `params.yaml` as frozen records."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from pipeline.errors import PipelineError

PARAMS = Path("params.yaml")
TARGETS = ("iOS16", "iOS17", "iOS18")


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How one kind of weight is stored.

    `float16`; `linear`: signed integers of `bits` with one FP16 scale a row, or one for each `block` columns;
    `palette`: indices of `bits` into a table of 2^bits FP16 values, one table for each `group` rows.
    """

    scheme: Literal["float16", "linear", "palette"] = "float16"
    bits: int = 16
    block: int = 0
    group: int = 0


@dataclasses.dataclass(frozen=True)
class Gates:
    """The least that a variant must reach against the reference, over all parity texts."""

    min_cosine: float
    min_top10_overlap: float = 0.0
    min_spearman: float = 0.0


@dataclasses.dataclass(frozen=True)
class Variant:
    """One encoding of all weights: a scheme for linear layers, one for the token-embedding table, and gates."""

    name: str
    linear: Scheme
    embedding: Scheme
    gates: Gates

    def scheme(self, kind: str) -> Scheme:
        """The scheme of a weight of this kind; norms, biases and positions stay in FP16."""
        return {"linear": self.linear, "embedding": self.embedding}.get(kind, Scheme())


@dataclasses.dataclass(frozen=True)
class Model:
    """One checkpoint to release: where it comes from and in which shapes it is built."""

    name: str
    source: str
    revision: str | None
    license: str | None
    max_lengths: tuple[int, ...]
    layouts: tuple[str, ...] = ("single",)
    size_limit: int = 1 << 30
    target: str = "iOS18"
    parity_texts: int = 256
    batches: tuple[int, ...] = (1,)
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def load(path: Path = PARAMS) -> dict[str, Any]:
    """All of `params.yaml`."""
    if not path.exists():
        raise PipelineError(f"{path} is missing: run from the root of the checkout")
    params: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return params


def variants(params: Mapping[str, Any]) -> list[str]:
    """The names of all variants, the unquantized first (YAML puts merged keys before a mapping's own)."""
    return sorted(params["variants"], key=lambda name: name in params["quantized"])


def _entry(section: str, name: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
    if name not in params[section]:
        known = ", ".join(params[section])
        raise PipelineError(
            f"no entry {name!r} under `{section}:` in {PARAMS} (there is: {known}); add one or correct the name"
        )
    entry: Mapping[str, Any] = params[section][name]
    return entry


def _record(kind: type[Any], where: str, values: Mapping[str, Any], **more: Any) -> Any:
    known = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - known):
        raise PipelineError(f"{where}: unknown setting {unknown[0]!r} (known: {', '.join(sorted(known))})")
    try:
        return kind(**values, **more)
    except TypeError as error:
        raise PipelineError(f"{where}: {error}") from error


def model(name: str, params: Mapping[str, Any] | None = None) -> Model:
    """The entry of a model, checked."""
    where = f"models.{name}"
    entry = dict(_entry("models", name, params or load()))
    entry["max_lengths"] = tuple(entry.get("max_lengths", ()))
    entry["layouts"] = tuple(entry.get("layouts", ("single",)))
    entry["batches"] = tuple(entry.get("batches", (1,)))
    found: Model = _record(Model, where, {"revision": None, "license": None} | entry, name=name)
    check_lengths(found.max_lengths, where)
    check_lengths(found.batches, where, "batches")
    if found.batches[0] != 1:
        raise PipelineError(f"{where}: batches {list(found.batches)} must begin with 1: clients run one text")
    if found.target not in TARGETS:
        raise PipelineError(f"{where}: target {found.target!r} is not one of {', '.join(TARGETS)}")
    if unknown := set(found.layouts) - {"single", "parts"}:
        raise PipelineError(f"{where}: layout {unknown.pop()!r} is neither single nor parts")
    return found


def check_lengths(lengths: tuple[int, ...], where: str, what: str = "max_lengths") -> None:
    """Refuse buckets or batch sizes that are not positive, distinct integers in rising order."""
    if (
        not lengths
        or any(not isinstance(n, int) or n < 1 for n in lengths)
        or sorted(set(lengths)) != list(lengths)
    ):
        raise PipelineError(
            f"{where}: {what} {list(lengths)} must be distinct positive integers in rising order"
        )


def variant(name: str, params: Mapping[str, Any] | None = None) -> Variant:
    """The entry of a variant, checked."""
    where = f"variants.{name}"
    entry = _entry("variants", name, params or load())
    weights = entry.get("weights", {})
    schemes = {
        kind: _record(Scheme, f"{where}.weights.{kind}", weights.get(kind, {}))
        for kind in ("linear", "embedding")
    }
    for kind, scheme in schemes.items():
        _check_scheme(scheme, f"{where}.weights.{kind}")
    gates = _record(Gates, f"{where}.gates", entry.get("gates", {}))
    return Variant(name, schemes["linear"], schemes["embedding"], gates)


def _check_scheme(scheme: Scheme, where: str) -> None:
    allowed = {"float16": {16}, "linear": {4, 8}, "palette": {1, 2, 4, 6, 8}}
    if scheme.scheme not in allowed:
        raise PipelineError(f"{where}: scheme {scheme.scheme!r} is not one of {', '.join(allowed)}")
    if scheme.bits not in allowed[scheme.scheme]:
        raise PipelineError(
            f"{where}: {scheme.scheme} with {scheme.bits} bits; allowed: {sorted(allowed[scheme.scheme])}"
        )
