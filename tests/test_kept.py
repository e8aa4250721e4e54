"""An interrupted quantization goes on where it was: tensors that are finished are not encoded again."""

import os

import pytest

from pipeline.checkpoint import Checkpoint
from pipeline.kept import Kept
from pipeline.params import Scheme


def pieces(stop=None):
    for number in range(6):
        if number == stop:
            raise KeyboardInterrupt
        yield ("lut" if number % 2 else "indices"), bytes([number]) * 1000


def joined(found):
    arrays = {}
    for argument, data in found:
        arrays[argument] = arrays.get(argument, b"") + data
    return arrays


def test_a_finished_tensor_is_read_and_not_made_again(tmp_path):
    kept = Kept(tmp_path / "kept")
    first = joined(kept.through("key", pieces()))
    second = joined(kept.through("key", pieces(stop=0)))  # would raise if it were asked for anything

    assert first == second == joined(pieces())
    kept.clear()
    assert not (tmp_path / "kept").exists()


def test_a_tensor_that_was_interrupted_is_made_from_its_start(tmp_path):
    kept = Kept(tmp_path / "kept")
    with pytest.raises(KeyboardInterrupt):
        joined(kept.through("key", pieces(stop=4)))

    assert joined(kept.through("key", pieces())) == joined(pieces())


def test_other_weights_schemes_or_moments_are_other_keys(tiny_checkpoint, tmp_path):
    kept = Kept(tmp_path)
    tensors = list(Checkpoint(tiny_checkpoint()).tensors.values())
    path = tmp_path / "model.safetensors"
    path.write_bytes(tensors[0].file.read_bytes())
    (first, second, *_) = Checkpoint(tmp_path).tensors.values()
    scheme = Scheme("palette", 4)
    keys = [
        kept.key(first, scheme),
        kept.key(second, scheme),
        kept.key(first, Scheme("palette", 4, calibrated=True)),
        kept.key(first, scheme, "moments"),
    ]
    os.utime(path, ns=(0, 1))
    keys.append(kept.key(first, scheme))

    assert len(set(keys)) == len(keys)
    assert kept.key(first, scheme) == keys[-1]
