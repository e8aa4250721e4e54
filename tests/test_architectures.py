"""Every architecture, at tiny sizes, against transformers and sentence-transformers in FP32."""

import shutil

import numpy as np
import pytest
import torch
from helpers import CHAIN, write_modules
from sentence_transformers import SentenceTransformer

from pipeline import architectures
from pipeline.checkpoint import Checkpoint
from pipeline.errors import PipelineError
from pipeline.graph import Encoder, weight_name
from pipeline.trace import find_tensor, open_source

TABLE = {
    "bert": {},
    "bert one layer": {"num_hidden_layers": 1},
    "bert wide heads": {"hidden_size": 64, "num_attention_heads": 2},
    "bert tanh gelu": {"hidden_act": "gelu_new"},
    "bert one type": {"type_vocab_size": 1},
    "bert large epsilon": {"layer_norm_eps": 1e-3},
    "qwen3": {"model_type": "qwen3"},
    "qwen3 no groups": {"model_type": "qwen3", "num_key_value_heads": 4},
    "qwen3 one key head": {"model_type": "qwen3", "num_key_value_heads": 1},
    "qwen3 other theta": {"model_type": "qwen3", "rope_theta": 1e6},
    "llama": {"model_type": "llama"},
}
TEXTS = ["", "Hello", "The capital of China is Beijing.", "importance of trees", "word " * 200]


def load(folder, length=64):
    """The whole encoder with the checkpoint's weights, in FP32."""
    source = open_source(folder)
    encoder = Encoder(source.architecture, source.config, source.recipe, length)
    checkpoint = Checkpoint(folder)
    pieces = {"table": encoder.table, "mask": encoder.mask, "head": encoder.head}
    numbered = [(n, p, 0) for n, p in pieces.items()] + [
        ("layer", p, i) for i, p in enumerate(encoder.layers)
    ]
    for kind, piece, layer in numbered:
        piece.fill()
        for name, parameter in piece.named_parameters():
            tensor = find_tensor(source, checkpoint, weight_name(kind, name, layer), tuple(parameter.shape))
            parameter.data = torch.from_numpy(np.concatenate(list(checkpoint.rows(tensor))))
    return encoder.eval()


def embed(encoder, folder, side="right"):
    model = SentenceTransformer(str(folder), device="cpu")
    found = []
    for text in TEXTS:
        ids = model.tokenizer(text, truncation=True, max_length=64)["input_ids"]
        pad = [0] * (64 - len(ids))
        row, mask = (
            (ids + pad, [1] * len(ids) + pad) if side == "right" else (pad + ids, pad + [1] * len(ids))
        )
        x, mask = torch.tensor([row], dtype=torch.int32), torch.tensor([mask], dtype=torch.int32)
        with torch.no_grad():
            found.append(encoder(x, mask)[0].numpy())
    return np.stack(found), model.encode(TEXTS)


@pytest.mark.parametrize("sizes", TABLE.values(), ids=TABLE)
def test_equals_sentence_transformers(tiny_checkpoint, sizes):
    folder = tiny_checkpoint(**sizes)
    ours, theirs = embed(load(folder), folder)

    np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize(
    "mode", ["pooling_mode_cls_token", "pooling_mode_lasttoken", "pooling_mode_mean_tokens"]
)
def test_each_pooling_equals_sentence_transformers(tiny_checkpoint, mode):
    folder = tiny_checkpoint(mode)
    ours, theirs = embed(load(folder), folder)

    np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("mode", ["cls", "lasttoken", "mean"])
def test_pooling_finds_real_tokens_on_either_side(tiny_checkpoint, mode):
    """Pooling reads the mask, not the position: the same real tokens give the same vector wherever they stand."""
    head = load(tiny_checkpoint()).head
    head.recipe = type(head.recipe)(mode, normalize=False)
    hidden, real = torch.randn(1, 64, 32), torch.zeros(1, 64)
    real[:, 20:30] = 1
    expected = {"cls": hidden[0, 20], "lasttoken": hidden[0, 29], "mean": hidden[0, 20:30].mean(0)}[mode]

    torch.testing.assert_close(head.pool(hidden, real)[0], expected)


def test_a_dense_module_is_applied(tiny_checkpoint, tmp_path):
    from sentence_transformers.models import Dense  # noqa: PLC0415

    folder = shutil.copytree(tiny_checkpoint(), tmp_path / "dense")
    dense = Dense(32, 16)
    (folder / "2_Dense").mkdir()
    dense.save(str(folder / "2_Dense"))
    kinds = (*CHAIN[:2], "sentence_transformers.models.Dense", CHAIN[2])
    write_modules(folder, {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}, kinds)
    ours, theirs = embed(load(folder), folder)

    assert ours.shape == (len(TEXTS), 16)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mamba"}, "no architecture for model_type 'mamba'"),
        ({"model_type": "bert", "position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"model_type": "bert", "is_decoder": True}, "is_decoder"),
        ({"model_type": "bert", "hidden_act": "swish9"}, "hidden_act"),
    ],
)
def test_a_config_that_is_not_implemented_is_refused(config, message):
    with pytest.raises(PipelineError, match=message):
        architectures.find(config).parse(config)
