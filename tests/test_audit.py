"""The weight audit: what is stored is the checkpoint's, or its tensor is named with the kind of fault."""

import shutil
import tracemalloc

import numpy as np
import pytest
from coremltools.proto import Model_pb2
from helpers import build_places
from safetensors.numpy import load_file, save_file

import milrun
from pipeline import params
from pipeline.audit import Tally, audit, audit_packages
from pipeline.bounds import nearest
from pipeline.convert import build
from pipeline.errors import PipelineError
from pipeline.places import Places

INT8 = {"scheme": "linear", "bits": 8}
SCHEMES = {
    "fp16": {},
    "int8": {"linear": INT8, "embedding": INT8},
    "affine": {"linear": INT8 | {"affine": True}, "embedding": INT8},
    "int4": {"linear": {"scheme": "linear", "bits": 4, "block": 16}, "embedding": INT8},
    "palette4": {"linear": {"scheme": "palette", "bits": 4, "group": 8}, "embedding": INT8},
    "whole": {"linear": {"scheme": "palette", "bits": 6}, "embedding": INT8},
    "calibrated": {
        "linear": {"scheme": "linear", "bits": 4, "block": 16, "calibrated": True},
        "embedding": INT8,
    },
}
NEAREST = [name for name in SCHEMES if name != "calibrated"]
TENSOR = "encoder.layer.1.attention.self.query.weight"


def variant(name):
    gates = {"min_cosine": 0.5}
    return params.variant(name, {"variants": {name: {"weights": SCHEMES[name], "gates": gates}}})


@pytest.fixture(scope="module")
def made(tiny_checkpoint, tmp_path_factory):
    return build_places(tiny_checkpoint(), tmp_path_factory.mktemp("audit") / "tiny", *map(variant, SCHEMES))


@pytest.fixture
def rebuilt(made, tmp_path):
    """Packages made of a changed checkpoint, beside the unchanged one."""
    entry, where = made

    def make(change, name="fp16"):
        other = Places(tmp_path / "other")
        shutil.copytree(where.checkpoint, other.checkpoint)
        shutil.copytree(where.traced, other.traced)
        shutil.copytree(where.calibration, other.calibration)
        shutil.copy(where.source, other.source)
        path = other.checkpoint / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        path.unlink()
        save_file(tensors, path)
        build(entry, variant(name), other)
        shutil.rmtree(other.checkpoint)
        shutil.copytree(where.checkpoint, other.checkpoint)
        return other

    return make


def problems(where, name="fp16"):
    return audit_packages(where, variant(name))[1]


@pytest.mark.parametrize("name", SCHEMES)
def test_every_value_of_a_sound_package_passes(made, name):
    _, where = made
    records, wrong = audit_packages(where, variant(name))
    stored = {t: v for t, v in load_file(where.checkpoint / "model.safetensors").items() if "pooler" not in t}
    stored = {t: v for t, v in stored.items() if v.dtype == np.float32}

    assert wrong == []
    assert {r["tensor"] for r in records} == set(stored)
    assert sum(r["values"] for r in records) == sum(v.size for v in stored.values())


def perturb(tensors):
    noise = np.random.default_rng(0).normal(size=tensors[TENSOR].shape)
    tensors[TENSOR] = (tensors[TENSOR] * (1 + 0.01 * noise)).astype(np.float32)


def swap(tensors):
    other = TENSOR.replace("query", "key")
    tensors[TENSOR], tensors[other] = tensors[other], tensors[TENSOR]


def replace(tensors):
    tensors[TENSOR] = np.random.default_rng(1).normal(size=tensors[TENSOR].shape).astype(np.float32)


@pytest.mark.parametrize("name", NEAREST)
def test_one_layer_perturbed_by_a_hundredth_is_named(rebuilt, name):
    (wrong,) = problems(rebuilt(perturb, name), name)

    assert repr(TENSOR) in wrong
    assert "another state of the model" in wrong


def test_compensated_rounding_hides_a_hundredth_and_no_other_tensor(rebuilt, tmp_path):
    """Its errors are ten times what the perturbation is; the same checkpoint's FP16 package names the tensor."""
    assert problems(rebuilt(perturb, "calibrated"), "calibrated") == []
    shutil.rmtree(tmp_path / "other")
    wrong = problems(rebuilt(swap, "calibrated"), "calibrated")
    assert "'encoder.layer.1.attention.self.key.weight': two tensors were swapped" in wrong[0]


def test_swapped_tensors_are_named_with_each_other(rebuilt):
    wrong = problems(rebuilt(swap))

    assert len(wrong) == 2
    assert repr(TENSOR) in wrong[0]
    assert "'encoder.layer.1.attention.self.key.weight': two tensors were swapped" in wrong[0]


def test_another_models_tensor_is_told_from_a_stale_one(rebuilt):
    (wrong,) = problems(rebuilt(replace))

    assert "nothing like the checkpoint's" in wrong


@pytest.fixture
def copied(made, tmp_path):
    """The sound packages, to be damaged."""
    _, where = made
    other = Places(tmp_path / "copied")
    shutil.copytree(where.root, other.root)
    return other


@pytest.mark.parametrize("name", NEAREST)
def test_one_flipped_bit_names_tensor_and_row(copied, name):
    package = copied.packages(name) / f"{name}.mlpackage"
    plan = milrun.load(package).function("length_16")
    table = next(w for w in plan.initial if getattr(w, "shape", ()) == (30522, 32) and w.type.dtype.is_float)
    blob = (table.sources[0] if name != "fp16" else table).blob
    path = package / "Data/com.apple.CoreML/weights/weight.bin"
    data = bytearray(path.read_bytes())
    data[blob.offset + 40 * blob.nbytes // 30522 + 1] ^= 0x40
    path.write_bytes(data)
    (wrong,) = problems(copied, name)

    assert "'embeddings.word_embeddings.weight'" in wrong
    assert "only row 40 of 30522 differ: damaged bytes" in wrong


def test_a_changed_operation_is_named(copied):
    """The mask's -1e4 becomes -1: padding would be seen by every text."""
    path = copied.packages("fp16") / "fp16.mlpackage/Data/com.apple.CoreML/model.mlmodel"
    spec = Model_pb2.Model()
    spec.ParseFromString(path.read_bytes())
    (block,) = spec.mlProgram.functions["length_16"].block_specializations.values()
    changed = []
    for operation in block.operations:
        value = operation.attributes["val"].immediateValue.tensor if operation.type == "const" else None
        if value is not None and np.frombuffer(value.bytes.values, np.float16).tolist() == [-10000.0]:
            value.bytes.values = np.array([-1], np.float16).tobytes()
            changed.append(operation.outputs[0].name)
    path.write_bytes(spec.SerializeToString())

    assert changed
    assert problems(copied) == [
        f"fp16.mlpackage: operation {name!r} of length_16 is not the one that was traced (const; the package's is const)"
        for name in changed
    ]


def test_the_stage_writes_its_report_and_fails(rebuilt, tmp_path):
    report = tmp_path / "audit.json"

    with pytest.raises(PipelineError, match=r"tiny fp16: .*query\.weight"):
        audit(rebuilt(perturb), "tiny", variant("fp16"), report)
    assert '"passed": false' in report.read_text()


def test_compensated_rounding_may_move_values_and_not_rows(made):
    """Each value may go one entry further; a row of another tensor is still far outside."""
    _, where = made
    model = milrun.load(where.packages("int4") / "int4.mlpackage")
    plan = model.function("length_16")
    weight = next(w for w in plan.initial if getattr(w, "encoding", "") == "int4 per-block")
    rows = slice(0, weight.shape[0])
    decoded = weight.decode(rows).float().numpy()
    best, gap = nearest(weight, decoded, rows)
    np.testing.assert_allclose(best, decoded, rtol=2e-3)

    moved = decoded + 0.9 * gap  # what error feedback asked for, before it was rounded
    best, gap = nearest(weight, moved, rows)
    tally, strict = Tally("compensated"), Tally("nearest")
    tally.add(0, decoded, moved, best, gap)
    strict.add(0, decoded, moved, best, gap)
    assert not strict.passed
    assert tally.outside == 0

    tally = Tally("compensated")
    tally.add(0, decoded, decoded[::-1], *nearest(weight, decoded[::-1].copy(), rows))
    assert not tally.passed


def test_memory_stays_at_a_few_blocks_of_rows(made, monkeypatch):
    """The table of 30,522 rows is read in pieces: halving the block lowers the peak."""
    from pipeline import checkpoint  # noqa: PLC0415

    _, where = made
    peaks = []
    for block in (4 << 20, 64 << 10):
        monkeypatch.setattr(checkpoint, "BLOCK", block)
        tracemalloc.start()
        audit_packages(where, variant("fp16"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    assert peaks[1] < peaks[0] / 2
