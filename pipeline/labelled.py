"""Texts that people have labelled: which article belongs to a description, how alike are two news texts?

By default from installed packages: one-line descriptions of encyclopedia articles as queries, the articles' first
sentences as documents (English, French, Spanish), and 50 news texts with human similarity judgements. Or a data set
by name: `hub:OWNER/NAME` or `path:FOLDER` in the form that BEIR and MTEB use, with the configurations `corpus`,
`queries` and `default` (`query-id`, `corpus-id`, `score`). Near-duplicates are left out before the queries are drawn.
"""

from __future__ import annotations

import collections
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.errors import PipelineError
from pipeline.params import Retrieval
from pipeline.texts import articles, data_file, news

_SHARES = (("en", 6), ("fr", 2), ("es", 2))  # tenths of the queries and documents
_LONGEST = 480  # characters of a document, cut at a word: about 110 tokens
_SHINGLE = 8  # words; two texts that share a third of their runs of so many words are near-duplicates


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST].rsplit(" ", 1)[0]


def shingles(text: str) -> set[int]:
    """Hashes of all runs of eight words, letters only, lower case; of the whole text if it is shorter."""
    words = re.findall(r"\w+", text.lower())
    runs = [
        " ".join(words[i : i + _SHINGLE]) for i in range(max(len(words) - _SHINGLE + 1, 1 if words else 0))
    ]
    return {int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest()) for run in runs}


def without_duplicates(documents: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Documents that share fewer than a third of their runs of words with any earlier one, in the same order."""
    kept, seen = [], collections.defaultdict(list)
    for document in documents:
        runs = shingles(document["text"])
        shared = collections.Counter(number for run in runs for number in seen[run])
        if runs and shared and max(shared.values()) * 3 >= len(runs):
            continue
        for run in runs:
            seen[run].append(len(kept))
        kept.append(document)
    return kept


def _wiki(count_queries: int, count_documents: int) -> list[dict[str, Any]]:
    rows = []
    for language, tenths in _SHARES:
        queries, documents = count_queries * tenths // 10, count_documents * tenths // 10
        found = articles(language)
        often = collections.Counter(a["description"] for a in found if a.get("description"))
        fit = [
            {"id": f"{language}/{a['title']}", "text": _cut(a["extract"]), "query": a["description"]}
            for a in found
            if a.get("description") and often[a["description"]] == 1 and len(a["description"]) >= 16
        ]
        step = max(len(fit) // max(2 * documents, 1), 1)
        chosen = without_duplicates(fit[::step])[:documents]
        every = max(len(chosen) // max(queries, 1), 1)
        rows += [_row("document", d["id"], d["text"], language) for d in chosen]
        rows += [
            _row("query", f"{d['id']}?", d["query"], language) | {"relevant": [d["id"]]}
            for d in chosen[::every][:queries]
        ]
    return rows


def _row(use: str, name: str, text: str, language: str) -> dict[str, Any]:
    return {
        "use": use,
        "id": name,
        "text": text,
        "prompt": None,
        "language": language,
        "domain": "encyclopedia",
    }


def _named(name: str, revision: str | None, count_queries: int, count_documents: int) -> list[dict[str, Any]]:
    from datasets import load_dataset  # noqa: PLC0415  # only for a data set by name

    place = name.split(":", 1)[1]

    def part(config: str) -> Any:
        loaded = load_dataset(place, config, revision=revision)
        return loaded["test"] if "test" in loaded else next(iter(loaded.values()))

    try:
        corpus, queries, judged = part("corpus"), part("queries"), part("default")
    except (ValueError, OSError) as error:
        raise PipelineError(
            f"retrieval data set {name}: {error}; expected the configurations corpus, queries and default"
        ) from error
    texts = {str(row["_id"]): f"{row.get('title') or ''} {row['text']}".strip() for row in corpus}
    relevant = collections.defaultdict(list)
    for row in judged:
        if row["score"] > 0 and str(row["corpus-id"]) in texts:
            relevant[str(row["query-id"])].append(str(row["corpus-id"]))
    wanted = sorted((str(row["_id"]), row["text"]) for row in queries if str(row["_id"]) in relevant)
    wanted = wanted[:count_queries]
    needed = {document for query, _ in wanted for document in relevant[query]}
    others = [name for name in sorted(texts) if name not in needed]
    pool = [{"id": n, "text": texts[n]} for n in [*sorted(needed), *others]][
        : max(count_documents, len(needed))
    ]
    kept = without_duplicates(pool)
    there = {document["id"] for document in kept}
    rows = [_row("document", d["id"], _cut(d["text"]), "unknown") for d in kept]
    for query, text in wanted:
        if found := [document for document in relevant[query] if document in there]:
            rows.append(_row("query", f"{query}?", text, "unknown") | {"relevant": found})
    return rows


def _similar() -> list[dict[str, Any]]:
    path = data_file("gensim", "gensim/test/test_data/similarities0-1.txt")
    scores = [[float(x) for x in line.split("\t")] for line in path.read_text().strip().split("\n")]
    return [
        _row("similarity", f"news/{number:02d}", text, "en") | {"domain": "news", "scores": row}
        for number, (text, row) in enumerate(zip(news(), scores, strict=True))
    ]


def labelled_texts(wanted: Retrieval, prompts: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of use `document`, `query` and `similarity`; queries carry the model's prompt `query` if it has one."""
    if wanted.data == "wiki":
        rows = _wiki(wanted.queries, wanted.documents)
    else:
        rows = _named(wanted.data, wanted.revision, wanted.queries, wanted.documents)
    if not any(row["use"] == "query" for row in rows):
        raise PipelineError(
            f"retrieval data set {wanted.data}: no query has a relevant document in its corpus"
        )
    for row in rows:
        if row["use"] in prompts and prompts[row["use"]]:
            row["prompt"] = row["use"]
    return [*rows, *_similar()]
