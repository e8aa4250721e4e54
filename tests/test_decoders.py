"""Decoders in FP16, as milrun runs them: parity on tiny and on treacherous weights, no zero row anywhere inside."""

import shutil

import numpy as np
import pytest
import torch
from helpers import build_release
from safetensors.torch import load_file, save_file

from pipeline import architectures
from pipeline.architectures import _decoder
from pipeline.errors import PipelineError


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("layout", ["single", "parts"])
def test_fp16_parity_in_every_bucket_and_layout(tiny_checkpoint, tmp_path, kind, layout):
    source = tiny_checkpoint("pooling_mode_lasttoken", model_type=kind)
    more = ["--layout", layout, "--size-limit", 2222000] if layout == "parts" else []
    result = build_release(f"path:{source}", "--out", tmp_path / "out", "--max-length", 16, 64, *more)
    packages = list((tmp_path / "out").rglob("*.mlpackage"))

    assert result["variants"]["fp16"]["min_cosine"] >= 0.9995
    assert (len(packages) > 1) == (layout == "parts")


@pytest.mark.parametrize("peak", [1e2, 1e3, 3e4])
def test_planted_outliers_survive_fp16(tiny_checkpoint, tmp_path, peak):
    """A massive activation at the first token and a dead channel: the plain norm would return rows of zeros."""
    source = shutil.copytree(
        tiny_checkpoint("pooling_mode_lasttoken", model_type="qwen3"), tmp_path / "source"
    )
    weights = load_file(source / "model.safetensors")
    weights["embed_tokens.weight"][101, 3] = peak  # [CLS], the first token of every text
    weights["embed_tokens.weight"][:, 5] = 0
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    result = build_release(f"path:{source}", "--out", tmp_path / "out", "--max-length", 64)

    assert result["variants"]["fp16"]["min_cosine"] >= 0.999


@pytest.mark.parametrize("scale", [1e-4, 3e-3, 1.0, 300.0, 6e4])
def test_the_robust_norm_holds_at_both_ends_of_the_range(scale):
    """In real FP16 arithmetic, row by row, against the formula in float64."""
    torch.manual_seed(0)
    norm = _decoder.RobustNorm(2560, 1e-6).half()
    norm.weight.data.fill_(1)
    row = torch.randn(4, 2560)
    row = (row / row.abs().amax(1, keepdim=True) * scale).half()
    exact = row.double() * torch.rsqrt(row.double().square().mean(1, keepdim=True) + 1e-6)
    found = norm(row).double()
    cosine = torch.nn.functional.cosine_similarity(found, exact)

    assert (found.norm(dim=1) > 0).all()
    assert cosine.min() > 0.9999
    torch.testing.assert_close(found.norm(dim=1), exact.norm(dim=1), rtol=0.01, atol=0)


def test_the_plain_norm_would_fail_where_the_robust_one_holds():
    row = torch.full((1, 64), 0.5).half()
    row[0, 0] = 300
    plain = row * torch.rsqrt((row * row).mean(-1, keepdim=True))
    robust = _decoder.RobustNorm(64, 1e-6).half()
    robust.weight.data.fill_(1)

    assert plain.abs().max() == 0
    assert robust(row).abs().max() > 1


def test_attention_in_ranges_equals_attention_at_once(monkeypatch):
    config = architectures.find({"model_type": "qwen3"}).Config(
        1, 32, 10, 64, 4, 2, 16, 64, 1e-6, 1e4, qk_norm=True
    )
    torch.manual_seed(0)
    layer = _decoder.Layer(config)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, context = torch.randn(1, 48, 32), _decoder.tables(config, 48)
    mask = _decoder.mask_tables(config, 48)["causal"]
    whole = layer(x, mask, context)
    monkeypatch.setattr(_decoder, "SCORES", 48 * 20)

    np.testing.assert_allclose(layer(x, mask, context).detach(), whole.detach(), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type 'yarn'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_what_the_decoder_does_not_implement_is_refused(changes, message):
    config = {"model_type": "qwen3"} | changes

    with pytest.raises(PipelineError, match=message):
        architectures.find(config).parse(config)
