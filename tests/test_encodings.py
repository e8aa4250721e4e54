"""Each encoding, decoded by formula, is as near to the weight as its bits allow, and not worse than coremltools'."""

import numpy as np
import pytest
from coremltools.optimize.coreml._quantization_passes import palettize_weights

from pipeline import encodings
from pipeline.errors import PipelineError
from pipeline.kmeans import cluster
from pipeline.params import Scheme


@pytest.fixture
def weight():
    rng = np.random.default_rng(1)
    return (rng.standard_t(4, size=(32, 64)) * 0.05).astype(np.float32)


def test_int8_rows_err_by_at_most_half_a_step(weight):
    made = encodings.Linear(8, 0, "iOS18").encode("w", weight)
    integers = np.frombuffer(made["data"], np.int8).reshape(weight.shape)
    scale = np.frombuffer(made["scale"], np.float16).astype(np.float32).reshape(-1, 1)

    error = np.abs(integers * scale - weight)

    assert (error <= scale * 0.5 + np.abs(weight) * 2**-10).all()


def test_int4_blocks_have_a_scale_each(weight):
    made = encodings.Linear(4, 16, "iOS18").encode("w", weight)
    nibbles = np.unpackbits(np.frombuffer(made["data"], np.uint8), bitorder="little").reshape(-1, 4)
    unsigned = nibbles @ [1, 2, 4, 8]
    integers = np.where(unsigned > 7, unsigned - 16, unsigned).reshape(32, 4, 16)
    scale = np.frombuffer(made["scale"], np.float16).astype(np.float32).reshape(32, 4, 1)

    error = np.abs(integers * scale - weight.reshape(32, 4, 16))

    assert (error <= scale * 0.5 + 2**-10).all()


def test_palettes_are_not_worse_than_coremltools(weight):
    """Squared error of our tables against the optimal one-dimensional k-means that coremltools bundles."""
    groups = weight.reshape(4, -1).astype(np.float16)
    tables, indices = cluster(groups, 16)
    ours = np.square(np.take_along_axis(tables, indices.astype(int), 1).astype(np.float64) - groups).sum()
    theirs = 0.0
    for group in groups:
        found = palettize_weights.blockwise_compress(group.reshape(1, -1), "KMEANS", 4, [0, 0])
        table, index = found.lut.reshape(-1), found.indices.reshape(-1)
        theirs += np.square(table[index].astype(np.float64) - group).sum()

    assert ours <= theirs * 1.05


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_a_constant_weight_is_exact_in_every_scheme(value):
    weight = np.full((16, 32), value, np.float32)
    tables, indices = cluster(weight.astype(np.float16), 16)
    made = encodings.Linear(8, 0, "iOS18").encode("w", weight)
    decoded = np.frombuffer(made["data"], np.int8) * np.frombuffer(made["scale"], np.float16)[0].astype(
        np.float32
    )

    assert np.take_along_axis(tables, indices.astype(int), 1).astype(np.float32) == pytest.approx(value)
    assert decoded == pytest.approx(value, rel=1e-3)


def test_what_fp16_cannot_hold_names_the_tensor():
    with pytest.raises(PipelineError, match=r"'layers.0.up'.*70000.*65504"):
        encodings.to_float16("layers.0.up", np.array([1.0, 70000.0], np.float32))


@pytest.mark.parametrize(
    "scheme", [Scheme("linear", 4, block=32), Scheme("palette", 4, group=8), Scheme("linear", 8, block=32)]
)
def test_a_scheme_that_the_target_cannot_hold_is_refused(scheme):
    with pytest.raises(PipelineError, match="iOS18"):
        encodings.make(scheme, "iOS16")


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(PipelineError, match="do not divide"):
        encodings.make(Scheme("palette", 4, group=8), "iOS18").blobs((12, 32))
    with pytest.raises(PipelineError, match="do not divide"):
        encodings.make(Scheme("linear", 4, block=32), "iOS18").blobs((16, 48))
