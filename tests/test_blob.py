"""`weight.bin` is byte for byte what coremltools' own writer makes."""

import numpy as np
import pytest
from coremltools.libmilstoragepython import _BlobStorageWriter

from pipeline.blob import Blob, Writer
from pipeline.encodings import pack


def test_bytes_equal_coremltools_writer(tmp_path):
    """Every type that a package of ours stores, in one file, in pieces."""
    rng = np.random.default_rng(0)
    half = rng.normal(size=(7, 5)).astype(np.float16)
    single = rng.normal(size=(3,)).astype(np.float32)
    signed = rng.integers(-127, 128, (9, 3)).astype(np.int8)
    nibbles = rng.integers(0, 16, (8, 4)).astype(np.uint8)
    small = rng.integers(-7, 8, (5, 3)).astype(np.int8)
    sixes = rng.integers(0, 64, (8, 5)).astype(np.uint8)
    theirs = _BlobStorageWriter(str(tmp_path / "theirs.bin"))
    offsets = [
        theirs.write_fp16_data(half.ravel().view(np.uint16)),
        theirs.write_float_data(single),
        theirs.write_int8_data(signed.ravel()),
        theirs.write_uint4_data(nibbles.ravel()),
        theirs.write_int4_data(small.ravel()),
        theirs.write_uint6_data(sixes.ravel()),
    ]
    del theirs
    blobs = [
        Blob("float16", (7, 5)),
        Blob("float32", (3,)),
        Blob("int8", (9, 3)),
        Blob("uint4", (8, 4)),
        Blob("int4", (5, 3)),
        Blob("uint6", (8, 5)),
    ]
    with Writer(tmp_path / "ours.bin", blobs) as ours:
        for index, data in enumerate(
            [
                half.tobytes(),
                single.tobytes(),
                signed.tobytes(),
                pack(nibbles, 4),
                pack(small.view(np.uint8) & 15, 4),
                pack(sixes, 6),
            ]
        ):
            ours.append(index, data[:3])
            ours.append(index, data[3:])

    assert ours.offsets == offsets
    assert (tmp_path / "ours.bin").read_bytes() == (tmp_path / "theirs.bin").read_bytes()


def test_a_blob_that_is_not_filled_is_an_error(tmp_path):
    with (
        pytest.raises(ValueError, match="not filled"),
        Writer(tmp_path / "w.bin", [Blob("int8", (4,))]) as writer,
    ):
        writer.append(0, b"abc")


def test_more_than_a_blob_holds_is_an_error(tmp_path):
    with (
        pytest.raises(ValueError, match="given more"),
        Writer(tmp_path / "w.bin", [Blob("int8", (4,))]) as writer,
    ):
        writer.append(0, b"abcde")
