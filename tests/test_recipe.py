"""The recipe is the checkpoint's own; what is not declared is an error before any weight is read."""

import json

import pytest
from helpers import CHAIN, write_modules

from corembed.release import Dense, Recipe
from pipeline.errors import PipelineError
from pipeline.recipe import read_recipe, read_tokenizer

NEW = (
    "sentence_transformers.base.modules.transformer.Transformer",
    "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "sentence_transformers.base.modules.normalize.Normalize",
)


@pytest.mark.parametrize(
    ("kinds", "pooling", "expected"),
    [
        (
            CHAIN,
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False},
            Recipe("mean", normalize=True),
        ),
        (CHAIN[:2], {"pooling_mode_cls_token": True}, Recipe("cls", normalize=False)),
        (
            CHAIN,
            {"pooling_mode_lasttoken": True, "include_prompt": True},
            Recipe("lasttoken", normalize=True),
        ),
        (NEW, {"embedding_dimension": 32, "pooling_mode": "mean"}, Recipe("mean", normalize=True)),
    ],
)
def test_formats_of_sentence_transformers_2_to_6(tmp_path, kinds, pooling, expected):
    write_modules(tmp_path, pooling, kinds)

    assert read_recipe(tmp_path) == expected


def test_dense_layers_are_read(tmp_path):
    kinds = (*CHAIN[:2], "sentence_transformers.models.Dense", CHAIN[2])
    write_modules(tmp_path, {"pooling_mode_mean_tokens": True}, kinds)
    (tmp_path / "2_Dense").mkdir()
    config = {"in_features": 32, "out_features": 16, "bias": True}
    config["activation_function"] = "torch.nn.modules.activation.Tanh"
    (tmp_path / "2_Dense" / "config.json").write_text(json.dumps(config))

    assert read_recipe(tmp_path).dense == (Dense("2_Dense", 32, 16, bias=True, activation="tanh"),)


@pytest.mark.parametrize(
    ("kinds", "pooling", "message"),
    [
        (
            ("x.Transformer", "x.Pooling", "x.LayerNorm"),
            {"pooling_mode_mean_tokens": True},
            "Transformer > Pooling > LayerNorm",
        ),
        (("x.Transformer", "x.WeightedLayerPooling"), {}, "not implemented"),
        (CHAIN, {"pooling_mode_max_tokens": True}, "max"),
        (CHAIN, {}, "not declared"),
        (CHAIN, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "cls"),
        (CHAIN, {"pooling_mode_mean_tokens": True, "include_prompt": False}, "include_prompt"),
    ],
)
def test_what_is_not_implemented_is_refused(tmp_path, kinds, pooling, message):
    write_modules(tmp_path, pooling, kinds)

    with pytest.raises(PipelineError, match=message):
        read_recipe(tmp_path)


def test_no_declaration_is_an_error(tmp_path):
    with pytest.raises(PipelineError, match=r"no modules\.json"):
        read_recipe(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(tiny_checkpoint):
    """Its largest id would index beyond the embedding table."""
    with pytest.raises(PipelineError, match=r"30521.*30000 rows"):
        read_tokenizer(tiny_checkpoint(), 30000, 64)
