"""Compiled Core ML models, made once and kept: a `.mlpackage` is compiled anew at each load, a `.mlmodelc` is not.

An entry is keyed by what decides its bytes: the package's SHA-256, the system's build, coremltools' version. It is
built in a folder of its own under a lock and then renamed, so that it is there whole or not at all, whoever is
killed. Each use checks its files; a damaged entry is built again. What is not used is pruned.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import filelock

from corembed import places, trust
from corembed.release import File

RECORD = "entry.json"
MODEL = "model.mlmodelc"
USED = ".used"
_BUILDING = ".building-"

MAX_BYTES = 64 * 2**30
MAX_AGE_DAYS = 90
"""Limits that hold without being asked for, whenever an entry is built."""

_log = logging.getLogger("corembed")


@dataclasses.dataclass(frozen=True)
class Entry:
    """Something in the cache: `kind` is `compiled`, `releases` or `sources`; `used` in seconds since the epoch."""

    kind: str
    name: str
    path: Path
    bytes: int
    used: float


def compiled(
    package: Path, digest: str, build: str, coremltools: str, compile_package: Callable[[Path, Path], None]
) -> Path:
    """The compiled model of a package: from the cache, or made now by `compile_package(package, target)`."""
    key = f"{digest[:24]}-{build}-{coremltools}".replace("/", "_")
    entry = places.cache() / "compiled" / key
    with filelock.FileLock(places.lock(key)):
        if entry.exists() and (damage := _damage(entry)):
            _log.warning("the compiled model %s is damaged (%s): it is made again", entry, damage)
            shutil.rmtree(entry)
        if not entry.exists():
            _build(package, entry, compile_package)
            fresh = True
        else:
            fresh = False
        (entry / USED).touch()
    if fresh:
        prune(MAX_BYTES, MAX_AGE_DAYS, kinds=("compiled",), keep=entry)
    return entry / MODEL


def _build(package: Path, entry: Path, compile_package: Callable[[Path, Path], None]) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    for left in entry.parent.glob(f"{_BUILDING}{entry.name}*"):
        shutil.rmtree(left)  # of a process that was killed: its lock is ours now
    partial = entry.parent / f"{_BUILDING}{entry.name}"
    partial.mkdir()
    _log.info("compiling %s, once for this system", package)
    start = time.monotonic()
    try:
        compile_package(package, partial / MODEL)
        files = {
            path.relative_to(partial).as_posix(): [path.stat().st_size, trust.sha256(path)]
            for path in sorted((partial / MODEL).rglob("*"))
            if path.is_file()
        }
        record = {"package": package.name, "seconds": round(time.monotonic() - start, 3), "files": files}
        (partial / RECORD).write_text(json.dumps(record, indent=2), encoding="utf-8")
        partial.replace(entry)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _damage(entry: Path) -> str | None:
    try:
        files = json.loads((entry / RECORD).read_text(encoding="utf-8"))["files"]
        expected = {name: File(*values) for name, values in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{RECORD}: {error}"
    present = {p.relative_to(entry).as_posix() for p in (entry / MODEL).rglob("*") if p.is_file()}
    if extra := present - set(expected):
        return f"{min(extra)}: not part of it"
    return next((f"{name}: {problem}" for name, problem in trust.problems(entry, expected).items()), None)


def entries() -> list[Entry]:
    """What the cache holds, the longest unused first."""
    root = places.cache()
    folders = [("compiled", path) for path in _folders(root / "compiled")]
    for kind in ("releases", "sources"):
        folders += [(kind, c) for repo in _folders(root / kind) for c in _folders(repo) if c.name != "refs"]
    found = [
        Entry(
            kind,
            path.name if kind == "compiled" else f"{path.parent.name.replace('--', '/')}@{path.name}",
            path,
            sum(f.lstat().st_size for f in path.rglob("*") if f.is_file()),
            (path / USED if (path / USED).exists() else path).stat().st_mtime,
        )
        for kind, path in folders
    ]
    return sorted(found, key=lambda e: e.used)


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def prune(
    max_bytes: int | None = None,
    max_age_days: float | None = None,
    *,
    kinds: tuple[str, ...] = ("compiled", "releases", "sources"),
    keep: Path | None = None,
) -> list[Entry]:
    """Delete entries unused for so many days, then the longest unused until the rest fits `max_bytes`.

    Gives what was deleted. An entry that another process is building or opening is left alone. A model that is
    loaded keeps its deleted files until it is closed.
    """
    there = [e for e in entries() if e.kind in kinds]
    total, now, deleted = sum(e.bytes for e in there), time.time(), []
    for entry in there:
        old = max_age_days is not None and now - entry.used > max_age_days * 86400
        if entry.path != keep and (old or (max_bytes is not None and total > max_bytes)) and _delete(entry):
            total -= entry.bytes
            deleted.append(entry)
    return deleted


def clear() -> list[Entry]:
    """Delete all that is in the cache, notes and leftovers of killed processes too; gives what was deleted."""
    deleted = prune(max_age_days=-1)
    for leftover in (places.cache() / "compiled").glob(f"{_BUILDING}*"):
        try:
            with filelock.FileLock(places.lock(leftover.name.removeprefix(_BUILDING)), blocking=False):
                shutil.rmtree(leftover)
        except filelock.Timeout:  # being built at this moment
            continue
    shutil.rmtree(places.cache() / "verified", ignore_errors=True)
    return deleted


def lock_name(path: Path) -> str:
    """The name of the lock that guards an entry."""
    return path.name if path.parent.name == "compiled" else f"{path.parent.name}-{path.name}"


def _delete(entry: Entry) -> bool:
    try:
        with filelock.FileLock(places.lock(lock_name(entry.path)), blocking=False):
            # Renamed first: whoever looks sees it whole or not at all.
            doomed = entry.path.with_name(f".doomed-{entry.path.name}-{os.getpid()}")
            entry.path.replace(doomed)
            shutil.rmtree(doomed)
    except (filelock.Timeout, FileNotFoundError):
        return False
    return True
