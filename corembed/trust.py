"""Are the files on disk the ones that were promised? Sizes always, SHA-256 on first use and after any change.

Hashing gigabytes at each start would cost seconds, so what was hashed is noted in the cache folder together with the
file's size, inode and times. The change time cannot be set by a program: a byte written in place shows in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from corembed import places
from corembed.release import File

Seen = list[int | str]


def problems(folder: Path, files: Mapping[str, File]) -> dict[str, str]:
    """Compare files of a folder with what is expected of them; for each that differs, what is wrong with it."""
    note = (
        places.cache()
        / "verified"
        / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]}.json"
    )
    known = _read(note)
    found: dict[str, str] = {}
    fresh = dict(known)
    for name, expected in sorted(files.items()):
        path = folder / name
        if problem := _outside(folder, path):
            found[name] = problem
            continue
        try:
            status = path.stat()
        except OSError:
            found[name] = "missing"
            continue
        if status.st_size != expected.bytes:
            found[name] = f"{status.st_size} bytes, expected {expected.bytes}"
            continue
        seen: Seen = [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, expected.sha256]
        if known.get(name) == seen:
            continue
        digest = sha256(path)
        if digest != expected.sha256:
            fresh.pop(name, None)
            found[name] = f"SHA-256 {digest}, expected {expected.sha256}"
        else:
            fresh[name] = seen
    if fresh != known:
        _write(note, fresh)
    return found


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _outside(folder: Path, path: Path) -> str | None:
    # A link of the file itself is how the Hub's cache stores it; a linked folder may lead anywhere.
    if path.parent.resolve() != folder.resolve() / path.parent.relative_to(folder):
        return "leads outside the release"
    return None


def _read(note: Path) -> dict[str, Seen]:
    try:
        known: dict[str, Seen] = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there yet, or cut short: everything is hashed again
        return {}
    return known


def _write(note: Path, known: Mapping[str, Seen]) -> None:
    note.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=note.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as opened:
        json.dump(known, opened)
    Path(temporary).replace(note)
