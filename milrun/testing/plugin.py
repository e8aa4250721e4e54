"""A pytest plugin (`-p milrun.testing.plugin`) that has coremltools' own tests predict here.

Off a Mac those tests pass without predicting. The plugin installs the stand-in before they are
imported, tells them that this is macOS, tightens the FP16 tolerance (theirs, atol 0.5, hides a
result that is 2 % off), and records for each test how many predictions it really executed, whether the
stand-in raised, and what a failed comparison shows (`milrun.testing.evidence`). Before the
tests run, what collecting left in memory is taken out of the garbage collector's sight: `ct.convert` runs it
at every call, and was nine tenths of the time.

Environment: `MILRUN_REPORT` is the JSON-lines file to append to; `MILRUN_LIST` a
file that gets the ids of all collected tests; `MILRUN_SELECT` a file with the ids to keep (both JSON
lists of `path::name`, relative to the coremltools folder); `MILRUN_SABOTAGE` one of
`zeros`, `2%`, `softmax`, `raise`, which falsifies results (`raise`: has `softmax` fail): the suite must then fail.
"""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.machinery
import inspect
import json
import os
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milrun.testing.evidence import Comparisons, Evidence, of_comparison, of_unrounded

FP16_TOLERANCE = 1e-2
_executed = 0
_raised = 0
_comparisons = Comparisons()
_last: list[Any] = []  # the stand-in's model and the inputs of the newest prediction


def _settings() -> None:
    os.environ.setdefault("PYMIL_TEST_TARGETS", "mlprogram")
    os.environ.setdefault("INCLUDE_MIL_FP32_UNIT_TESTS", "1")


class _Absent(types.ModuleType):
    """A package that isn't installed: importing names from it works, using them fails."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> Any:
            raise ModuleNotFoundError(f"{_MISSING} {self.__name__}.{name}")

        return missing


_MISSING = "not installed for the conformance run:"
_OPTIONAL = {
    "torchvision": ("models", "ops", "transforms"),
    "peft": (),
}


def _stand_for_absent_packages() -> None:
    """Let test files that import torchvision or peft be collected where those are absent.

    The few tests that use them fail, and are counted as `dependency_missing`.
    """
    for package, parts in _OPTIONAL.items():
        try:
            importlib.import_module(package)
        except (ImportError, RuntimeError):
            sys.modules[package] = _Absent(package)
            sys.modules[package].__spec__ = importlib.machinery.ModuleSpec(package, None)
            for part in parts:
                sys.modules[f"{package}.{part}"] = _Absent(f"{package}.{part}")
                setattr(sys.modules[package], part, sys.modules[f"{package}.{part}"])


def _count_predictions(proxy: Any) -> None:
    original = proxy.predict
    sabotage = os.environ.get("MILRUN_SABOTAGE", "")

    def predict(self: Any, data: Any, state: Any = None) -> Any:
        global _executed  # noqa: PLW0603 - the one counter of this process
        result = original(self, data, state)
        _executed += 1
        _last[:] = [self, data] if state is None else []
        if sabotage in ("zeros", "2%"):
            factor = 0.0 if sabotage == "zeros" else 1.02
            result = {
                k: (v * factor).astype(v.dtype) if isinstance(v, np.ndarray) and v.dtype.kind in "fi" else v
                for k, v in result.items()
            }
        return result

    proxy.predict = predict


def _count_errors(proxy: Any) -> None:
    """Count what loading, compiling, predicting and making state raise: such a test is judged."""

    def watched(method: Any) -> Any:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            global _raised  # noqa: PLW0603 - the one counter of this process
            try:
                return method(*args, **kwargs)
            except Exception:
                _raised += 1
                raise

        return call

    for name in ("__init__", "predict", "newState"):
        setattr(proxy, name, watched(getattr(proxy, name)))
    proxy.compileModel = staticmethod(watched(proxy.compileModel))


def _unrounded(actual: Any, desired: Any, rtol: float, atol: float) -> Evidence | None:
    """Predict the newest prediction once more, with nothing rounded to FP16."""
    from milrun.errors import MilrunError  # noqa: PLC0415
    from milrun.model import load  # noqa: PLC0415

    if not _last or os.environ.get("MILRUN_SABOTAGE"):
        return None
    proxy, data = _last
    try:
        outputs = load(proxy._source, precision="fp32").predict(data, proxy._function)
    except MilrunError:  # the package is gone: no evidence, and the failure stays one
        return None
    return of_unrounded(actual, outputs.values(), desired, rtol, atol)


def _watch_comparisons() -> None:
    original = np.testing.assert_allclose

    @functools.wraps(original)
    def assert_allclose(
        actual: Any, desired: Any, rtol: float = 1e-7, atol: float = 0, *args: Any, **kwargs: Any
    ) -> None:
        try:
            original(actual, desired, rtol, atol, *args, **kwargs)
        except AssertionError:
            _comparisons.failed += 1
            _comparisons.last = of_comparison(actual, desired, rtol, atol) or _unrounded(
                actual, desired, rtol, atol
            )
            raise
        _comparisons.passed += 1

    np.testing.assert_allclose = assert_allclose


def _break_one_operation() -> None:
    sabotage = os.environ.get("MILRUN_SABOTAGE")
    if sabotage not in ("softmax", "raise"):
        return
    import dataclasses  # noqa: PLC0415

    import milrun.ops  # noqa: F401, PLC0415
    from milrun.ops.registry import KERNELS  # noqa: PLC0415

    def rolled(function: Any) -> Any:
        return lambda *arguments: function(*arguments).roll(1, -1)

    def raising(_function: Any) -> Any:
        def kernel(*_arguments: Any) -> Any:
            raise ValueError("broken on purpose")

        return kernel

    broken = rolled if sabotage == "softmax" else raising
    KERNELS["softmax"] = [dataclasses.replace(k, function=broken(k.function)) for k in KERNELS["softmax"]]


class _Tight:
    """`max` for coremltools' comparison code, where it widens FP16 tolerances to 0.5 and 0.05."""

    def __call__(self, *values: Any) -> Any:
        if len(values) == 2 and values[1] in (5e-1, 5e-2):
            return FP16_TOLERANCE
        return max(*values)


def pytest_configure(config: pytest.Config) -> None:
    """Install the stand-in before any test module is imported."""
    _settings()
    import milrun  # noqa: PLC0415

    milrun.install()
    import coremltools._deps as deps  # noqa: PLC0415
    import torch  # noqa: PLC0415

    deps._IS_MACOS = True
    _stand_for_absent_packages()
    torch.set_num_threads(1)
    from milrun.proxies import ModelProxy  # noqa: PLC0415

    _count_predictions(ModelProxy)
    _count_errors(ModelProxy)
    _watch_comparisons()
    _break_one_operation()
    import coremltools.converters.mil.testing_utils as common  # noqa: PLC0415

    common.max = _Tight()
    config.addinivalue_line("markers", "slow: a mark of the suite's own")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep only the selected tests; tighten the torch suite's comparison too."""
    torch_utils = sys.modules.get("coremltools.converters.mil.frontend.torch.test.testing_utils")
    if torch_utils is not None:
        torch_utils.max = _Tight()  # type: ignore[attr-defined]
    listing = os.environ.get("MILRUN_LIST")
    if listing:
        Path(listing).write_text(json.dumps([test_id(i) for i in items]), "utf-8")
    selection = os.environ.get("MILRUN_SELECT")
    if selection:
        wanted = set(json.loads(Path(selection).read_text("utf-8")))
        kept = [i for i in items if test_id(i) in wanted]
        config.hook.pytest_deselected(items=[i for i in items if test_id(i) not in wanted])
        items[:] = kept


def pytest_collection_finish() -> None:
    """Leave what exists by now out of every later garbage collection."""
    gc.collect()
    gc.freeze()


def test_id(item: Any) -> str:
    """The id of a test relative to the coremltools folder, without addresses: those differ in each process."""
    import coremltools  # noqa: PLC0415

    root = Path(inspect.getfile(coremltools)).parent
    name = re.sub(r" at 0x[0-9a-f]+", "", item.nodeid.split("::", 1)[1])
    return f"{Path(item.path).relative_to(root).as_posix()}::{name}"


test_id.__test__ = False  # type: ignore[attr-defined]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Any:  # noqa: ARG001
    """Seed each test the same way and count its predictions."""
    np.random.seed(0)  # noqa: NPY002 - the suite draws from numpy's global generator
    import torch  # noqa: PLC0415

    torch.manual_seed(0)
    item.stash[_before] = _executed, _raised
    _comparisons.__init__()  # type: ignore[misc]
    _last.clear()
    yield


_before = pytest.StashKey[tuple[int, int]]()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Any:
    """Append the outcome of each test to the report."""
    outcome = yield
    report = outcome.get_result()
    path = os.environ.get("MILRUN_REPORT")
    final = report.when == "call" or (report.when == "setup" and report.outcome != "passed")
    if not path or not final:
        return
    message = "" if call.excinfo is None else f"{call.excinfo.typename}: {call.excinfo.value}"
    result = report.outcome
    if str(report.longrepr).startswith("[XPASS(strict)]"):
        result = "xpassed"  # marked as a bug of Core ML's; here the numbers are the expected ones
    elif result == "failed" and (_MISSING in message or "'torchvision' is not defined" in message):
        result = "dependency_missing"
    elif result == "failed" and "format before ML Programs" in message:
        result = "neural_network"  # the old back end: outside what is judged
    executed, raised = item.stash[_before]
    record = {
        "id": test_id(item),
        "outcome": result,
        "predictions": _executed - executed,
        "raised": _raised - raised,
        "evidence": _comparisons.judge(message) if result == "failed" else None,
        "seconds": round(report.duration, 3),
        "message": message[:400] if report.outcome != "passed" else "",
    }
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
