"""Corrupt packages: a clear error or a result, never a crash, a hang or a huge allocation."""

import random
import resource
import shutil
import struct
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
from conftest import Build
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types

import milrun

MUTANTS = 900  # of each of the seeds: 4,500 in all


def dense(x: Any) -> Any:
    weight = np.arange(256, dtype=np.float32).reshape(16, 16) / 256
    y = mb.linear(x=x, weight=weight)
    y = mb.softmax(x=mb.reshape(x=y, shape=[1, 4, 4]), axis=-1)
    return mb.transpose(x=mb.tile(x=y, reps=[1, 2, 1]), perm=[0, 2, 1], name="y")


def quantized(x: Any) -> Any:
    data = np.arange(256).reshape(16, 16) % 15 - 7
    weight = mb.constexpr_blockwise_shift_scale(
        data=data.astype(types.np_int4_dtype), scale=np.full((16, 4), 0.1, np.float32)
    )
    indices = (np.arange(256) % 4).reshape(16, 16).astype(types.np_uint2_dtype)
    other = mb.constexpr_lut_to_dense(indices=indices, lut=np.arange(8, dtype=np.float32).reshape(2, 1, 4, 1))
    return mb.add(x=mb.linear(x=x, weight=weight), y=mb.matmul(x=x, y=other), name="y")


def looping(x: Any) -> Any:
    def condition(i: Any, _a: Any) -> Any:
        return mb.less(x=i, y=np.float32(3))

    def body(i: Any, a: Any) -> Any:
        return mb.add(x=i, y=np.float32(1)), mb.add(x=a, y=np.float32(2))

    _, total = mb.while_loop(_cond=condition, _body=body, loop_vars=(mb.const(val=np.float32(0)), x))
    kept = mb.cond(
        pred=mb.greater(x=mb.reduce_sum(x=total), y=np.float32(0)),
        _true_fn=lambda: mb.relu(x=total),
        _false_fn=lambda: mb.sub(x=total, y=np.float32(1)),
    )
    return mb.pad(x=kept, pad=[0, 0, 1, 2], mode="constant", name="y")


def sparse(x: Any) -> Any:
    mask = (np.arange(256) % 3 == 0).reshape(16, 16).astype(types.np_uint1_dtype)
    count = int(mask.sum())
    grown, values = mb.constexpr_lut_to_sparse(
        indices_mask=mask, indices_nonzero_data=(np.arange(count) % 4).astype(types.np_uint2_dtype),
        lut=np.arange(4, dtype=np.float32).reshape(1, 1, 4, 1),
    )  # fmt: skip
    weight = mb.constexpr_sparse_to_dense(nonzero_data=values, mask=grown)
    other_mask, scaled = mb.constexpr_sparse_blockwise_shift_scale(
        data_mask=mask,
        nonzero_data=(np.arange(count) % 100).astype(np.int8),
        scale=np.full((4, 1), 0.1, np.float32),
    )
    other = mb.constexpr_sparse_to_dense(nonzero_data=scaled, mask=other_mask)
    return mb.add(x=mb.linear(x=x, weight=weight), y=mb.linear(x=x, weight=other), name="y")


def indexing(x: Any) -> Any:
    flat = mb.reshape(x=x, shape=[4, 4])
    rows = mb.gather(x=flat, indices=np.array([3, 0, 1], np.int32), axis=0)
    values, order = mb.topk(x=rows, k=2, axis=1)
    placed = mb.scatter_nd(
        data=flat,
        indices=np.array([[0], [2]], np.int32),
        updates=mb.slice_by_size(x=rows, begin=[0, 0], size=[2, 4]),
    )
    hot = mb.one_hot(
        indices=mb.slice_by_index(x=order, begin=[0, 0], end=[3, 1], squeeze_mask=[False, True]),
        one_hot_vector_size=4,
    )
    window = mb.slice_by_index(x=placed, begin=[-1, 0], end=[-4, 4], stride=[-1, 2])
    image = mb.upsample_nearest_neighbor(
        x=mb.reshape(x=placed, shape=[1, 1, 4, 4]), scale_factor_height=2, scale_factor_width=2
    )
    pooled = mb.max_pool(x=image, kernel_sizes=[3, 3], strides=[2, 2], pad_type="same")
    parts = [mb.reshape(x=mb.cast(x=v, dtype="fp32"), shape=[-1]) for v in (values, hot, window, pooled)]
    return mb.concat(values=parts, axis=0, name="y")


SEEDS = {"dense": dense, "quantized": quantized, "looping": looping, "sparse": sparse, "indexing": indexing}


def attempt(path: Path) -> str:
    """Load and run; the outcome's name. Anything but a MilrunError escapes and fails the test."""
    try:
        model = milrun.load(path)
        model.predict({"x": np.ones((1, 16), np.float32)})
    except milrun.MilrunError as error:
        return type(error).__name__ if str(error) else "an error without a message"
    return "ran"


def mutate(data: bytes, generator: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(generator.choice([1, 1, 2, 4, 16])):
        kind, at = generator.randrange(5), generator.randrange(len(out))
        if kind == 0:
            out[at] ^= 1 << generator.randrange(8)
        elif kind == 1:
            out[at] = generator.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif kind == 2:
            del out[at : at + generator.randrange(1, 9)]
        elif kind == 3:
            out[at:at] = out[generator.randrange(len(out)) :][: generator.randrange(1, 33)]
        else:
            out[at : at + 8] = struct.pack("<Q", generator.choice([0, 1 << 31, 1 << 40, (1 << 64) - 1]))
        if not out:
            out = bytearray(1)
    return bytes(out)


@pytest.fixture
def bounded_memory() -> Any:
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("bounded_memory")
@pytest.mark.parametrize("seed", sorted(SEEDS))
def test_mutated_packages_give_a_clear_error_or_a_result(
    build: Build, tmp_path: Path, seed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from milrun import executor

    monkeypatch.setattr(executor, "MAX_ITERATIONS", 1000)
    original = build(SEEDS[seed], x=((1, 16), "fp32"))
    assert attempt(original) == "ran"
    spec = next(original.rglob("model.mlmodel")).read_bytes()
    weights = list(original.rglob("weight.bin"))
    folder = tmp_path / "mutant.mlpackage"
    shutil.copytree(original, folder)
    target, weight_target = next(folder.rglob("model.mlmodel")), list(folder.rglob("weight.bin"))
    generator = random.Random(seed)  # noqa: S311  # reproducible, not secret
    outcomes: dict[str, int] = {}
    for number in range(MUTANTS):
        if weights and number % 3 == 0:
            target.write_bytes(spec)
            weight_target[0].write_bytes(mutate(weights[0].read_bytes(), generator))
        else:
            target.write_bytes(mutate(spec, generator))
            if weights:
                weight_target[0].write_bytes(weights[0].read_bytes())
        outcome = attempt(folder)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert outcomes.get("PackageError", 0) > MUTANTS / 10


def edit(path: Path, change: Any) -> None:
    spec = ct.utils.load_spec(str(path))
    change(spec.mlProgram.functions["main"].block_specializations["CoreML8"], spec)
    next(path.rglob("model.mlmodel")).write_bytes(spec.SerializeToString())


def dangling(block: Any, _spec: Any) -> None:
    block.operations[-1].inputs["x"].arguments[0].name = "nowhere"


def cyclic(block: Any, _spec: Any) -> None:
    block.operations[-1].inputs["x"].arguments[0].name = block.operations[-1].outputs[0].name


def huge(block: Any, _spec: Any) -> None:
    block.operations[-1].outputs[0].type.tensorType.dimensions[0].constant.size = 1 << 38


def offset_outside(block: Any, _spec: Any) -> None:
    for operation in (o for o in block.operations if o.type == "const"):
        value = operation.attributes["val"]
        if value.WhichOneof("value") == "blobFileValue":
            value.blobFileValue.offset = 1 << 40


def outside_the_package(block: Any, _spec: Any) -> None:
    for operation in (o for o in block.operations if o.type == "const"):
        value = operation.attributes["val"]
        if value.WhichOneof("value") == "blobFileValue":
            value.blobFileValue.fileName = "@model_path/../../../../etc/passwd"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dangling, "nowhere defined"),
        (cyclic, "before it is defined"),
        (huge, "more than"),
        (offset_outside, "no blob at offset"),
        (outside_the_package, "outside the package"),
    ],
)
def test_what_is_wrong_is_said_when_loading(build: Build, change: Any, message: str) -> None:
    path = build(dense, x=((1, 16), "fp32"))
    edit(path, change)
    with pytest.raises(milrun.PackageError, match=message):
        milrun.load(path)


def test_truncated_weights_are_refused(build: Build) -> None:
    path = build(dense, x=((1, 16), "fp32"))
    weights = next(path.rglob("weight.bin"))
    for size in (0, 10, 64, 100, weights.stat().st_size - 1):
        weights.write_bytes(weights.read_bytes()[:size])
        with pytest.raises(milrun.PackageError, match=r"weight\.bin"):
            milrun.load(path)


@pytest.mark.parametrize(
    "manifest",
    [None, "", "[]", "{}", '{"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": "../../x"}}}'],
)
def test_a_missing_or_wrong_manifest_is_refused(build: Build, manifest: str | None) -> None:
    path = build(dense, x=((1, 16), "fp32"))
    if manifest is None:
        (path / "Manifest.json").unlink()
    else:
        (path / "Manifest.json").write_text(manifest)
    with pytest.raises(milrun.PackageError, match=r"Manifest\.json"):
        milrun.load(path)
