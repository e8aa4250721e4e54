"""Brings a release folder to a Hub repository so that `main` is at every moment the old or the new release, whole.

Large files go first, each content once; nothing refers to them until one commit, which names its parent, adds,
replaces and removes everything together. Where one commit would hold too many files, they are staged on a pull
request and merged. Then the tag, which is made once. Each step looks first at what is there already, so a run
after an interruption finishes the work, and a run after that finds nothing to do.

An answer that was lost may hide work that was done: after a failed commit the repository is read again before
anything is repeated. Messages name files and statuses, never addresses: those of uploads are signed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from corembed.release import File
from pipeline.errors import PipelineError

TRIES = 6
_STALE = 412  # HTTP: the parent that a commit names is not the head
KEPT = frozenset({".gitattributes"})
"""The Hub's own files: it decides there what is large."""

Operation = CommitOperationAdd | CommitOperationDelete
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Pushed:
    """What a push led to. `made` is false where everything was there already; `tag` is None for a pull request."""

    commit: str
    tag: str | None
    pull_request: str | None
    made: bool


@dataclasses.dataclass(frozen=True)
class State:
    """The files of a revision: a hash for each, SHA-256 of a large one, git's of a small one."""

    commit: str
    files: Mapping[str, str]


def git_hash(path: Path) -> str:
    """What git calls a file's content."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _passing(error: BaseException | None) -> bool:
    """Whether the same request may succeed later: the network, a busy server, an upload address that expired."""
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            status = error.response.status_code
            return status in {408, 429} or status >= 500 or (status == 403 and "expired" in str(error))
        if isinstance(error, httpx2.TransportError):
            return True
        error = error.__cause__
    return False


def _reason(error: BaseException) -> str:
    """An error without the address that it was about."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HfHubHTTPError):
            said = cause.server_message or ""
            return f"HTTP {cause.response.status_code} {said}".strip()
        if isinstance(cause, httpx2.TransportError):
            return type(cause).__name__
        cause = cause.__cause__
    return type(error).__name__


class Repository:
    """One Hub repository, spoken to with patience."""

    def __init__(self, api: HfApi, name: str, wait: Callable[[float], None] = time.sleep) -> None:
        self.api, self.name, self.wait = api, name, wait

    def call(self, what: str, action: Callable[[], T]) -> T:
        """Do something that may be repeated; passing faults are waited out, others become one line."""
        for attempt in itertools.count(1):
            try:
                return action()
            except (HfHubHTTPError, httpx2.TransportError, RuntimeError) as error:
                if not _passing(error) or attempt == TRIES:
                    advice = (
                        "run again to continue"
                        if _passing(error)
                        else "check the name and your token's rights"
                    )
                    raise PipelineError(f"{self.name}: {what} failed: {_reason(error)}; {advice}") from error
                self.wait(min(2.0 ** (attempt - 1), 16))
        raise AssertionError

    def state(self, revision: str) -> State:
        """The files of a branch, tag, pull request or commit."""
        info = self.call("reading", lambda: self.api.model_info(self.name, revision=revision))
        commit = str(info.sha)
        listing = self.call(
            "listing", lambda: list(self.api.list_repo_tree(self.name, recursive=True, revision=commit))
        )
        files = {f.path: f.lfs.sha256 if f.lfs else f.blob_id for f in listing if isinstance(f, RepoFile)}
        return State(commit, files)

    def find(self, revision: str) -> State | None:
        """`state`, or None where there is no such revision."""
        try:
            return self.state(revision)
        except PipelineError as error:
            if isinstance(error.__cause__, RevisionNotFoundError):
                return None
            raise


class Push:
    """One release on its way: `folder` and `files` (path to size and SHA-256) to `repository` as `tag`."""

    def __init__(self, repository: Repository, folder: Path, files: Mapping[str, File], tag: str) -> None:
        self.repository, self.api, self.name = repository, repository.api, repository.name
        self.folder, self.files, self.tag = folder, files, tag
        self._git = {path: git_hash(folder / path) for path in files if files[path].bytes <= 10 << 20}

    def differences(self, state: State) -> list[Operation]:
        """What turns a state into the release: files to add or replace, files to remove."""
        there = state.files
        changed = [
            p for p, f in self.files.items() if there.get(p) not in {f.sha256, self._git.get(p, f.sha256)}
        ]
        gone = sorted(set(there) - set(self.files) - KEPT)
        operations: list[Operation] = [CommitOperationAdd(p, str(self.folder / p)) for p in changed]
        return operations + [CommitOperationDelete(p) for p in gone]

    def upload(self, operations: list[Operation], revision: str) -> None:
        """Large files, each content once: the client would send equal files of one commit side by side."""
        additions = [o for o in operations if isinstance(o, CommitOperationAdd)]
        unique = {self.files[o.path_in_repo].sha256: o for o in additions}
        self.repository.call(
            "uploading",
            lambda: self.api.preupload_lfs_files(
                self.name, additions=list(unique.values()), revision=revision
            ),
        )

    def commit(self, revision: str, parent: State, operations: list[Operation]) -> State:
        """One commit on top of `parent`; whatever happens, the state that was asked for or an error."""
        wanted = {o.path_in_repo for o in operations}
        for attempt in itertools.count(1):
            self.upload(operations, revision)
            try:
                self.api.create_commit(
                    self.name,
                    operations,
                    commit_message=f"Release {self.tag}",
                    revision=revision,
                    parent_commit=parent.commit,
                )
            except (HfHubHTTPError, httpx2.TransportError, RuntimeError) as error:
                failure = error
            else:
                return self.repository.state(revision)
            now = self.repository.state(revision)
            left = [o for o in self.differences(now) if o.path_in_repo in wanted]
            if now.commit != parent.commit and not left:
                return now  # it was made, and only the answer was lost
            stale = isinstance(failure, HfHubHTTPError) and failure.response.status_code == _STALE
            if stale or now.commit != parent.commit:
                raise PipelineError(
                    f"{self.name}: {revision} moved on from {parent.commit[:12]} (now {now.commit[:12]}): somebody else "
                    "writes there. Nothing was changed; look at it, then run again"
                ) from failure
            if not _passing(failure) or attempt == TRIES:
                raise PipelineError(
                    f"{self.name}: the commit failed: {_reason(failure)}; run again"
                ) from failure
            self.repository.wait(min(2.0 ** (attempt - 1), 16))
            operations = left
        raise AssertionError

    def _pull(self, title: str) -> int:
        """The number of the open pull request of this title; opened if there is none, and never twice."""
        for attempt in itertools.count(1):
            pulls = self.repository.call(
                "listing pull requests",
                lambda: list(
                    self.api.get_repo_discussions(
                        self.name, discussion_type="pull_request", discussion_status="open"
                    )
                ),
            )
            if number := next((p.num for p in pulls if p.title == title), None):
                return number
            try:
                return self.api.create_pull_request(self.name, title=title).num
            except (HfHubHTTPError, httpx2.TransportError) as error:
                if not _passing(error) or attempt == TRIES:
                    raise PipelineError(
                        f"{self.name}: opening a pull request failed: {_reason(error)}; run again"
                    ) from error
                self.repository.wait(min(2.0 ** (attempt - 1), 16))
        raise AssertionError

    def stage(self, main: State, limit: int) -> tuple[int, bool]:
        """The release on a pull request, in commits of at most `limit` operations: its number, and if any was made."""
        number = self._pull(f"Release {self.tag} on {main.commit[:12]}")
        reference = f"refs/pr/{number}"
        state, made = self.repository.state(reference), False
        while operations := self.differences(state):
            state, made = self.commit(reference, state, operations[:limit]), True
        details = self.repository.call("reading", lambda: self.api.get_discussion_details(self.name, number))
        if details.status == "draft":
            self.repository.call(
                "opening", lambda: self.api.change_discussion_status(self.name, number, "open")
            )
        return number, made

    def merged(self, main: State, number: int) -> State:
        """Main after the pull request was merged."""
        now = self.repository.state("main")
        if now.commit != main.commit and self.differences(now):
            raise PipelineError(
                f"{self.name}: main moved to {now.commit[:12]} meanwhile; look at it, then run again"
            )
        try:
            self.repository.call("merging", lambda: self.api.merge_pull_request(self.name, number))
        except PipelineError:
            if self.differences(self.repository.state("main")):
                raise
        return self.repository.state("main")

    def to_main(self, limit: int) -> Pushed:
        """Make `main` this release, then tag it."""
        if tagged := self.repository.find(self.tag):
            if differing := self.differences(tagged):
                raise PipelineError(
                    f"{self.name}: tag {self.tag} exists and holds another release (first difference: "
                    f"{differing[0].path_in_repo}); tags are never moved: raise publish.version"
                )
            return Pushed(tagged.commit, self.tag, None, made=False)
        main = self.repository.state("main")
        operations = self.differences(main)
        state = main
        if operations:
            if len(operations) <= limit:
                state = self.commit("main", main, operations)
            else:
                state = self.merged(main, self.stage(main, limit)[0])
        if self.differences(state):
            raise PipelineError(
                f"{self.name}: main is not this release after the commit; somebody else writes there"
            )
        self._set_tag(state.commit)
        return Pushed(state.commit, self.tag, None, made=bool(operations))

    def _set_tag(self, commit: str) -> None:
        try:
            self.repository.call(
                "tagging", lambda: self.api.create_tag(self.name, tag=self.tag, revision=commit)
            )
        except PipelineError as error:
            tagged = self.repository.find(self.tag)
            if tagged is None or tagged.commit != commit:
                raise PipelineError(
                    f"{self.name}: tag {self.tag} could not be set on {commit[:12]}: {error}"
                ) from error

    def to_pull_request(self, limit: int) -> Pushed:
        """Propose this release; the tag comes when it is merged and publish is run again without `create_pr`."""
        main = self.repository.state("main")
        if not self.differences(main):
            return Pushed(main.commit, None, None, made=False)
        number, made = self.stage(main, limit)
        state = self.repository.state(f"refs/pr/{number}")
        return Pushed(state.commit, None, f"{self.api.endpoint}/{self.name}/discussions/{number}", made=made)
