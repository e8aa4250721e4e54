"""The random stand-in for Qwen3-Embedding is what transformers takes for the real one, small parts included."""

import dataclasses
import json
import math

import pytest
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.make_checkpoint import GEOMETRIES, make_checkpoint, shapes, write_tokenizer
from corembed.tokenizer import TextTokenizer
from pipeline.checkpoint import Checkpoint
from pipeline.errors import PipelineError
from pipeline.recipe import read_tokenizer
from pipeline.trace import open_source, weights

SMALL = dataclasses.replace(
    GEOMETRIES["4b"], layers=2, hidden=16, intermediate=32, heads=4, kv_heads=2, head_dim=8
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "small"
    make_checkpoint(out, SMALL, outliers=True, shard=4_855_000)
    return out


@pytest.mark.parametrize(
    ("size", "parameters"), [("0.6b", 595_776_512), ("4b", 4_021_774_336), ("8b", 7_567_295_488)]
)
def test_the_geometry_has_the_published_number_of_parameters(size, parameters):
    assert sum(math.prod(s) for s in shapes(GEOMETRIES[size]).values()) == parameters


def test_it_is_sharded_complete_and_the_same_again(folder, tmp_path):
    make_checkpoint(tmp_path / "again", SMALL, outliers=True, shard=4_855_000)
    files = sorted(p.name for p in folder.rglob("*") if p.is_file())

    assert sum(name.endswith(".safetensors") for name in files) == 2
    assert all(
        (tmp_path / "again" / p.relative_to(folder)).read_bytes() == p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file()
    )
    assert len(weights(open_source(folder), Checkpoint(folder))) == 2 + 11 * SMALL.layers


def test_transformers_finds_every_weight_and_the_official_recipe(folder):
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"torch_dtype": torch.float32})
    table = model[0].auto_model.embed_tokens.weight

    assert model[0].auto_model.config.head_dim == SMALL.head_dim
    assert table[:, 5].abs().max() == 0
    assert table[99].abs().max() > 2e4
    assert model[1].pooling_mode == "lasttoken"
    assert model.prompts["query"].endswith("\nQuery:")
    assert model.tokenizer("The capital of China is Beijing.")["input_ids"] == [
        785, 6722, 315, 5616, 374, 26549, 13, 151643,
    ]  # fmt: skip


def test_tokens_are_the_published_ones(folder):
    """The end token stays under truncation, no space follows `Query:`, `<think>` is ordinary text for the 4B."""
    settings = read_tokenizer(folder, SMALL.rows, 16)
    tokenizer = TextTokenizer(folder / "tokenizer.json", settings)
    prompt = json.loads((folder / "config_sentence_transformers.json").read_text())["prompts"]["query"]
    whole = TextTokenizer(folder / "tokenizer.json", dataclasses.replace(settings, max_length=64))
    empty, cut, think = (t.ids for t in tokenizer.encode(["", "word " * 100, "<think>"]))
    (query,) = (t.ids for t in whole.encode([prompt + "What is the capital of China?"]))

    assert empty == (151643,)
    assert len(cut) == 16
    assert cut[-1] == 151643
    assert len(think) == 4
    assert max(think) < SMALL.rows
    assert len(query) == 27
    assert query[-3:] == (5616, 30, 151643)


def test_the_tokenizer_of_the_0_6b_is_refused_for_the_4b(folder, tmp_path):
    """It has four ids beyond the 4B's table, where Core ML's gather would read anything."""
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    write_tokenizer(tmp_path, GEOMETRIES["0.6b"].rows, GEOMETRIES["0.6b"].tokenizer)

    with pytest.raises(
        PipelineError, match="'</think>' has id 151668, but the embedding table has 151665 rows"
    ):
        read_tokenizer(tmp_path, SMALL.rows, 32)


def test_a_padding_token_outside_the_vocabulary_is_refused(folder, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "<pad>"}')

    with pytest.raises(PipelineError, match="padding token '<pad>' is not in the vocabulary"):
        read_tokenizer(tmp_path, SMALL.rows, 32)


def test_another_tokenizer_than_the_published_one_is_refused(tmp_path):
    wrong = dataclasses.replace(SMALL, tokenizer="0" * 64)

    with pytest.raises(PipelineError, match="SHA-256"):
        make_checkpoint(tmp_path / "out", wrong)
    assert not list(tmp_path.iterdir())
