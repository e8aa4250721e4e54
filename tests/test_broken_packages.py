"""Packages that are wrong on purpose: each is caught, and the message points at the cause."""

import json
import shutil

import numpy as np
import pytest
from helpers import CHAIN, ROOT, build_places, write_modules
from safetensors.numpy import load_file, save_file

from pipeline import convert, graph, params, splice
from pipeline.architectures import bert
from pipeline.audit import audit
from pipeline.errors import PipelineError
from pipeline.places import Places
from pipeline.reference import reference
from pipeline.trace import trace
from pipeline.validate import validate

FP16 = params.variant("fp16", params.load(ROOT / "params.yaml"))
PROMPTS = {"query": "search for the following: ", "document": "a text of a library: "}


@pytest.fixture(scope="module")
def sound(tiny_checkpoint, tmp_path_factory):
    """A small model with two prompts, its packages and its reference."""
    root = tmp_path_factory.mktemp("sound")
    source = shutil.copytree(tiny_checkpoint(), root / "source")
    (source / "config_sentence_transformers.json").write_text(json.dumps({"prompts": PROMPTS}))
    entry, where = build_places(source, root / "work", "fp16", parity_texts=60, matryoshka_dimensions=(8, 16))
    reference(entry, where.checkpoint, where.reference)
    return entry, where


@pytest.fixture
def copy(sound, tmp_path):
    """The same, to be broken."""
    _, where = sound
    other = Places(tmp_path / "work")
    shutil.copytree(where.root, other.root)
    return other


def rebuild(entry, where):
    for folder in (where.traced, where.packages("fp16")):
        shutil.rmtree(folder)
    trace(entry, where.checkpoint, where.traced)
    convert.build(entry, FP16, where)


def judged(where, tmp_path):
    return validate(where, "tiny", FP16, tmp_path / "parity.json", tmp_path / "evidence.json")


def caught(where, tmp_path):
    with pytest.raises(PipelineError) as error:
        judged(where, tmp_path)
    evidence = json.loads((tmp_path / "evidence.json").read_text())
    assert evidence["missed"]
    assert all(cause in str(error.value) for cause in evidence["causes"])
    return evidence["causes"][0]


def test_the_sound_package_passes(sound, tmp_path):
    _, where = sound
    figures = judged(where, tmp_path)

    assert figures["passed"]
    assert figures["min_cosine"] > 0.9995
    assert figures["padding_min_cosine"] > 0.9999
    cut = json.loads((tmp_path / "evidence.json").read_text())["matryoshka"]
    assert set(cut) == {"8", "16"}
    assert 0.999 < figures["mrl_min_cosine"] == min(cut.values()) < 1


def test_a_layer_perturbed_by_a_hundredth(sound, copy, tmp_path):
    """Parity may pass with it: the audit names the tensor."""
    entry, where = sound
    name = "encoder.layer.2.intermediate.dense.weight"
    path = copy.checkpoint / "model.safetensors"
    tensors = load_file(path)
    noise = np.random.default_rng(0).normal(size=tensors[name].shape).astype(np.float32)
    tensors[name] *= 1 + 0.01 * noise
    path.unlink()
    save_file(tensors, path)
    rebuild(entry, copy)
    shutil.rmtree(copy.checkpoint)
    shutil.copytree(where.checkpoint, copy.checkpoint)

    with pytest.raises(PipelineError, match=rf"{name}.*another state of the model"):
        audit(copy, "tiny", FP16, tmp_path / "audit.json")


def test_wrong_pooling(sound, copy, tmp_path):
    entry, _ = sound
    write_modules(copy.checkpoint, {"word_embedding_dimension": 32, "pooling_mode_cls_token": True}, CHAIN)
    rebuild(entry, copy)

    assert "the vectors are those of pooling 'cls'" in caught(copy, tmp_path)


def test_missing_end_token(copy, tmp_path):
    """The tokenizer's post-processor no longer appends [SEP]."""
    path = copy.reference / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    single = tokenizer["post_processor"]["single"]
    tokenizer["post_processor"]["single"] = [part for part in single if part != single[-1]]
    path.unlink()
    path.write_text(json.dumps(tokenizer))

    assert "the last id 102 is missing" in caught(copy, tmp_path)


class OffByOne(bert.Embeddings):
    def forward(self, ids):
        positions = self.position_embeddings[1 : ids.shape[1] + 1]
        return self.LayerNorm(self.word_embeddings(ids) + positions + self.token_type_embeddings[:1])


def test_positions_off_by_one(sound, copy, tmp_path, monkeypatch):
    """Built with buckets that leave a position free, so that the graph itself is valid."""
    entry, _ = sound
    monkeypatch.setattr(bert, "Embeddings", OffByOne)
    narrower = params.Model("tiny", entry.source, None, None, (16, 48), parity_texts=60)
    shutil.rmtree(copy.reference)
    reference(narrower, copy.checkpoint, copy.reference)
    rebuild(narrower, copy)

    assert "the first layer that differs from the original is embeddings" in caught(copy, tmp_path)


def test_swapped_prompts(copy, tmp_path):
    path = copy.reference_record
    record = json.loads(path.read_text())
    record["prompts"] = {"query": PROMPTS["document"], "document": PROMPTS["query"]}
    path.unlink()
    path.write_text(json.dumps(record))

    cause = caught(copy, tmp_path)
    assert "prompt 'query' is not the original's: with the text of 'document' the vectors agree" in cause


def test_mask_ignored_in_the_layers(sound, copy, tmp_path, monkeypatch):
    entry, _ = sound
    monkeypatch.setattr(graph, "MASKED", 0.0)
    rebuild(entry, copy)

    assert "the mask is ignored" in caught(copy, tmp_path)


def test_mask_ignored_in_the_pooling(sound, copy, tmp_path, monkeypatch):
    """All positions count: on real weights the mean cosine stays high while retrieval falls apart."""
    entry, _ = sound
    monkeypatch.setattr(graph.Head, "pool", lambda _, hidden, real: hidden.mean(1) + 0 * real.sum())
    rebuild(entry, copy)

    assert "the mask is ignored" in caught(copy, tmp_path)


def test_the_first_layer_that_differs_is_named(sound, copy, tmp_path, monkeypatch):
    """The second layer is joined with the first one's weights."""
    entry, _ = sound
    true_name = splice.weight_name
    monkeypatch.setattr(
        splice, "weight_name", lambda p, w, layer=0: true_name(p, w, 0 if layer == 1 else layer)
    )
    rebuild(entry, copy)

    assert "the first layer that differs from the original is layer 1:" in caught(copy, tmp_path)
