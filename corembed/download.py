"""A release's files on this machine: from a folder, or from the Hub at one commit, checked before they are used.

Files are named one by one (on the Hub a pattern like `*.json` crosses folders) and arrive in a real folder of
corembed's own cache: whether Core ML compiles a package made of links, as the Hub's cache is, is unknown. What was
interrupted is continued.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from corembed import places, release, trust
from corembed.errors import ReleaseError
from corembed.release import File, Package, Release

_log = logging.getLogger("corembed")


@dataclasses.dataclass(frozen=True)
class Located:
    """A release and the folder that holds as much of it as was needed. `repo` is None for a folder of the user's."""

    record: Release
    folder: Path
    repo: str | None = None
    commit: str | None = None
    token: str | None = dataclasses.field(default=None, repr=False)

    def require(self, files: Mapping[str, File]) -> None:
        """Have these files, checked: fetched or fetched again if need be; a folder of the user's is only read."""
        if self.repo is not None and self.commit is not None:
            ensure(self.repo, self.commit, self.folder, files, self.token)
            return
        for name, problem in trust.problems(self.folder, files).items():
            raise ReleaseError(f"{self.folder / name}: {problem}; fetch the release again")

    def basics(self) -> None:
        """Have what every engine needs: tokenizer and configuration."""
        self.require(
            {
                name: file
                for name, file in self.record.files.items()
                if name.endswith(".json") and "/" not in name
            }
        )

    def packages(self, package: Package) -> list[Path]:
        """The folders of one variant in one layout."""
        wanted = {
            name: file
            for name, file in self.record.files.items()
            if any(name.startswith(path + "/") for path in package.paths)
        }
        for path in package.paths:
            if not any(name.startswith(path + "/") for name in wanted):
                raise ReleaseError(f"{release.FILE} lists no file of {path}: the release is incomplete")
        self.require(wanted)
        return [self.folder / release.confined(path) for path in package.paths]


def locate(folder_or_repo: str | Path, revision: str | None = None, token: str | None = None) -> Located:
    """Find a release: a folder that is there, else a Hub repository at a revision (tag, branch or full commit).

    Of the Hub's only `release.json` is fetched. Offline, a revision that was fetched before is used. A revision that
    cannot be asked for just now (no network) is taken as it was last seen, with a warning.
    """
    folder = Path(folder_or_repo).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ReleaseError(f"{folder} is a folder: it has no revision {revision!r}")
        return Located(release.read(folder), folder)
    repo = str(folder_or_repo)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo) or repo.startswith((".", "/")):
        raise ReleaseError(f"{repo}: no such folder, and no name of a Hub repository (OWNER/NAME)")
    home = places.cache() / "releases" / repo.replace("/", "--")
    commit = _commit(repo, revision or "main", home / "refs", token)
    folder = home / commit
    if not (folder / release.FILE).is_file():
        _refuse_offline(f"{repo}@{revision or commit}", [release.FILE])
        import filelock  # noqa: PLC0415

        with filelock.FileLock(places.lock(f"{home.name}-{commit}")):
            _get(repo, commit, release.FILE, folder, token)
    return Located(release.read(folder), folder, repo, commit, token)


def _commit(repo: str, revision: str, refs: Path, token: str | None) -> str:
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    note = refs / urllib.parse.quote(revision, safe="")
    seen = note.read_text(encoding="utf-8") if note.is_file() else None
    if places.offline():
        if seen is None:
            raise ReleaseError(
                f"{repo}@{revision}: offline, and never fetched before; fetch it once with a network"
            )
        return seen
    from huggingface_hub import get_hf_file_metadata, hf_hub_url  # noqa: PLC0415

    url = hf_hub_url(repo, release.FILE, revision=revision)
    try:
        commit = _ask(repo, revision, lambda: get_hf_file_metadata(url, token=token).commit_hash)
    except _UnreachableError as error:
        if seen is None:
            raise
        _log.warning("%s; using %s as it was last seen, commit %s", error, revision, seen)
        return seen
    if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise ReleaseError(f"{repo}@{revision}: the Hub named no commit for it; its answer was {commit!r}")
    note.parent.mkdir(parents=True, exist_ok=True)
    partial = note.with_name(f".{note.name}.{commit}")
    partial.write_text(commit, encoding="utf-8")
    partial.replace(note)
    return commit


def ensure(repo: str, commit: str, folder: Path, files: Mapping[str, File], token: str | None = None) -> None:
    """Have these files of a repository in `folder`, each of the right size and SHA-256, or raise `ReleaseError`."""
    import filelock  # noqa: PLC0415

    with filelock.FileLock(places.lock(f"{folder.parent.name}-{folder.name}")):
        wrong = trust.problems(folder, files)
        if wrong:
            _refuse_offline(f"{repo}@{commit}", [f"{name} ({problem})" for name, problem in wrong.items()])
        for name, problem in wrong.items():
            if problem != "missing":
                _log.warning("%s: %s; it is fetched again", folder / name, problem)
                (folder / name).unlink()
            _get(repo, commit, name, folder, token)
        for name, problem in trust.problems(folder, {name: files[name] for name in wrong}).items():
            (folder / name).unlink(missing_ok=True)
            raise ReleaseError(
                f"{repo}@{commit}: {name}: {problem}: what the Hub gives is not what was released; it was deleted"
            )
        (folder / ".used").touch()


def _refuse_offline(what: str, names: list[str]) -> None:
    if places.offline():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise ReleaseError(
            f"{what}: offline, and {names[0]}{more} not in the cache; fetch it once with a network"
        )


def _get(repo: str, commit: str, name: str, folder: Path, token: str | None) -> None:
    from huggingface_hub import hf_hub_download  # noqa: PLC0415

    release.confined(name)
    _ask(
        repo,
        commit,
        lambda: hf_hub_download(repo, name, revision=commit, local_dir=folder, token=token),
    )


class _UnreachableError(ReleaseError):
    """The Hub cannot be reached, or did not finish its answer."""


def _ask(repo: str, revision: str, question: Any) -> Any:
    """Ask the Hub, and say in one sentence why it did not answer."""
    from huggingface_hub import errors  # noqa: PLC0415

    try:
        return question()
    except errors.GatedRepoError as error:
        raise ReleaseError(
            f"{repo}: access must be asked for on its page, with the account of your token"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ReleaseError(f"{repo}: no such repository, or not visible to your token") from error
    except errors.RevisionNotFoundError as error:
        raise ReleaseError(f"{repo}: no tag, branch or commit {revision!r}") from error
    except errors.LocalEntryNotFoundError as error:
        raise _UnreachableError(f"{repo}: the Hub could not be reached; try again") from error
    except errors.EntryNotFoundError as error:
        raise ReleaseError(
            f"{repo}@{revision}: a file of it is not there; it is not a corembed release"
        ) from error
    except (
        Exception
    ) as error:  # which HTTP client the library uses has changed twice; all else here is the network's
        reason = re.sub(r"\?\S*", "?…", str(error).strip().split("\n")[0])  # addresses may carry signatures
        raise _UnreachableError(
            f"{repo}@{revision}: the download stopped ({type(error).__name__}: {reason}); call again to continue it"
        ) from error
