"""Search a folder of texts: it is indexed in a Chroma collection, and the passages nearest to a question are shown.

A demonstration of what a release is for. Files (.txt, .md, .rst, …) are split at blank lines; only files that are new
or changed since the last time are embedded again. The collection lies beside the folder's files in `.corembed`,
or where --store says; one that was made with another embedding space is refused.

For example: corembed search ORG/MODEL notes/ "how do I reset the router?"
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from corembed.cli import model
from corembed.cli.errors import UserError, needs
from corembed.embedder import Embedder

HELP = "search a folder of texts (a demonstration, with Chroma)"

SUFFIXES = (".txt", ".md", ".rst", ".org", ".tex")
STORE = ".corembed"
BATCH = 512
"""Passages embedded and stored at a time."""


def add(parser: argparse.ArgumentParser) -> None:
    """Options."""
    model.add(parser)
    parser.add_argument("folder", type=Path, help="folder of texts")
    parser.add_argument("question")
    parser.add_argument("--top", type=int, default=5, help="passages to show; default: 5")
    parser.add_argument("--store", type=Path, help=f"where the index lies; default: FOLDER/{STORE}")
    parser.add_argument("--json", action="store_true", help="as JSON lines")


def run(options: argparse.Namespace) -> int:
    """Bring the index up to date, then ask it."""
    if not options.folder.is_dir():
        raise UserError(f"{options.folder} is not a folder")
    if options.top < 1:
        raise UserError(f"--top {options.top}: expected at least 1")
    with needs("chroma"):
        import chromadb  # noqa: PLC0415  # an extra's package
        from chromadb.config import Settings  # noqa: PLC0415

        from corembed.integrations.chroma import CorembedEmbeddingFunction, open_collection  # noqa: PLC0415
    store = options.store or options.folder / STORE
    if store.exists() and not store.is_dir():
        raise UserError(f"--store {store} is not a folder")
    embedder = model.load(options)
    quiet = Settings(anonymized_telemetry=False)
    try:
        client = chromadb.PersistentClient(str(store), settings=quiet)
    except Exception as error:  # Chroma raises its own errors, sqlite's and plain ones for a damaged store
        raise UserError(f"{store} cannot be opened by Chroma: {error}") from error
    function = CorembedEmbeddingFunction(
        options.model, revision=options.revision, variant=options.variant, embedder=embedder
    )
    collection = open_collection(client, "texts", function)
    added, removed = update(collection, options.folder, embedder)
    print(f"{added} passages embedded, {removed} removed, {collection.count()} in {store}", file=sys.stderr)
    if not collection.count():
        raise UserError(f"{options.folder} holds no text ({', '.join(SUFFIXES)})")
    found: Any = collection.query(
        query_texts=[options.question], n_results=min(options.top, collection.count())
    )
    for passage, place, distance in zip(
        found["documents"][0], found["metadatas"][0], found["distances"][0], strict=True
    ):
        if options.json:
            print(json.dumps({"score": 1 - distance, **place, "text": passage}, ensure_ascii=False))
        else:
            print(f"{1 - distance:.3f}  {place['path']}:{place['line']}  {' '.join(passage.split())[:200]}")
    return 0


def update(collection: Any, folder: Path, embedder: Embedder) -> tuple[int, int]:
    """Embed passages of new and changed files, remove those of changed and deleted ones; how many of each."""
    rows = collection.get(include=["metadatas"])
    known: dict[str, list[str]] = {}
    for name, place in zip(rows["ids"], rows["metadatas"], strict=True):
        known.setdefault(f"{place['path']}\0{place['sha256']}", []).append(name)
    there, fresh = set(), []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()):
        name = path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        there.add(f"{name}\0{digest}")
        if f"{name}\0{digest}" not in known:
            fresh += list(_passages(path, name, digest))
    stale = [row for key, names in known.items() if key not in there for row in names]
    for start in range(0, len(stale), BATCH):
        collection.delete(ids=stale[start : start + BATCH])
    for start in range(0, len(fresh), BATCH):
        batch = fresh[start : start + BATCH]
        texts = [passage for passage, _ in batch]
        collection.add(
            ids=[f"{m['path']}:{m['line']}:{m['sha256'][:12]}" for _, m in batch],
            documents=texts,
            embeddings=embedder.encode_document(texts),
            metadatas=[place for _, place in batch],
        )
    return len(fresh), len(stale)


def _passages(path: Path, name: str, digest: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Paragraphs of a file, each with the line it begins at."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason} at byte {error.start})") from error
    start, paragraph = 1, list[str]()
    for number, line in enumerate([*lines, ""], 1):
        if line.strip():
            paragraph.append(line)
            continue
        if paragraph:
            yield "\n".join(paragraph), {"path": name, "line": start, "sha256": digest}
        start, paragraph = number + 1, []
