"""An existing client, unmodified: papr_memory from PyPI, its own code, with milrun underneath instead of Core ML."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from papr_memory.resources.memory import MemoryResource
from sentence_transformers import SentenceTransformer

import milrun
from benchmarks.make_checkpoint import GEOMETRIES, make_checkpoint
from pipeline import agreement, params
from pipeline.assemble import assemble
from pipeline.trace import trace

WIDTH = 64  # the client takes the output of width 2560, else the widest: there is one output only
TEXTS = ["The capital of China is Beijing.", "import numpy as np", ""]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A small checkpoint with the official tokenizer, and its package with two buckets."""
    folder = tmp_path_factory.mktemp("papr")
    sizes = {"layers": 2, "hidden": WIDTH, "intermediate": 96, "heads": 2, "kv_heads": 1, "head_dim": 16}
    small = dataclasses.replace(GEOMETRIES["4b"], **sizes)
    make_checkpoint(folder / "checkpoint", small)
    entry = params.Model("small", "path:x", None, None, (32, 128))
    trace(entry, folder / "checkpoint", folder / "traced")
    assemble(
        folder / "traced",
        folder / "checkpoint",
        params.variant("fp16"),
        folder / "out",
        {"corembed.summary": "small"},
    )
    return folder / "checkpoint", folder / "out" / "fp16.mlpackage"


@pytest.mark.parametrize("side", ["right", "left"])
def test_papr_memory_embeds_with_the_single_layout(built, tmp_path, monkeypatch, side):
    """Its tokenizer call (padded to 32 on the tokenizer's side), its choice of the output, the default function."""
    checkpoint, package = built
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    shutil.copy(checkpoint / "tokenizer.json", tokenizer)
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text())
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": side}))
    monkeypatch.setenv("PAPR_ENABLE_COREML", "true")
    monkeypatch.setenv("PAPR_COREML_MODEL", str(package))
    monkeypatch.setenv("PAPR_EMBEDDING_MODEL", str(tokenizer))
    client = MemoryResource.__new__(MemoryResource)  # its constructor connects to a service
    with milrun.installed():
        function = client._get_optimized_quantized_model("mps", "Apple M2")  # noqa: SLF001
        found = np.array([function.embed_query(text) for text in TEXTS], np.float32)

    theirs = SentenceTransformer(str(checkpoint), device="cpu").encode(TEXTS)
    assert type(function).__name__ == "CoreMLEmbeddingFunction"
    assert found.shape == (len(TEXTS), WIDTH)
    assert agreement.cosines(found, theirs).min() >= 0.9995
