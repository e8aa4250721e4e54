"""Text to padded token ids, exactly as the checkpoint's own tokenizer makes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers

from corembed.release import Function, Tokenizer

Ids = npt.NDArray[np.int32]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """What the model sees of one text: its ids with special tokens, and how many tokens were cut off."""

    ids: tuple[int, ...]
    cut: int


class TextTokenizer:
    """A release's `tokenizer.json` with the padding and limits of its `release.json`."""

    def __init__(self, path: Path, settings: Tokenizer) -> None:
        self.settings = settings
        self._fast = tokenizers.Tokenizer.from_file(str(path))
        # Files may carry padding or limits of their own (MiniLM's pads to 128): ours decide.
        self._fast.no_padding()
        self._fast.enable_truncation(settings.max_length)

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokenize; texts beyond the limit are cut as the tokenizer says, special tokens kept."""
        if self.settings.lowercase:
            texts = [text.lower() for text in texts]
        return [
            Tokens(tuple(e.ids), sum(len(o.ids) - sum(o.special_tokens_mask) for o in e.overflowing))
            for e in self._fast.encode_batch(list(texts))
        ]

    def pad(self, batch: Sequence[Tokens], function: Function) -> tuple[Ids, Ids]:
        """Ids and mask of shape (function.batch, function.length), int32; missing rows repeat the first."""
        ids = np.full((function.batch, function.length), self.settings.pad_id, np.int32)
        mask = np.zeros_like(ids)
        for row in range(function.batch):
            tokens = batch[row if row < len(batch) else 0].ids
            if self.settings.padding == "left":
                ids[row, -len(tokens) :], mask[row, -len(tokens) :] = tokens, 1
            else:
                ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        return ids, mask
