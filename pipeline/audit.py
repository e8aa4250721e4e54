"""Stage `audit`: does a package hold the checkpoint's weights, all of them, each at its place?

From `packages/VARIANT/`, `traced/` and `checkpoint/`, writes `reports/audit/MODEL/VARIANT.json`, then fails if
anything is off. The vectors of a model hardly move when one layer is a little wrong; here every stored value is
decoded (by milrun, not by the code that encoded it) and compared with the checkpoint's tensor, a block of rows at
a time, and every operation with the one that was traced.

What is allowed follows from the encoding alone. Rounding to nearest leaves each value at the nearest one its
encoding can hold (`pipeline.bounds`): for FP16 the correctly rounded number, for integers at most half a step away,
or clipped at the end of the range; for palettes the nearest entry. Rounding that compensates errors may move a value
on purpose, so there each is allowed one gap more, a hundredth of them any, and each row three times the root mean
square error that rounding to nearest would leave: a wrong tensor or row is ten times beyond that, while a change far
below one step cannot be told from the compensation. The results of decoding are FP16, which adds their own rounding.
"""

from __future__ import annotations

import collections
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from milrun.constexpr import Constexpr
from milrun.errors import MilrunError
from milrun.model import Model, load
from milrun.weights import Weight
from pipeline import params, places
from pipeline.allocate import resolved
from pipeline.assemble import Part, Traced, package_names
from pipeline.bounds import Floats, nearest
from pipeline.checkpoint import Checkpoint
from pipeline.errors import PipelineError, run
from pipeline.files import inventory, write_json
from pipeline.splice import CONSTANT, WEIGHT, values

_HALF_ULP = 2.0**-11  # largest relative error of rounding to FP16
_TINY = 2.0**-25  # half of FP16's smallest number
_COMPENSATED_RMS = 3.0
_COMPENSATED_OUTSIDE = 0.01
_CLOSE = 0.1  # relative difference below which a wrong tensor is taken for another state of the same one


Rounding = Literal["exact", "nearest", "compensated"]


def _row_rms(values: Floats) -> npt.NDArray[np.float64]:
    rms: npt.NDArray[np.float64] = np.sqrt(
        np.square(values.reshape(len(values), -1), dtype=np.float64).mean(1)
    )
    return rms


def _storage(weight: Weight) -> object:
    """Equal for weights that decode the same bytes."""
    if isinstance(weight, Constexpr):
        return weight.encoding, *(_storage(source) for source in weight.sources)
    return weight.identity


class Tally:
    """What is known of one weight after all its rows: float sums over values, in the weight's own unit."""

    def __init__(self, rounding: Rounding) -> None:
        self.rounding = rounding
        self.values = self.outside = 0
        self.square_error = self.square_best = self.square_wanted = 0.0
        self.worst = self.worst_gaps = 0.0
        self.rows: list[int] = []

    def add(self, first: int, decoded: Floats, wanted: Floats, best: Floats, gap: Floats) -> None:
        """Count a block of rows that starts at row `first`."""
        error = np.abs(decoded - wanted)
        if self.rounding == "exact":
            wrong = decoded != best
        else:
            # An encoder may see the value as FP16 holds it: half a unit of that moves both distances.
            allowed = np.abs(best - wanted) + _HALF_ULP * (np.abs(decoded) + 2 * np.abs(wanted)) + _TINY
            if self.rounding == "compensated":
                allowed += gap
            wrong = ~(error <= allowed)  # NaN is wrong too
        self.outside += int(wrong.sum())
        self.values += error.size
        self.square_error += float(np.square(error).sum(dtype=np.float64))
        self.square_best += float(np.square(best - wanted).sum(dtype=np.float64))
        self.square_wanted += float(np.square(wanted).sum(dtype=np.float64))
        self.worst = max(self.worst, float(error.max(initial=0)))
        with np.errstate(divide="ignore", invalid="ignore"):
            self.worst_gaps = max(self.worst_gaps, float(np.nanmax(error / gap, initial=0)))
        if self.rounding == "compensated":
            limit = _COMPENSATED_RMS * _row_rms(best - wanted) + _HALF_ULP * _row_rms(decoded) + _TINY
            bad = ~(_row_rms(error) <= limit)
        else:
            bad = wrong.reshape(len(error), -1).any(1)
        self.rows += (np.flatnonzero(bad) + first).tolist()

    @property
    def relative(self) -> float:
        """Root mean square error against the root mean square of the wanted values."""
        return math.sqrt(self.square_error / (self.square_wanted or 1.0))

    @property
    def excess(self) -> float:
        """`relative`, of what rounding to nearest does not explain."""
        return math.sqrt(max(self.square_error - self.square_best, 0.0) / (self.square_wanted or 1.0))

    @property
    def passed(self) -> bool:
        """Whether every value is where its encoding allows."""
        if self.rounding == "compensated":
            return not self.rows and self.outside <= _COMPENSATED_OUTSIDE * self.values
        return not self.outside


def _operations(function: Any) -> dict[str, Any]:
    (block,) = function.block_specializations.values()
    return {operation.outputs[0].name: operation for operation in block.operations if operation.outputs}


def _same(name: str, traced: Any, built: Mapping[str, Any]) -> str | None:
    """What is wrong with one operation of a package that holds no weight."""
    if name not in built:
        return "is missing"
    if built[name].SerializeToString(deterministic=True) != traced.SerializeToString(deterministic=True):
        return f"is not the one that was traced ({traced.type}; the package's is {built[name].type})"
    return None


class Package:
    """One package beside the programs and the checkpoint that it must be made of."""

    def __init__(self, path: Path, part: Part, variant: params.Variant, checkpoint: Path) -> None:
        """`part` holds the functions without weights, `variant` says how weights are rounded."""
        self.path, self.part, self.variant, self.checkpoint = path, part, variant, checkpoint
        self.expected = {name: program_weights(function) for name, function in part.programs.items()}
        used = {w for references in self.expected.values() for w in references.values()}
        self.weights = {n: w for n, w in part.weights.items() if WEIGHT + n in used}
        self.opened: dict[str, Checkpoint] = {}
        try:
            loaded = load(path)
        except MilrunError as error:
            raise PipelineError(f"{path}: cannot be read: {error}") from error
        if not isinstance(loaded, Model):
            raise PipelineError(f"{path}: a pipeline of models, not the program that was traced")
        self.model = loaded

    def stored(self) -> Iterator[tuple[str, str, Weight | None, str | None]]:
        """Function, reference, weight, and what is wrong with its operation, for all operations of all functions."""
        for function, program in self.part.programs.items():
            if function not in self.model.functions:
                yield function, "", None, f"function {function} is missing from the package"
                continue
            traced = _operations(program)
            built = _operations(self.model.package.spec.mlProgram.functions[function])
            plan = self.model.functions[function]
            held = dict(zip(plan.slot_names, plan.initial, strict=True))
            for name, operation in traced.items():
                reference = self.expected[function].get(name)
                if reference is None:
                    if problem := _same(name, operation, built):
                        yield function, "", None, f"operation {name!r} of {function} {problem}"
                elif isinstance(held.get(name), Weight):
                    yield function, reference, held[name], None
                else:
                    yield (
                        function,
                        reference,
                        None,
                        f"{reference} has no stored value ({name!r} of {function})",
                    )
            for name in sorted(built.keys() - traced.keys()):
                yield function, "", None, f"operation {name!r} of {function} was not traced"

    def tensor_rows(self, weight: str, multiple: int = 1) -> Iterator[Floats]:
        """The checkpoint's values of a weight, a block of rows at a time."""
        entry = self.weights[weight]
        folder = entry["folder"]
        if folder not in self.opened:
            self.opened[folder] = Checkpoint(self.checkpoint / folder)
        opened = self.opened[folder]
        yield from opened.rows(opened.find(entry["tensor"], tuple(entry["shape"])), multiple)

    def rounding(self, name: str, weight: Weight) -> Rounding:
        """How the values of a weight were chosen: exactly, as the nearest, or by what their inputs are."""
        if not isinstance(weight, Constexpr):
            return "exact"
        scheme = self.variant.scheme(name, self.weights[name]["kind"])
        return "compensated" if scheme.calibrated else "nearest"

    def compare(self, name: str, weight: Weight) -> Tally:
        """Every value of a stored weight against the checkpoint's."""
        tally, start = Tally(self.rounding(name, weight)), 0
        for wanted in self.tensor_rows(name):
            rows = slice(start, start + len(wanted))
            decoded = weight.decode(rows).float().numpy()
            tally.add(start, decoded, wanted, *nearest(weight, wanted, rows))
            start = rows.stop
        weight.release()
        return tally

    def explain(self, name: str, weight: Weight, tally: Tally) -> str:
        """Which kind of fault this is: another tensor's values, a few rows, or another state of the same tensor."""
        entry = self.weights[name]
        head = weight.decode(slice(0, min(8, weight.shape[0]))).float().numpy()
        for other, candidate in self.weights.items():
            if other != name and candidate["shape"] == entry["shape"]:
                wanted = next(self.tensor_rows(other))[: len(head)]
                best, gap = nearest(weight, wanted, slice(0, len(head)))
                if bool((np.abs(head - wanted) <= np.abs(best - wanted) + gap + _TINY).all()) and head.any():
                    return f"it holds the values of {candidate['tensor']!r}: two tensors were swapped"
        bad = np.array(tally.rows)
        if len(bad) and len(bad) < weight.shape[0] / 2 and bad[-1] - bad[0] == len(bad) - 1:
            span = f"row {bad[0]}" if len(bad) == 1 else f"{len(bad)} rows, {bad[0]} to {bad[-1]}"
            return f"only {span} of {weight.shape[0]} differ: damaged bytes"
        if tally.excess < _CLOSE:
            return "close to the checkpoint's, and not it: weights of another state of the model, or changed afterwards"
        return "nothing like the checkpoint's: another model's weights, or damaged bytes"

    def audit(self) -> tuple[list[dict[str, Any]], list[str]]:
        """A record for each weight, and the problems in the order of the program."""
        records: list[dict[str, Any]] = []
        problems: list[str] = []
        seen: set[tuple[str, object]] = set()
        for function, reference, weight, problem in self.stored():
            if weight is None or problem:
                problems.append(f"{self.path.name}: {problem}")
            elif reference.startswith(CONSTANT):
                wanted = self.part.constants[f"{function}/{reference.removeprefix(CONSTANT)}"]
                if not np.array_equal(weight.decode().numpy(), wanted.reshape(weight.shape)):
                    problems.append(
                        f"{self.path.name}: table {reference.removeprefix(CONSTANT)!r} of {function} differs"
                    )
            elif (key := (reference, _storage(weight))) not in seen:  # functions share weights
                seen.add(key)
                record, wrong = self._judge(reference.removeprefix(WEIGHT), weight)
                records.append(record)
                problems += wrong
        missing = set(self.weights) - {r["weight"] for r in records}
        problems += [f"{self.path.name}: weight {name!r} is not in the package" for name in sorted(missing)]
        return records, problems

    def _judge(self, name: str, weight: Weight) -> tuple[dict[str, Any], list[str]]:
        tensor = self.weights[name]["tensor"]
        expected = self.weights[name]["shape"]
        if list(weight.shape) != expected:
            problem = f"has shape {list(weight.shape)}, the checkpoint's {expected}"
            return {"weight": name}, [f"{self.path.name}: tensor {tensor!r} {problem}"]
        tally = self.compare(name, weight)
        record = {
            "weight": name,
            "tensor": tensor,
            "encoding": weight.encoding,
            "values": tally.values,
            "max_error": tally.worst,
            "max_error_in_steps": tally.worst_gaps,
            "relative_error": tally.relative,
            "passed": tally.passed,
        }
        if tally.passed:
            return record, []
        problem = (
            f"{self.path.name}: tensor {tensor!r} ({weight.encoding}): {tally.outside} of {tally.values} values beyond "
            f"what its encoding allows, relative error {tally.relative:.3g}; {self.explain(name, weight, tally)}"
        )
        return record, [problem]


def program_weights(function: Any) -> dict[str, str]:
    """What each stored constant of a function without weights stands for, by its name in the program."""
    return {o.outputs[0].name: v.blobFileValue.fileName for o, v in values(function)}


def audit_packages(where: places.Places, variant: params.Variant) -> tuple[list[dict[str, Any]], list[str]]:
    """Records of all weights of a variant's packages, and every problem found, the first of the program first."""
    traced = Traced(where.traced)
    records, problems = [], []
    for layout in traced.record["layouts"]:
        spans = traced.spans(layout, variant)
        for name, span in zip(package_names(variant.name, layout, len(spans)), spans, strict=True):
            package = Package(
                where.packages(variant.name) / name, Part(traced, span), variant, where.checkpoint
            )
            found, wrong = package.audit()
            records += [{"package": name} | record for record in found]
            problems += wrong
    return records, problems


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By encoding: tensors, values, and the largest and typical error."""
    groups = collections.defaultdict(list)
    for record in records:
        groups[record.get("encoding", "unknown")].append(record)
    return {
        encoding: {
            "tensors": len(group),
            "values": sum(r.get("values", 0) for r in group),
            "max_error_in_steps": max(r.get("max_error_in_steps", 0.0) for r in group),
            "max_relative_error": max(r.get("relative_error", 0.0) for r in group),
        }
        for encoding, group in sorted(groups.items())
    }


def audit(where: places.Places, model: str, variant: params.Variant, report: Path) -> dict[str, Any]:
    """Compare, write the report, then raise `PipelineError` if anything is wrong."""
    records, problems = audit_packages(where, resolved(variant, where.sensitivity))
    result = {
        "model": model,
        "variant": variant.name,
        "passed": not problems,
        "tensors": len(records),
        "values": sum(r.get("values", 0) for r in records),
        "encodings": summary(records),
        "worst": sorted(records, key=lambda r: -r.get("relative_error", 0.0))[:10],
        "problems": problems,
        "files": inventory(where.packages(variant.name)),
    }
    write_json(report, result)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise PipelineError(f"{model} {variant.name}: {problems[0]}{more}; report: {report}")
    return result


def main() -> None:
    """`python -m pipeline.audit MODEL VARIANT`."""
    model, variant = places.arguments_of(sys.argv, "MODEL", "VARIANT")
    audit(places.of(model), model, params.variant(variant), places.report("audit", model, variant))


if __name__ == "__main__":
    run(main)
