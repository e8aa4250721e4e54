"""Decoders in FP16, as milrun runs them: parity on tiny and on treacherous weights, no zero row anywhere inside."""

import shutil

import numpy as np
import pytest
import torch
from helpers import build_release
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from benchmarks.inside import inside
from corembed import engines
from corembed.release import Function
from pipeline import agreement, architectures, params
from pipeline.architectures import _decoder
from pipeline.assemble import assemble
from pipeline.errors import PipelineError
from pipeline.trace import trace


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("layout", ["single", "parts"])
def test_fp16_parity_in_every_bucket_and_layout(tiny_checkpoint, tmp_path, kind, layout):
    source = tiny_checkpoint("pooling_mode_lasttoken", model_type=kind)
    more = ["--layout", layout, "--size-limit", 2222000] if layout == "parts" else []
    result = build_release(f"path:{source}", "--out", tmp_path / "out", "--max-length", 16, 64, *more)
    packages = list((tmp_path / "out").rglob("*.mlpackage"))

    assert result["variants"]["fp16"]["min_cosine"] >= 0.9995
    assert (len(packages) > 1) == (layout == "parts")


TEXTS = [
    "",
    "Hello",
    "import numpy as np",
    "importance of trees in cities",
    "The capital of China is Beijing.",
]


def convert(source, out, length=32):
    """The FP16 package of a checkpoint, one function."""
    trace(params.Model("tiny", "path:x", None, None, (length,)), source, out / "traced")
    assemble(out / "traced", source, params.variant("fp16"), out / "packages", {"corembed.summary": "tiny"})
    return out / "packages" / "fp16.mlpackage"


def padded(model, text, length=32, side="right"):
    ids = model.tokenizer(text, truncation=True, max_length=length)["input_ids"]
    row, mask = np.zeros((1, length), np.int32), np.zeros((1, length), np.int32)
    place = slice(0, len(ids)) if side == "right" else slice(length - len(ids), length)
    row[0, place], mask[0, place] = ids, 1
    return row, mask


def worst(package, source, side="right"):
    """The least cosine over the texts to sentence-transformers in FP32."""
    model = SentenceTransformer(str(source), device="cpu")
    engine = engines.make("milrun", [package])
    found = [engine.run(Function("main", 1, 32), *padded(model, t, side=side))[0] for t in TEXTS]
    return agreement.cosines(np.stack(found), model.encode(TEXTS)).min()


def plant(source, folder, peak):
    """A massive activation at the first token, a channel that is dead everywhere, and tiny rows."""
    source = shutil.copytree(source, folder)
    weights = load_file(source / "model.safetensors")
    weights["embed_tokens.weight"][1::11] *= 1e-3
    weights["embed_tokens.weight"][101, 3] = peak  # [CLS], the first token of every text
    weights["embed_tokens.weight"][:, 5] = 0
    for name in weights:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name][5] = 0
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    return source


@pytest.mark.parametrize("peak", [1e2, 1e3, 3e4])
def test_planted_outliers_survive_fp16(tiny_checkpoint, tmp_path, peak):
    """Against the original, and at every value inside: nothing overflows, no row is lost."""
    source = plant(tiny_checkpoint("pooling_mode_lasttoken", model_type="qwen3"), tmp_path / "source", peak)
    package = convert(source, tmp_path)
    ids, mask = padded(SentenceTransformer(str(source), device="cpu"), TEXTS[2])
    seen = inside([package], Function("main", 1, 32), ids, mask)

    assert worst(package, source) >= 0.999
    assert seen["peak_norm_input"] >= 0.9 * peak
    assert seen["not_finite"] == 0
    assert seen["lost"] == []
    assert seen["values"] > 10_000
    assert 0 < seen["peak_down_proj_input"] < 65504


def test_the_plain_norm_loses_rows_inside_and_keeps_a_finite_output(tiny_checkpoint, tmp_path, monkeypatch):
    """Why intermediates are looked at: the same checkpoint, the norm as the paper writes it."""

    def plain(self, x):
        unit = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.root_epsilon**2)
        return unit.to(self.weight.dtype) * self.weight

    monkeypatch.setattr(_decoder.RobustNorm, "forward", plain)
    source = plant(tiny_checkpoint("pooling_mode_lasttoken", model_type="qwen3"), tmp_path / "source", 3e4)
    package = convert(source, tmp_path)
    model = SentenceTransformer(str(source), device="cpu")
    ids, mask = padded(model, TEXTS[2])
    seen = inside([package], Function("main", 1, 32), ids, mask)
    vector = engines.make("milrun", [package]).run(Function("main", 1, 32), ids, mask)

    assert seen["lost"]
    assert np.isfinite(vector).all()


def test_full_width(tiny_checkpoint, tmp_path):
    """One layer as wide as the 0.6B's, random."""
    sizes = {"hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, "head_dim": 128}
    more = {"num_key_value_heads": 8, "num_hidden_layers": 1, "initializer_range": 0.02}
    source = tiny_checkpoint("pooling_mode_lasttoken", model_type="qwen3", **sizes, **more)

    assert worst(convert(source, tmp_path), source) >= 0.9995


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_padding_may_stand_on_either_side(tiny_checkpoint, tmp_path, kind):
    source = tiny_checkpoint("pooling_mode_lasttoken", model_type=kind)
    package = convert(source, tmp_path)

    assert worst(package, source, "left") >= 0.9995
    assert worst(package, source, "right") >= 0.9995


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
