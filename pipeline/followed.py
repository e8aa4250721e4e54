"""The original by another recipe than its checkpoint declares, made of sentence-transformers' own modules.

For models whose entry has a `recipe`: vectors that an application already has were made that way, and the reference
must be too. Shares no code with the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    WeightedLayerPooling,
)
from torch import Tensor, nn

from corembed.release import Recipe


class AllPositions(nn.Module):
    """Makes the pooling that follows take padding for tokens."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """See the class."""
        return features | {"attention_mask": torch.ones_like(features["attention_mask"])}


def follow(model: SentenceTransformer, recipe: Recipe, buckets: Sequence[int]) -> SentenceTransformer:
    """The same transformer with the modules of `recipe`.

    With pooling `mean_all` each text is padded to the bucket that a loader would choose, so texts must be encoded
    one at a time.
    """
    transformer: Any = model[0]
    width = transformer.get_embedding_dimension()
    modules: list[nn.Module] = [transformer]
    if recipe.layers > 1:
        config = transformer.auto_model.config
        config.output_hidden_states = True
        count = config.num_hidden_layers  # there is one hidden state more: the embeddings
        modules.append(WeightedLayerPooling(width, count, layer_start=count + 1 - recipe.layers))
    if recipe.pooling == "mean_all":
        transformer.register_forward_pre_hook(_padding(model.tokenizer, buckets))
        modules.append(AllPositions())
    modules.append(Pooling(width, "mean" if recipe.pooling == "mean_all" else recipe.pooling))
    modules += [module for module in model if isinstance(module, Dense)]
    if recipe.normalize:
        modules.append(Normalize())
    made = SentenceTransformer(
        modules=modules, prompts=model.prompts, default_prompt_name=model.default_prompt_name
    )
    made.max_seq_length = model.max_seq_length
    return made


def _padding(tokenizer: Any, buckets: Sequence[int]) -> Any:
    def pad(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        features, *rest = given
        length = features["input_ids"].shape[1]
        missing = min(n for n in buckets if n >= length) - length
        sides = (missing, 0) if tokenizer.padding_side == "left" else (0, missing)
        fill = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0}
        padded = {key: nn.functional.pad(features[key], sides, value=value) for key, value in fill.items()}
        return (features | padded, *rest)

    return pad
