"""Text to padded token ids, exactly as the checkpoint's own tokenizer makes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Normalizers

from corembed.errors import TextError
from corembed.release import Function, Tokenizer

Ids = npt.NDArray[np.int32]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """What the model sees of one text: its ids with special tokens, and how many tokens were cut off."""

    ids: tuple[int, ...]
    cut: int


@dataclasses.dataclass(frozen=True)
class Tokenized:
    """The same for people: ids, their spelling, how many tokens were cut, the text that the model does not see."""

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    cut: int
    cut_text: str


class TextTokenizer:
    """A release's `tokenizer.json` with the padding and limits of its `release.json`. Safe to share by threads."""

    def __init__(self, path: Path, settings: Tokenizer) -> None:
        self.settings = settings
        self._fast = tokenizers.Tokenizer.from_file(str(path))
        # Files may carry padding or limits of their own (MiniLM's pads to 128): ours decide.
        self._fast.no_padding()
        self._fast.enable_truncation(settings.max_length, direction=settings.truncation)
        if settings.lowercase:
            # sentence-transformers' do_lower_case, by the same normalizer (str.lower differs: "İ").
            normalizer = self._fast.normalizer
            self._fast.normalizer = Normalizers([Lowercase(), *([normalizer] if normalizer else [])])

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokenize; texts beyond the limit are cut as the tokenizer says, special tokens kept."""
        return [
            Tokens(tuple(e.ids), sum(_own(o) for o in e.overflowing) if e.overflowing else 0)
            for e in self._encode_batch(texts, "encode_batch_fast")
        ]

    def explain(self, texts: Sequence[str]) -> list[Tokenized]:
        """Tokenize, and say what was cut."""
        found = []
        for text, e in zip(texts, self._encode_batch(texts, "encode_batch"), strict=True):
            kept = [o for o, special in zip(e.offsets, e.special_tokens_mask, strict=True) if not special]
            rest = ""
            if e.overflowing and kept:
                left = self.settings.truncation == "left"
                rest = text[: kept[0][0]] if left else text[kept[-1][1] :]
            found.append(Tokenized(tuple(e.ids), tuple(e.tokens), sum(_own(o) for o in e.overflowing), rest))
        return found

    def _encode_batch(self, texts: Sequence[str], method: str) -> list[tokenizers.Encoding]:
        try:
            encodings: list[tokenizers.Encoding] = getattr(self._fast, method)(list(texts))
        except TypeError:
            # Rust strings are UTF-8; a lone surrogate is the one str that has no such form.
            for index, text in enumerate(texts):
                try:
                    text.encode()
                except UnicodeEncodeError as error:
                    raise TextError(
                        f"text {index} is not valid Unicode ({error.reason} at character {error.start}): "
                        'decode it with errors="replace"',
                        index,
                    ) from error
            raise
        return encodings

    def pad(self, batch: Sequence[Tokens], function: Function) -> tuple[Ids, Ids]:
        """Ids and mask of shape (function.batch, function.length), int32; missing rows repeat the first."""
        ids = np.full((function.batch, function.length), self.settings.pad_id, np.int32)
        mask = np.zeros_like(ids)
        for row, item in enumerate(batch):
            count = len(item.ids)
            place = slice(-count, None) if self.settings.padding == "left" else slice(count)
            ids[row, place], mask[row, place] = item.ids, 1
        ids[len(batch) :], mask[len(batch) :] = ids[0], mask[0]
        return ids, mask


def _own(encoding: tokenizers.Encoding) -> int:
    return len(encoding.ids) - sum(encoding.special_tokens_mask)
