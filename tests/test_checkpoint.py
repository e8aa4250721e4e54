"""A damaged checkpoint is named, with what to do, before anything is written."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.checkpoint import Checkpoint, shards
from pipeline.errors import PipelineError


@pytest.fixture
def folder(tmp_path):
    tensors = {
        "a": torch.randn(100, 7, dtype=torch.bfloat16),
        "b": torch.randn(5, 3),
        "c": torch.randn(4).half(),
        "i": torch.ones(3, dtype=torch.int32),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path, tensors


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_rows_equal_torch(folder, name, monkeypatch):
    """In blocks of a few rows, every value as torch reads it."""
    monkeypatch.setattr("pipeline.checkpoint.BLOCK", 4 * 7 * 16)
    path, tensors = folder
    checkpoint = Checkpoint(path)
    found = np.concatenate(
        list(checkpoint.rows(checkpoint.find(name, tuple(tensors[name].shape)), multiple=8))
    )

    np.testing.assert_array_equal(found, tensors[name].float().numpy())


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_halves_equal_torch(folder, name, monkeypatch):
    monkeypatch.setattr("pipeline.checkpoint.HALVES", 64)
    path, tensors = folder
    checkpoint = Checkpoint(path)
    found = np.concatenate(list(checkpoint.halves(checkpoint.find(name, tuple(tensors[name].shape)))))

    np.testing.assert_array_equal(found.view(np.float16), tensors[name].float().half().numpy().ravel())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (7e4, "'w' holds 70144, beyond FP16's largest"),
        (-1e30, "beyond FP16's largest"),
        (float("-inf"), "'w' holds NaN or infinite"),
        (float("nan"), "'w' holds NaN or infinite"),
    ],
)
def test_halves_refuse_what_fp16_cannot_hold(tmp_path, value, message):
    weight = torch.zeros(40, 3, dtype=torch.bfloat16)
    weight[30, 1] = value
    save_file({"w": weight}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)

    with pytest.raises(PipelineError, match=message):
        list(checkpoint.halves(checkpoint.find("w", (40, 3))))


def test_wrong_shape_type_and_name(folder):
    checkpoint = Checkpoint(folder[0])
    for name, shape, message in [("a", (7, 100), "shape"), ("i", (3,), "I32"), ("z", (1,), "no tensor 'z'")]:
        with pytest.raises(PipelineError, match=message):
            checkpoint.find(name, shape)


def test_a_file_cut_short_is_named(folder):
    path = folder[0] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])

    with pytest.raises(PipelineError, match=r"model\.safetensors: cut short: tensor '.' ends"):
        Checkpoint(folder[0])


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, b"\x08\x00\x00\x00\x00\x00\x00\x00notjson!"])
def test_not_a_safetensors_file(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)

    with pytest.raises(PipelineError, match="download it again"):
        Checkpoint(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(PipelineError, match=r"model-00001-of-00002\.safetensors: this shard"):
        shards(tmp_path)


def test_a_shard_outside_the_folder_is_refused(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../evil"}}))

    with pytest.raises(PipelineError, match="not a plain file name"):
        shards(tmp_path)


def test_a_pickle_is_refused_with_the_reason(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")

    with pytest.raises(PipelineError, match="a pickle, which can run code"):
        shards(tmp_path)


def test_nan_is_named(tmp_path):
    save_file({"w": torch.tensor([[1.0, float("nan")]])}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)

    with pytest.raises(PipelineError, match="'w' holds NaN"):
        list(checkpoint.rows(checkpoint.find("w", (1, 2))))
