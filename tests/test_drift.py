"""Drift: the layer and the operation where numbers go wrong are named, with what FP16 could not hold."""

import json

import numpy as np
import pytest
from helpers import build_places
from safetensors.numpy import load_file, save_file

from pipeline import convert, drift, invariance, params, runner, stored
from pipeline.files import read_json
from pipeline.reference import reference

FP16 = params.variant("fp16", {"variants": {"fp16": {"gates": {"min_cosine": 0.9}}}})


def first_runner(where):
    trace = json.loads((where.packages("fp16") / "packages.json").read_text())
    return next(iter(runner.runners(where, "fp16", trace, read_json(where.reference_record))))


@pytest.fixture(scope="module", params=["bert", "qwen3"])
def made(request, tiny_checkpoint, tmp_path_factory):
    source = tiny_checkpoint("pooling_mode_lasttoken" if request.param == "qwen3" else "pooling_mode_mean_tokens",
                             model_type=request.param)  # fmt: skip
    entry, where = build_places(source, tmp_path_factory.mktemp("drift") / "tiny", FP16, parity_texts=40)
    reference(entry, where.checkpoint, where.reference)
    return entry, where


def test_texts_in_batches_are_the_same_as_one_by_one(tiny_checkpoint, tmp_path):
    """Seven texts in functions of one and of four, in two buckets."""
    _, where = build_places(tiny_checkpoint(), tmp_path / "tiny", FP16, parity_texts=40, batches=(1, 4))
    reference(
        params.Model("tiny", "", None, None, (16, 64), parity_texts=40), where.checkpoint, where.reference
    )
    made = first_runner(where)
    texts = ["", "a", "two words", "importance", "word " * 30, "x", "word " * 40]
    tokens = made.tokenizer.encode(texts)
    together = made.embed_all(tokens, "test")

    assert {f.batch for f in made.functions} == {1, 4}
    np.testing.assert_allclose(together, [made.embed(t) for t in tokens], atol=2e-3)
    assert invariance.batches(made, tokens) > 0.99999


def test_a_sound_package_follows_the_original_at_every_layer(made):
    """A decoder has a norm after its last layer; BERT has none, and then there is no state of it."""
    _, where = made
    found = drift.drift(first_runner(where), stored.read(where.reference).probes)
    names = [layer["layer"] for layer in found["against_original"]]
    decoder = read_json(where.checkpoint / "config.json")["model_type"] == "qwen3"
    last = ["final norm"] if decoder else []

    assert names == ["embeddings", "layer 0", "layer 1", "layer 2", *last]
    assert max(layer["error"] for layer in found["against_original"]) < 0.01
    inside = found["arithmetic"]
    assert [layer["layer"] for layer in inside["layers"]] == ["embeddings", "layer 0", "layer 1", "layer 2"]
    assert all(0 < layer["range_used"] < 0.1 and layer["overflows"] == 0 for layer in inside["layers"])
    assert inside["operations"][0]["jump"] >= inside["operations"][-1]["jump"] > 0


def test_an_overflow_is_found_in_its_layer(made):
    """One layer's first weights are so large that FP16 cannot hold what they give."""
    entry, where = made
    path = where.checkpoint / "model.safetensors"
    tensors = load_file(path)
    name = next(
        n
        for n in sorted(tensors)
        if ".1." in n and n.endswith(("intermediate.dense.weight", "up_proj.weight"))
    )
    tensors[name] = np.sign(tensors[name]) * np.float32(60000)
    path.unlink()
    save_file(tensors, path)
    convert.build(entry, FP16, where)
    inside = drift.arithmetic(first_runner(where), stored.read(where.reference).probes[0])
    by_layer = {layer["layer"]: layer for layer in inside["layers"]}

    assert by_layer["layer 1"]["overflows"] > 0
    assert by_layer["layer 1"]["range_used"] > 1
    assert by_layer["layer 0"]["overflows"] == 0
    assert inside["operations"][0]["layer"] == "layer 1"
