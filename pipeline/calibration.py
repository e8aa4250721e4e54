"""Calibration: the texts whose activations are measured, and the measurements as the quantize stage reads them.

The texts share none with the parity texts. Sentences in 68 languages and articles stand for what is embedded;
random words, repeated words and strings of signs, made from the tokenizer's own vocabulary, for what the worst text
looks like: without them the error of such texts is ten times that of a sentence. Nothing is drawn but from a fixed
seed.
"""

from __future__ import annotations

import ast
import collections
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer as FastTokenizer

from pipeline.compensate import Inputs
from pipeline.errors import PipelineError
from pipeline.files import read_json, sha256
from pipeline.texts import articles, data_file, parity_texts

_SIGNS = list("!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~0123456789 ")
_ARTICLES = 50  # of each language
_MADE = 80  # of each kind
ALL_PARITY = 1 << 20  # more parity texts than there are


def _sentences() -> Iterator[str]:
    """All but the first two of each language, which are parity texts."""
    root = data_file("spacy", "spacy/lang")
    for path in sorted(root.glob("*/examples.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "sentences":
                yield from ast.literal_eval(node.value)[2:]


def _made(tokenizer: FastTokenizer) -> Iterator[str]:
    rng = np.random.default_rng(0)
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    vocabulary = np.array([i for i in range(tokenizer.get_vocab_size()) if i not in special])

    def words(count: int) -> str:
        text: str = tokenizer.decode(rng.choice(vocabulary, size=count).tolist())
        return text

    for _ in range(_MADE):
        yield words(int(rng.integers(1, 24)))
        yield (words(1) + " ") * int(rng.integers(2, 300))
        yield (words(int(rng.integers(2, 6))) + " ") * int(rng.integers(2, 90))
        yield "".join(rng.choice(_SIGNS, size=int(rng.integers(1, 40))))


def calibration_texts(tokenizer: FastTokenizer) -> list[str]:
    """Texts to calibrate on, all different and none a parity text."""
    parity = {row["text"] for row in parity_texts(ALL_PARITY)}
    chosen = []
    for language in ("en", "fr", "es"):
        found = articles(language)
        often = collections.Counter(article.get("description") for article in found)
        # What a description names alone may be a document of the retrieval test.
        found = [article for article in found if often[article.get("description")] > 1]
        chosen += [article["extract"] for article in found[7 :: len(found) // _ARTICLES][:_ARTICLES]]
    texts = dict.fromkeys([*_sentences(), *chosen, *_made(tokenizer)])
    return [text for text in texts if text not in parity]


class Calibration:
    """The folder that the stage `calibrate` wrote: second moments of the inputs of each weight."""

    def __init__(self, folder: Path) -> None:
        path = folder / "calibration.json"
        if not path.exists():
            raise PipelineError(
                f"{path} is missing, and this variant rounds by it; run the stage calibrate of the model first"
            )
        self.folder, self.record = folder, read_json(path)

    def fingerprint(self, weight: str) -> str:
        """The hash of a weight's moments; empty where there are none."""
        return str(self.record["inputs"].get(weight, {}).get("sha256", ""))

    def inputs(self, weight: str) -> Inputs:
        """The moments of a weight's inputs."""
        entry = self.record["inputs"].get(weight)
        if entry is None:
            raise PipelineError(
                f"weight {weight!r} has no calibration in {self.folder}; set calibrated: false for its kind"
            )
        path = self.folder / entry["file"]
        if not path.exists() or sha256(path) != entry["sha256"]:
            raise PipelineError(
                f"{path} is missing, or not what calibration.json says of it: it was cut off or changed; "
                "run the stage calibrate of the model again"
            )
        return Inputs(load_file(path)["moment"])
