"""What a model hub knows: repositories, commits, references, pull requests, and files by their hash.

The rules are the Hub's as its client meets them: a commit names its parent or is refused, a tag is made once, a
large file must have arrived before a commit may name it. Contents lie in a folder, by SHA-256; all else is in
memory, in the process of the test, which outlives the publishers that it kills.
"""

from __future__ import annotations

import base64
import dataclasses
import fnmatch
import hashlib
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LFS_NAMES = ("*.bin", "*.mlmodel", "*.safetensors", "*.gz", "*.model", "*.npz")
LFS_BYTES = 10 << 20  # what is larger is never a regular git blob
ATTRIBUTES = "".join(f"{name} filter=lfs diff=lfs merge=lfs -text\n" for name in LFS_NAMES).encode()


class Refused(Exception):  # noqa: N818  # an answer, not a defect
    """An error answer: HTTP status, message, and the code that the client turns into an exception."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclasses.dataclass(frozen=True)
class Blob:
    """A file's content."""

    sha256: str
    size: int
    oid: str
    lfs: bool

    @classmethod
    def of(cls, data: bytes, *, lfs: bool) -> Blob:
        """The git hash of a large file is that of the pointer that stands for it."""
        digest = hashlib.sha256(data).hexdigest()
        return cls.pointed(digest, len(data)) if lfs else cls(digest, len(data), git_hash(data), lfs=False)

    @classmethod
    def pointed(cls, sha256: str, size: int) -> Blob:
        """A large file that is known by its hash."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return cls(sha256, size, git_hash(pointer.encode()), lfs=True)


def git_hash(data: bytes) -> str:
    """What git calls these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether the Hub keeps a file outside git: by its name, its size, or because it is no text."""
    return (
        any(fnmatch.fnmatch(path.rsplit("/", 1)[-1], n) for n in LFS_NAMES)
        or size > LFS_BYTES
        or b"\0" in sample
    )


@dataclasses.dataclass(frozen=True)
class Commit:
    """A state of all files."""

    oid: str
    parent: str | None
    title: str
    files: Mapping[str, Blob]


@dataclasses.dataclass
class Pull:
    """A pull request; its commits stand at `refs/pr/NUMBER`."""

    number: int
    title: str
    base: str
    status: str = "draft"
    merged: str | None = None


class Repository:
    """One model's history."""

    def __init__(self, name: str, files: Mapping[str, Blob], oid: str | None = None) -> None:
        self.name = name
        self.commits: dict[str, Commit] = {}
        self.refs: dict[str, str] = {}
        self.pulls: dict[int, Pull] = {}
        self.write("refs/heads/main", files, "initial commit", oid)

    def write(self, ref: str, files: Mapping[str, Blob], title: str, oid: str | None = None) -> Commit:
        """Put a commit on top of a reference."""
        parent = self.refs.get(ref)
        listing = "".join(f"{path} {blob.sha256}\n" for path, blob in sorted(files.items()))
        text = f"{parent} {title} {len(self.commits)}\n{listing}"
        oid = oid or hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.commits[oid] = Commit(oid, parent, title, dict(files))
        self.refs[ref] = oid
        return self.commits[oid]

    def ref(self, revision: str) -> str:
        """The full name of a branch, a tag or a pull request."""
        for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if name in self.refs:
                return name
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def at(self, revision: str) -> Commit:
        """The commit of a branch, a tag, a pull request or a full hash."""
        return (
            self.commits[revision]
            if revision in self.commits
            else self.commits[self.refs[self.ref(revision)]]
        )

    def history(self, revision: str = "main") -> list[Commit]:
        """The commits of a revision, newest first."""
        found, oid = [], self.at(revision).oid
        while oid is not None:
            found.append(self.commits[oid])
            oid = self.commits[oid].parent
        return found

    def tag(self, name: str, revision: str) -> None:
        """Tags are made once."""
        if f"refs/tags/{name}" in self.refs:
            raise Refused(409, "Tag reference exists already")
        self.refs[f"refs/tags/{name}"] = self.at(revision).oid

    def branch(self, name: str, start: str | None) -> None:
        """A new branch at a revision."""
        if name.startswith("refs/"):
            raise Refused(400, "Invalid reference for a branch")
        if f"refs/heads/{name}" in self.refs:
            raise Refused(409, "Reference already exists")
        self.refs[f"refs/heads/{name}"] = self.at(start or "main").oid

    def propose(self, title: str, status: str = "draft") -> Pull:
        """Open a pull request at the head of main."""
        pull = Pull(len(self.pulls) + 1, title, self.at("main").oid, status)
        self.pulls[pull.number] = pull
        self.refs[f"refs/pr/{pull.number}"] = pull.base
        return pull

    def merge(self, number: int) -> Commit:
        """Bring a pull request's files to main as one commit; a file that both changed is a conflict."""
        pull = self.pulls[number]
        if pull.status != "open":
            raise Refused(409, f"This pull request is {pull.status}")
        base, ours, theirs = (self.at(r).files for r in (pull.base, "main", f"refs/pr/{number}"))
        changed = {p for p in {*base, *theirs} if base.get(p) != theirs.get(p)}
        if clash := {p for p in changed if ours.get(p) not in {base.get(p), theirs.get(p)}}:
            raise Refused(409, f"Conflict in {min(clash)}")
        files = {p: b for p, b in ours.items() if p not in changed} | {
            p: theirs[p] for p in changed if p in theirs
        }
        commit = self.write("refs/heads/main", files, f"{pull.title} (#{number})")
        pull.status, pull.merged = "merged", commit.oid
        return commit


class Store:
    """All repositories, and the contents of their files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.RLock()
        self.repositories: dict[str, Repository] = {}

    def create(
        self, name: str, files: Mapping[str, bytes] | None = None, oid: str | None = None
    ) -> Repository:
        """A repository as the Hub makes it: with the file that says what is large."""
        if name in self.repositories:
            raise Refused(409, "You already created this model repo")
        contents = {".gitattributes": ATTRIBUTES} if files is None else files
        blobs = {
            path: self.put(data, lfs=is_large(path, len(data), data[:512])) for path, data in contents.items()
        }
        self.repositories[name] = Repository(name, blobs, oid)
        return self.repositories[name]

    def of(self, name: str) -> Repository:
        """A repository that is there."""
        if name not in self.repositories:
            raise Refused(404, "Repository not found", "RepoNotFound")
        return self.repositories[name]

    def path(self, sha256: str) -> Path:
        """Where a content lies."""
        return self.folder / sha256

    def put(self, data: bytes, *, lfs: bool) -> Blob:
        """Keep a content."""
        blob = Blob.of(data, lfs=lfs)
        self.path(blob.sha256).write_bytes(data)
        return blob

    def data(self, blob: Blob) -> bytes:
        """The bytes of a file."""
        return self.path(blob.sha256).read_bytes()

    def apply(self, files: Mapping[str, Blob], actions: Iterable[Mapping[str, Any]]) -> dict[str, Blob]:
        """Files after the lines of a commit (`file`, `lfsFile`, `deletedFile`, `deletedFolder`)."""
        after = dict(files)
        for action in actions:
            key, value = action["key"], action["value"]
            path = value["path"]
            if key == "file":
                after[path] = self.put(base64.b64decode(value["content"]), lfs=False)
            elif key == "lfsFile":
                there = self.path(value["oid"])
                if not there.exists() or there.stat().st_size != value["size"]:
                    raise Refused(400, f"LFS pointer of {path} points to an object that was not uploaded")
                after[path] = Blob.pointed(value["oid"], value["size"])
            elif key == "deletedFile":
                if path not in after:
                    raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
                del after[path]
            elif key == "deletedFolder":
                after = {p: b for p, b in after.items() if not p.startswith(path.rstrip("/") + "/")}
            else:
                raise Refused(400, f"unknown operation {key}")
        return after
