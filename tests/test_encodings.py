"""Each encoding, decoded by formula, is as near to the weight as its bits allow, and not worse than coremltools'."""

import math

import numpy as np
import pytest
from coremltools.optimize.coreml._quantization_passes import palettize_weights

import milrun
from pipeline import encodings, kmeans, params
from pipeline.assemble import assemble
from pipeline.errors import PipelineError
from pipeline.params import Scheme
from pipeline.trace import trace

SHAPE = (32, 64)


@pytest.fixture
def weight():
    rng = np.random.default_rng(1)
    return (rng.standard_t(4, size=SHAPE) * 0.05).astype(np.float32)


def encode(scheme, weight, target="iOS18", rows=16):
    """The stored arrays of a weight that is read in blocks, each filled to the byte."""

    def read(multiple):
        step = max(rows // multiple, 1) * multiple
        return (weight[i : i + step] for i in range(0, len(weight), step))

    encoding = encodings.make(scheme, target)
    planned = encodings.blobs(encoding, "w", weight.shape)
    made = dict.fromkeys(planned, b"")
    for argument, data in encoding.stream("w", read):
        made[argument] += data
    assert {a: len(d) for a, d in made.items()} == {a: b.bytes for a, b in planned.items()}
    return made


def unpack(data, bits, shape, *, signed):
    each = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[: math.prod(shape) * bits]
    integers = each.reshape(-1, bits) @ (1 << np.arange(bits))
    return (integers - (integers >> (bits - 1) << bits) * signed).reshape(shape)


def decode(scheme, made, shape=SHAPE):
    """The values that the stored arrays stand for, by the operation's formula."""
    if scheme.scheme == "palette":
        tables = np.frombuffer(made["lut"], np.float16).reshape(-1, 2**scheme.bits).astype(np.float32)
        group = np.arange(shape[0]) // (scheme.group or shape[0])
        return tables[group[:, None], unpack(made["indices"], scheme.bits, shape, signed=False)]
    width = scheme.block or shape[1]
    each = (shape[0], shape[1] // width)
    scale = np.frombuffer(made["scale"], np.float16).reshape(each).astype(np.float32)
    offset = unpack(made["offset"], scheme.bits, each, signed=True) if scheme.affine else np.zeros(each)
    data = unpack(made.get("data", made.get("quantized_data")), scheme.bits, shape, signed=True)
    return scale.repeat(width, 1) * (data - offset.repeat(width, 1))


@pytest.mark.parametrize(
    ("scheme", "least"),
    [
        (Scheme("linear", 8), 39.0),
        (Scheme("linear", 8, affine=True), 41.5),
        (Scheme("linear", 8, block=16), 43.5),
        (Scheme("linear", 4, block=16), 18.5),
        (Scheme("linear", 4, block=16, affine=True), 21.5),
        (Scheme("palette", 4), 17.0),
        (Scheme("palette", 4, group=8), 19.0),
        (Scheme("palette", 6), 31.0),
        (Scheme("palette", 6, group=4), 38.0),
        (Scheme("palette", 8), 46.5),
    ],
    ids=lambda value: str(value) if isinstance(value, float) else f"{value.scheme}{value.bits}",
)
def test_signal_to_noise_in_decibels(weight, scheme, least):
    """Roughly 6 dB a bit; the bounds are what a correct encoding of these heavy-tailed values clears by about 1 dB."""
    decoded = decode(scheme, encode(scheme, weight))
    ratio = 10 * np.log10(np.square(weight).sum() / np.square(decoded - weight).sum())

    assert least <= ratio < least + 2


def test_clipping_beats_the_largest_magnitude(weight):
    scheme = Scheme("linear", 4, block=32)
    decoded = decode(scheme, encode(scheme, weight))
    blocks = weight.reshape(32, 2, 32)
    scale = np.abs(blocks).max(2, keepdims=True) / 7
    plain = (np.rint(blocks / scale) * scale).reshape(SHAPE)

    assert np.square(decoded - weight).sum() < 0.95 * np.square(plain - weight).sum()


@pytest.mark.parametrize("entries", [2, 16, 64])
def test_palettes_are_not_worse_than_coremltools(weight, entries):
    """coremltools bundles a k-means that is exact on large groups; its squared error is the bar."""
    groups = weight.reshape(4, 8, 64).astype(np.float16)
    tables = kmeans.tables(groups, entries)
    indices = kmeans.assign(groups, tables)
    decoded = np.take_along_axis(tables, indices.reshape(4, -1).astype(int), 1).reshape(groups.shape)
    theirs = 0.0
    for group in groups:
        found = palettize_weights.blockwise_compress(
            group.reshape(1, -1), "KMEANS", int(math.log2(entries)), [0, 0]
        )
        table, index = found.lut.reshape(-1), found.indices.reshape(-1)
        theirs += np.square(table[index].astype(np.float64) - group.reshape(-1)).sum()

    assert np.square(decoded.astype(np.float64) - groups).sum() <= theirs * (1 + 1e-6)


def test_a_table_for_few_values_is_found_by_trying_all():
    """Every way to cut 9 weighted values into 3 intervals, against the dynamic programme."""
    rng = np.random.default_rng(3)
    values = np.sort(rng.normal(size=9)).astype(np.float16).astype(np.float64)
    importance = rng.uniform(0.1, 4, size=9)

    def error(cuts):
        spans = [slice(a, b) for a, b in zip((0, *cuts), (*cuts, 9), strict=True)]
        means = [np.average(values[s], weights=importance[s]) for s in spans]
        return sum((importance[s] * (values[s] - m) ** 2).sum() for s, m in zip(spans, means, strict=True))

    least = min(error((a, b)) for a in range(1, 8) for b in range(a + 1, 9))
    (table,) = kmeans.tables(values.astype(np.float16)[None, None], 3, importance).astype(np.float64)
    nearest = np.square(values[:, None] - table).min(1)

    assert (importance * nearest).sum() == pytest.approx(least, rel=2e-3)


def test_one_table_a_tensor_does_not_depend_on_the_blocks_it_is_read_in(weight):
    scheme = Scheme("palette", 4)

    assert encode(scheme, weight, rows=8) == encode(scheme, weight, rows=32)


@pytest.mark.parametrize("value", [0.0, 0.25, -0.75])
@pytest.mark.parametrize(
    "scheme",
    [
        Scheme("linear", 8),
        Scheme("linear", 8, affine=True),
        Scheme("linear", 4, block=16),
        Scheme("linear", 4, block=16, affine=True),
        Scheme("palette", 4),
        Scheme("palette", 6, group=8),
    ],
    ids=str,
)
def test_a_constant_weight_is_kept(scheme, value):
    weight = np.full(SHAPE, value, np.float32)

    assert decode(scheme, encode(scheme, weight)) == pytest.approx(weight, rel=1e-3)


def test_fewer_distinct_values_than_entries_are_exact():
    weight = np.random.default_rng(5).choice([-0.0, 0.0, 0.5, -3.0, 60000.0], size=SHAPE).astype(np.float32)

    for scheme in (Scheme("palette", 8), Scheme("palette", 4, group=8)):
        assert (decode(scheme, encode(scheme, weight)) == weight.astype(np.float16)).all()


@pytest.mark.parametrize("scheme", [Scheme(), Scheme("linear", 8), Scheme("palette", 4)], ids=str)
def test_what_fp16_cannot_hold_names_the_tensor(weight, scheme):
    weight[3, 4] = 70000.0
    with pytest.raises(PipelineError, match=r"'w'.*70000.*65504"):
        encode(scheme, weight)


@pytest.mark.parametrize(
    ("scheme", "target"),
    [
        (Scheme("linear", 4, block=32), "iOS16"),
        (Scheme("linear", 8, block=32), "iOS17"),
        (Scheme("linear", 4), "iOS17"),
        (Scheme("palette", 4, group=8), "iOS16"),
    ],
    ids=str,
)
def test_a_scheme_that_the_target_cannot_hold_is_refused(scheme, target):
    with pytest.raises(PipelineError, match=f"need target iOS18, the model's is {target}; (use|leave out)"):
        encodings.make(scheme, target)


@pytest.mark.parametrize(
    ("scheme", "shape"),
    [
        (Scheme("palette", 4, group=8), (12, 32)),
        (Scheme("linear", 4, block=32), (16, 48)),
        (Scheme("linear", 8), (16,)),
    ],
    ids=str,
)
def test_a_shape_that_a_scheme_cannot_hold_names_the_weight(scheme, shape):
    with pytest.raises(PipelineError, match=r"'layers.0.up.weight'.*(do not divide|only matrices)"):
        encodings.blobs(encodings.make(scheme, "iOS18"), "layers.0.up.weight", shape)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"mpl": {"scheme": "linear", "bits": 8}}, "'mpl' is no kind of weight"),
        ({"linear": {"scheme": "linear", "bits": 3}}, r"linear with 3 bits; allowed: \[4, 8\]"),
        ({"linear": {"scheme": "palette", "bits": 4, "block": 32}}, "palette takes no 'block'"),
        ({"linear": {"scheme": "vector"}}, "'vector' is not one of float16, linear, palette"),
        (
            {"layers": {"layers.0": {"scheme": "palette", "bits": 4, "group": -1}}},
            r"layers.layers.0: group -1",
        ),
        ({"linear": {"scheme": "linear", "bits": 8, "colour": 1}}, "unknown setting 'colour'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(weights, said):
    with pytest.raises(PipelineError, match=said):
        params.variant("odd", {"variants": {"odd": {"weights": weights, "gates": {"min_cosine": 0.9}}}})


def test_kinds_and_single_weights_have_schemes_of_their_own():
    weights = {
        "linear": {"scheme": "linear", "bits": 8},
        "mlp": {"scheme": "palette", "bits": 4, "group": 8},
        "layers": {"layers.1": {}, "layers.1.output": {"scheme": "palette", "bits": 6}},
    }
    entry = {"weights": weights, "gates": {"min_cosine": 0.9}}
    found = params.variant("some", {"variants": {"some": entry}})

    assert found.scheme("layers.0.query.weight", "linear") == Scheme("linear", 8)
    assert found.scheme("layers.10.output.weight", "linear") == Scheme("palette", 4, group=8)
    assert found.scheme("layers.1.query.weight", "linear") == Scheme()
    assert found.scheme("layers.1.output.weight", "linear") == Scheme("palette", 6)
    assert found.scheme("dense.2_Dense.weight", "linear") == Scheme("linear", 8)
    assert found.scheme("layers.0.output.bias", "other") == Scheme()
    assert found.scheme("embeddings.word_embeddings.weight", "embedding") == Scheme()
    with pytest.raises(PipelineError, match=r"no weight's name begins with 'layers\.1'"):
        found.check_layers(["layers.0.query.weight", "layers.10.query.weight"])


@pytest.mark.parametrize("target", ["iOS16", "iOS17", "iOS18"])
def test_each_target_runs_what_it_can_hold(tiny_checkpoint, tmp_path, target):
    """Whole programs of one tiny model: the quantized one answers nearly as the FP16 one, and is smaller."""
    entry = params.Model("tiny", "", None, None, (16,), target=target)
    trace(entry, tiny_checkpoint(), tmp_path / "traced")
    inputs = {"input_ids": np.arange(16)[None] + 1000, "attention_mask": np.ones((1, 16))}
    inputs = {name: values.astype(np.int32) for name, values in inputs.items()}
    gates = params.Gates(0.9)
    schemes = {
        "fp16": {},
        "int8": {"linear": Scheme("linear", 8), "embedding": Scheme("linear", 8, affine=True)},
        "palette": {"linear": Scheme("palette", 6), "embedding": Scheme("palette", 8)},
    }
    if target == "iOS18":
        schemes["groups"] = {
            "attention": Scheme("palette", 6, group=4),
            "mlp": Scheme("linear", 4, block=8, affine=True),
        }
    vectors, sizes = {}, {}
    for name, weights in schemes.items():
        variant = params.Variant(name, weights, {}, gates)
        assemble(tmp_path / "traced", tiny_checkpoint(), variant, tmp_path / name, {"corembed.summary": "t"})
        package = tmp_path / name / f"{name}.mlpackage"
        vectors[name] = milrun.load(package).predict(inputs)["embedding"][0]
        sizes[name] = (package / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size

    least = {"fp16": 0.9999, "int8": 0.999, "palette": 0.99, "groups": 0.95}
    for name, vector in vectors.items():
        assert vector @ vectors["fp16"] >= least[name]
        assert name == "fp16" or sizes[name] < sizes["fp16"]
    assert not (tmp_path / f".tensors-{name}").exists()
