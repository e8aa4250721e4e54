"""Recipes that differ from the checkpoint's own: graph and reference both follow them, by code they do not share."""

import json

import numpy as np
import pytest
import torch
from helpers import build_release
from transformers import AutoModel, AutoTokenizer

from corembed import Embedder, release
from pipeline import params
from pipeline.errors import PipelineError
from pipeline.recipe import override
from pipeline.reference import open_original
from pipeline.trace import open_source

RECIPES = {
    "masked mean": ["--pooling", "mean"],
    "mean over all positions": ["--pooling", "mean_all"],
    "mean of the last three layers": ["--pooling", "mean", "--last-layers", 3],
}
TEXTS = ["Hello", "The capital of China is Beijing.", "word " * 40]


def by_hand(source, recipe, text, buckets=(16, 64)):
    """The formula in a few lines of transformers."""
    tokenizer, model = AutoTokenizer.from_pretrained(source), AutoModel.from_pretrained(source).eval()
    count = len(tokenizer(text, truncation=True, max_length=64)["input_ids"])
    length = min(n for n in buckets if n >= count)
    given = tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**given, output_hidden_states=True).hidden_states
    hidden = torch.stack(states[-3:]).mean(0)[0] if "layers" in recipe else states[-1][0]
    pooled = hidden.mean(0) if "all" in recipe else hidden[:count].mean(0)
    return torch.nn.functional.normalize(pooled, dim=0).numpy()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_release_by_another_recipe(tiny_checkpoint, tmp_path, recipe):
    source = tiny_checkpoint("pooling_mode_lasttoken", model_type="llama")
    result = build_release(
        f"path:{source}", "--out", tmp_path / "out", "--max-length", 16, 64, *RECIPES[recipe]
    )
    vectors = Embedder.from_pretrained(tmp_path / "out", engine="milrun").encode(TEXTS)

    assert result["variants"]["fp16"]["min_cosine"] >= 0.9995
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert vector @ by_hand(source, recipe, text) >= 0.9995
    made = release.read(tmp_path / "out")
    own = open_source(source).recipe
    assert made.recipe != own
    assert made.embedding_space != release.embedding_space(
        made.source, own, made.prompts, made.tokenizer.max_length
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "max"}, "pooling 'max' is not implemented"),
        ({"layers": 4}, "layers 4 must be between 1 and the model's 3"),
        ({"layers": 0}, "layers 0 must be"),
        ({"pool": "mean"}, "unknown setting 'pool'"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(tiny_checkpoint, changes, message):
    source = open_source(tiny_checkpoint())

    with pytest.raises(PipelineError, match=message):
        override(source.recipe, changes, source.config.layers)


def test_params_take_a_recipe():
    entry = {"source": "path:x", "max_lengths": [32], "recipe": {"pooling": "mean", "layers": 4}}

    assert params.model("m", {"models": {"m": entry}}).recipe == {"pooling": "mean", "layers": 4}


def test_a_large_original_stays_on_disk_and_gives_the_same(tiny_checkpoint, monkeypatch):
    source = tiny_checkpoint("pooling_mode_lasttoken", model_type="qwen3")
    here = open_original(source, 64).encode(TEXTS)
    monkeypatch.setattr("pipeline.reference.OFFLOAD", 0)
    model = open_original(source, 64)

    assert {p.device.type for p in model.parameters()} == {"meta"}
    np.testing.assert_array_equal(model.encode(TEXTS), here)
    assert json.loads((source / "config.json").read_text())["model_type"] == "qwen3"
