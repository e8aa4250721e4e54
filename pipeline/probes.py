"""Looks into the original while it embeds: the token ids it sees, and the states between its layers.

Later machines compare a package with these layer by layer, without the checkpoint (`pipeline.diagnosis`). Forward
hooks read what passes, so it does not matter where the weights of a layer are kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import nn

from pipeline.stored import Probe

PROBES = ("The capital of China is Beijing.", "importance of trees in cities")


def token_ids(model: SentenceTransformer, text: str, prompt: str = "") -> list[int]:
    """The ids that the original makes of a text, special tokens included and cut as it cuts them."""
    ids: list[int] = model.preprocess([prompt + text])["input_ids"][0].tolist()
    return ids


def layers(model: SentenceTransformer) -> nn.ModuleList:
    """The list of the encoder's layers."""
    encoder = model[0].auto_model
    count = encoder.config.num_hidden_layers
    return next(m for m in encoder.modules() if isinstance(m, nn.ModuleList) and len(m) == count)


@contextlib.contextmanager
def _watched(model: SentenceTransformer, states: list[Any]) -> Iterator[None]:
    def before(_: nn.Module, given: Sequence[Any], named: dict[str, Any]) -> None:
        hidden = given[0] if given else named["hidden_states"]
        states.append(hidden[0].float().cpu().numpy())

    def after(_: nn.Module, __: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        states.append(hidden[0].float().cpu().numpy())

    found = layers(model)
    hooks = [found[0].register_forward_pre_hook(before, with_kwargs=True)]
    hooks += [layer.register_forward_hook(after) for layer in found]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def probe(model: SentenceTransformer, text: str) -> Probe:
    """One text through the original, with what each layer gave; no prompt."""
    states: list[Any] = []
    with _watched(model, states), torch.no_grad():
        features = model(model.preprocess([text]))
    ids = token_ids(model, text)
    # A recipe that pools padding too has padded the text: the probe keeps its own tokens.
    left = model.tokenizer.padding_side == "left"
    own = slice(-len(ids), None) if left else slice(len(ids))
    return Probe(
        tuple(ids),
        np.stack(states)[:, own],
        features["token_embeddings"][0, own].float().cpu().numpy(),
        features["sentence_embedding"][0].float().cpu().numpy(),
    )
