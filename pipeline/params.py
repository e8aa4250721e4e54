"""What to build: the entries of `params.yaml` as frozen records."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from pipeline.errors import PipelineError

PARAMS = Path("params.yaml")
TARGETS = ("iOS16", "iOS17", "iOS18")


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How one kind of weight is stored.

    `float16`; `linear`: signed integers of `bits` with one FP16 scale a row, or one for each `block` columns, and
    with an offset beside each scale if `affine`; `palette`: indices of `bits` into a table of 2^bits FP16 values,
    one table a tensor, or one for each `group` rows. `calibrated`: rounding is by the inputs that the stage
    `calibrate` measured, so that outputs, not weights, are near.
    """

    scheme: Literal["float16", "linear", "palette"] = "float16"
    bits: int = 16
    block: int = 0
    group: int = 0
    affine: bool = False
    calibrated: bool = False


@dataclasses.dataclass(frozen=True)
class Gates:
    """The least that a variant must reach against the reference, over all parity texts."""

    min_cosine: float
    min_top10_overlap: float = 0.0
    min_spearman: float = 0.0
    max_quality_drop: float = 1.0
    """Upper bound (95 %, paired bootstrap) of what nDCG@10 may lose against the original."""
    min_neural_engine_cost: float = 0.0
    """Least share of the estimated cost that Core ML places on the Neural Engine; judged on a Mac only."""


def mrl_limit(min_cosine: float) -> float:
    """What a vector cut to fewer dimensions must reach: twice the error, as it averages over fewer entries."""
    return 2 * min_cosine - 1


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Labelled texts: `wiki`, or a data set as `hub:OWNER/NAME` (with a revision) or `path:FOLDER`."""

    data: str = "wiki"
    queries: int = 200
    documents: int = 400
    revision: str | None = None


@dataclasses.dataclass(frozen=True)
class Variant:
    """One encoding of all weights: a scheme for each kind of weight, exceptions for single weights, and gates.

    Kinds are `embedding`, `attention`, `mlp`, and `linear` for what is neither of the two or has no entry of its
    own. With a budget for the size of `weight.bin`, in MiB or as a share of what the weights take in FP16, each group of
    weights gets one of the `choices` of `params.yaml` instead, by `pipeline.allocate`. Keys of `layers` are beginnings of weights' names, at a dot: `layers.0`, `layers.3.output`.
    """

    name: str
    weights: Mapping[str, Scheme]
    layers: Mapping[str, Scheme]
    gates: Gates
    budget_mib: float | None = None
    budget_share: float | None = None

    @property
    def budgeted(self) -> bool:
        """Whether schemes are allocated within a budget."""
        return self.budget_mib is not None or self.budget_share is not None

    def scheme(self, name: str, kind: str) -> Scheme:
        """The scheme of a weight by its name and the trace's kind; the longest key of `layers` that fits wins.

        Norms, biases and positions stay in FP16.
        """
        if kind not in {"linear", "embedding"}:
            return Scheme()
        if fitting := [key for key in self.layers if f"{name}.".startswith(f"{key}.")]:
            return self.layers[max(fitting, key=len)]
        if kind == "linear" and (finer := part_of_layer(name)) in self.weights:
            return self.weights[finer]
        return self.weights.get(kind, Scheme())

    @property
    def calibrated(self) -> bool:
        """Whether any weight is rounded by calibration."""
        schemes = (*self.weights.values(), *self.layers.values())
        return self.budgeted or any(s.calibrated for s in schemes)

    def uncalibrated(self) -> Variant:
        """The same schemes with rounding to nearest."""
        plain = {
            "weights": {k: dataclasses.replace(s, calibrated=False) for k, s in self.weights.items()},
            "layers": {k: dataclasses.replace(s, calibrated=False) for k, s in self.layers.items()},
        }
        return dataclasses.replace(self, **plain)

    def check_layers(self, names: Iterable[str]) -> None:
        """Refuse exceptions for weights that the model does not have."""
        dotted = [f"{name}." for name in names]
        for key in self.layers:
            if not any(name.startswith(f"{key}.") for name in dotted):
                raise PipelineError(
                    f"variants.{self.name}.weights.layers: no weight's name begins with {key!r}; names are like "
                    f"{dotted[0].removesuffix('.')!r}"
                )


_ATTENTION = ("query", "key", "value", "attention", "q_proj", "k_proj", "v_proj", "o_proj")


def part_of_layer(name: str) -> str:
    """`attention` or `mlp` for a linear layer within a numbered layer, `linear` for others."""
    if not name.startswith("layers."):
        return "linear"
    return "attention" if any(word in name for word in _ATTENTION) else "mlp"


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
    retrieval: Retrieval | None = None
    matryoshka_dimensions: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Publish:
    """How releases reach the Hub; above `files_per_commit` one is staged on a pull request and merged.

    `check`: afterwards fetch the tag's smallest package as a user does, and embed with it.
    """

    namespace: str
    version: str
    licenses: tuple[str, ...] = ()
    push: bool = False
    create_pr: bool = False
    private: bool = False
    aliases: bool = True
    check: bool = True
    files_per_commit: int = 100
    force: bool = False


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
    entry["matryoshka_dimensions"] = tuple(entry.get("matryoshka_dimensions", ()))
    if entry.get("retrieval") is not None:
        entry["retrieval"] = _record(Retrieval, f"{where}.retrieval", entry["retrieval"])
    found: Model = _record(Model, where, {"revision": None, "license": None} | entry, name=name)
    check_lengths(found.max_lengths, where)
    check_batches(found.batches, where)
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


def check_batches(batches: tuple[int, ...], where: str) -> None:
    """Refuse batch sizes that are no rising row of integers from 1."""
    check_lengths(batches, where, "batches")
    if batches[0] != 1:
        raise PipelineError(f"{where}: batches {list(batches)} must begin with 1: clients run one text")


def variant(name: str, params: Mapping[str, Any] | None = None) -> Variant:
    """The entry of a variant, checked."""
    where = f"variants.{name}"
    entry = _entry("variants", name, params or load())
    weights = dict(entry.get("weights", {}))
    layers = weights.pop("layers", {})
    budgets = {kind: weights.pop(kind) for kind in ("budget_mib", "budget_share") if kind in weights}
    for kind, budget in budgets.items():
        alone = not weights and not layers and len(budgets) == 1
        if not alone or not isinstance(budget, int | float) or budget <= 0:
            raise PipelineError(
                f"{where}.weights: {kind} {budget!r} must be a positive number and stand alone; what it chooses "
                "among stands under `choices:`"
            )
    if unknown := sorted(set(weights) - set(KINDS)):
        raise PipelineError(
            f"{where}.weights: {unknown[0]!r} is no kind of weight (kinds: {', '.join(KINDS)}, and layers)"
        )
    gates = _record(Gates, f"{where}.gates", entry.get("gates", {}))
    return Variant(
        name,
        {kind: _scheme(values, f"{where}.weights.{kind}") for kind, values in weights.items()},
        {key: _scheme(values, f"{where}.weights.layers.{key}") for key, values in layers.items()},
        gates,
        **budgets,
    )


def choices(params: Mapping[str, Any] | None = None) -> dict[str, list[Scheme]]:
    """The schemes that mixed precision chooses among, for `linear` and `embedding`."""
    found = (params or load()).get("choices") or {}
    if set(found) != {"linear", "embedding"} or not all(found.values()):
        raise PipelineError(
            f"{PARAMS}: `choices` needs a list of schemes for `linear` and one for `embedding`"
        )
    return {
        kind: [_scheme(values, f"choices.{kind}") for values in schemes] for kind, schemes in found.items()
    }


KINDS = ("linear", "attention", "mlp", "embedding")

_SETTINGS = {
    "float16": {"bits": {16}},
    "linear": {"bits": {4, 8}, "block": None, "affine": None, "calibrated": None},
    "palette": {"bits": {1, 2, 4, 6, 8}, "group": None, "calibrated": None},
}
"""The settings each scheme takes, with the values allowed where they are few."""


def _scheme(values: Mapping[str, Any], where: str) -> Scheme:
    made: Scheme = _record(Scheme, where, values)
    if made.scheme not in _SETTINGS:
        raise PipelineError(f"{where}: scheme {made.scheme!r} is not one of {', '.join(_SETTINGS)}")
    settings = _SETTINGS[made.scheme]
    allowed = settings["bits"]
    if made.bits not in (allowed or ()):
        raise PipelineError(f"{where}: {made.scheme} with {made.bits} bits; allowed: {sorted(allowed or ())}")
    if stray := sorted(set(values) - set(settings) - {"scheme"}):
        raise PipelineError(f"{where}: {made.scheme} takes no {stray[0]!r} (it takes: {', '.join(settings)})")
    for name in ("block", "group"):
        size = getattr(made, name)
        if not isinstance(size, int) or size < 0:
            raise PipelineError(
                f"{where}: {name} {size!r} is not a number of {'columns' if name == 'block' else 'rows'}"
            )
    return made


def publish(params: Mapping[str, Any], **given: bool) -> Publish:
    """The settings of publishing, checked; `given` overrides them. To force is said each time, not written down."""
    entry = dict(params["publish"])
    if "force" in entry:
        raise PipelineError(
            "publish.force does not belong into the file: give --force to the one run that needs it"
        )
    entry["licenses"] = tuple(entry.get("licenses", ()))
    found: Publish = _record(Publish, "publish", entry | given)
    if not re.fullmatch(r"\d+\.\d+\.\d+([-+].+)?", str(found.version)):
        raise PipelineError(
            f"publish.version {found.version!r} is not MAJOR.MINOR.PATCH; it becomes the tag vVERSION"
        )
    return found
