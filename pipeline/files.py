"""Files that are either complete at their final path or not there at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHUNK = 4 << 20  # bytes read at a time


def remove(path: Path) -> None:
    """Delete a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Give a temporary sibling of `path` to write to; it takes the final name only when the block succeeds.

    What an earlier, killed run left at the temporary path is removed first, so a run always starts afresh
    and `path` never holds half an output.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".partial-{path.name}"
    remove(partial)
    try:
        yield partial
        remove(path)
        partial.rename(path)
    finally:
        remove(partial)


@contextlib.contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """`staged`, with the folder already made."""
    with staged(path) as partial:
        partial.mkdir()
        yield partial


def write_json(path: Path, value: Any) -> None:
    """Write canonical JSON: sorted keys, two spaces, a final newline; the same value gives the same bytes."""
    with staged(path) as partial:
        partial.write_text(
            json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def read_json(path: Path) -> Any:
    """Read a JSON file written by a stage or shipped with a checkpoint."""
    return json.loads(path.read_text(encoding="utf-8"))


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inventory(folder: Path) -> dict[str, dict[str, int | str]]:
    """Size in bytes and SHA-256 of each file below `folder`, by its POSIX path in it, sorted."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}


def link(source: Path, target: Path) -> None:
    """Put `source`'s content at `target` without a copy where the file system can (a hard link)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
