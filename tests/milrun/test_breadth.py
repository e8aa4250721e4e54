"""Is there a kernel for every operation that coremltools registers, with every parameter it may write?

The lists are coremltools' own registry, so that a newer coremltools with a new operation fails here.
"""

import coremltools.converters.mil.frontend.torch.dialect_ops
import pytest
import torch
from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry
from hypothesis import given, settings
from hypothesis import strategies as st

from milrun.constexpr import BUILDERS
from milrun.ops.registry import find
from milrun.program import CONTROL
from milrun.types import DTYPES

OPSETS = {4: 13, 5: 14, 6: 15, 7: 16, 8: 17, 9: 18}
# Made by the planner itself; `_const_symbolic` holds a shape that coremltools resolves before it writes a program.
PLANNED = {"const", "_const_symbolic", *CONTROL}
OPERATIONS = [
    (name, OPSETS[target.value], kind)
    for name, versions in sorted(SSAOpRegistry.core_ops.items())
    for target, kind in sorted(versions.items())
    if target.value in OPSETS and name not in PLANNED
]
# Dialects are what the front ends write between themselves; passes lower them before a program is saved.
LOWERED = {"complex", "torch"}


def test_the_registry_is_the_one_that_was_looked_at() -> None:
    """168 operations in 9.0; a much smaller list would mean that this file checks nothing."""
    assert len(SSAOpRegistry.core_ops) >= 168
    assert {opset for _, opset, _ in OPERATIONS} >= {15, 16, 17, 18}


@pytest.mark.parametrize("opset", [13, 14, 15, 16, 17, 18])
def test_every_operation_of_an_opset_has_a_kernel_that_knows_its_parameters(opset: int) -> None:
    missing, unknown = [], []
    for name, since, kind in OPERATIONS:
        if since != opset:
            continue
        if name in BUILDERS:
            continue
        kernel = find(name, opset)
        if kernel is None:
            missing.append(name)
            continue
        known = {p.name for p in kernel.parameters}
        unknown += [f"{name}.{p}" for p in kind.input_spec.input_types if p not in known]
    assert missing == []
    assert unknown == []


def test_every_compressed_constant_is_decoded() -> None:
    names = {n for n, _, _ in OPERATIONS if n.startswith("constexpr_")}
    assert names == set(BUILDERS)


def test_dialects_are_lowered_or_have_a_kernel() -> None:
    assert coremltools.converters.mil.frontend.torch.dialect_ops
    rest = {n for n in SSAOpRegistry.dialect_ops if n.split("_")[0] not in LOWERED}
    assert all(find(name, 18) for name in rest | {"write_state", "read_state", "classify"}), rest


def test_no_parameter_is_required_that_coremltools_may_leave_out() -> None:
    """coremltools writes defaults out; a program from elsewhere need not."""
    wrong = []
    for name, opset, kind in OPERATIONS:
        if name in BUILDERS:
            continue
        required = {p.name for p in find(name, opset).parameters if p.required and p.kind != "ctx"}
        wrong += [
            f"{name}.{p}" for p, t in kind.input_spec.input_types.items() if t.optional and p in required
        ]
    assert wrong == []


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_type_of_the_format_has_a_carrier_that_holds_its_range(name: str) -> None:
    dtype = DTYPES[name]
    if dtype.kind == "int" and name != "uint64":  # no torch type holds all of uint64
        low, high = dtype.range
        limits = torch.iinfo(dtype.carrier)
        assert limits.min <= low
        assert high <= limits.max
    elif dtype.is_float:
        assert torch.finfo(dtype.carrier).bits == dtype.bits


@given(
    value=st.integers(-(2**40), 2**40),
    name=st.sampled_from(["uint4", "int4", "int8", "uint8", "int16", "uint16"]),
)
@settings(max_examples=60, deadline=None)
def test_integer_results_wrap_to_their_declared_type(value: int, name: str) -> None:
    from milrun.executor import store
    from milrun.types import TensorType

    dtype = DTYPES[name]
    low, high = dtype.range
    stored = store(torch.tensor([value]), TensorType(dtype, (1,)), fp32=False)
    assert int(stored) == (value - low) % (high - low + 1) + low
