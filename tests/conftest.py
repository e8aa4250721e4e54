"""Fixtures of all tests: tiny checkpoints and a release made of one."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers import CHAIN, TINY, build_release, minilm, write_modules
from hub import TOKEN, Hub, running
from huggingface_hub import constants
from transformers import AutoConfig, AutoModel

Checkpoint = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def corembed_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("COREMBED_CACHE", str(folder))
        yield folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub; the client neither waits between tries nor uses Xet."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    with running() as server:
        server.token = TOKEN
        yield server


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A factory of tiny random BERT checkpoints as sentence-transformers folders; one folder for the same sizes."""

    @functools.cache
    def make(mode: str = "pooling_mode_mean_tokens", seed: int = 0, **sizes: object) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint")
        torch.manual_seed(seed)
        kind = str(sizes.pop("model_type", "bert"))
        settings = {**TINY[kind], "initializer_range": 0.2} | sizes
        model = AutoModel.from_config(AutoConfig.for_model(kind, **settings))
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copy(minilm() / name, folder)
        (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 64, "do_lower_case": false}')
        write_modules(folder, {"word_embedding_dimension": sizes.get("hidden_size", 32), mode: True}, CHAIN)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_release(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release folder made by the whole command from a tiny checkpoint: two buckets, three variants, one layout."""
    out = tmp_path_factory.mktemp("release") / "tiny"
    build_release(
        f"path:{tiny_checkpoint()}", "--out", out, "--max-length", 16, 64, "--variant", "fp16", "int8"
    )
    return out


@pytest.fixture(scope="session")
def batched_release(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release with two buckets, each with a function of one row and one of four."""
    out = tmp_path_factory.mktemp("release") / "batched"

    build_release(
        f"path:{tiny_checkpoint()}",
        "--out",
        out,
        "--max-length",
        16,
        64,
        "--batch",
        1,
        4,
        "--variant",
        "fp16",
    )
    return out
