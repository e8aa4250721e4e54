"""Which state of the code made a release: the git commit, and what keeps it from being reproducible."""

from __future__ import annotations

import dataclasses
import subprocess
import urllib.parse
from pathlib import Path

ROOT = Path(__file__).parent.parent

CODE = ("corembed", "milrun", "pipeline", "params.yaml", "dvc.yaml", "pyproject.toml")
"""What decides a release's bytes. Its commit is the last one that touched any of these, so that committing a receipt
does not turn an unchanged release into another one."""

_OWN_OUTPUTS = ("reports/publish/", "dvc.lock")  # publishing itself writes these, also when it is interrupted


@dataclasses.dataclass(frozen=True)
class Checkout:
    """`commit` is None outside git; `changed` are files that differ from it; `pushed`: a remote has the commit."""

    commit: str | None
    origin: str | None
    changed: tuple[str, ...]
    pushed: bool

    @property
    def problem(self) -> str | None:
        """Why nobody else could make this release again, or None."""
        if self.commit is None:
            return "the code is in no git commit: commit it and push it"
        if self.changed:
            return (
                f"{len(self.changed)} files differ from git (first: {self.changed[0]}): commit and push them"
            )
        if not self.pushed:
            return f"commit {self.commit[:12]} is on no remote branch: run git push"
        return None


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603  # fixed arguments
            ["git", "-C", str(root), *arguments],  # noqa: S607  # the user's git
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None


def public_address(url: str | None) -> str | None:
    """A remote's address without the name and password that it may hold; None for a folder of this machine."""
    if url is None:
        return None
    parts = urllib.parse.urlsplit(url)
    if parts.scheme in {"https", "http", "ssh", "git"} and parts.hostname:
        return urllib.parse.urlunsplit((parts.scheme, parts.hostname, parts.path, "", ""))
    user, at, rest = url.partition("@")  # git@host:owner/name
    return f"ssh://{rest.replace(':', '/', 1)}" if at and ":" in rest and "/" not in user else None


def read(root: Path = ROOT) -> Checkout:
    """The state of the checkout that this code is in."""
    commit = _git(root, "log", "-1", "--format=%H", "HEAD", "--", *CODE)
    if not commit or _git(
        root, "rev-parse", "--show-prefix"
    ):  # no git, or the code lies inside somebody else's
        return Checkout(None, None, (), pushed=False)
    status = _git(root, "status", "--porcelain", "--untracked-files=all") or ""
    paths = [line[3:] for line in status.splitlines()]
    changed = tuple(sorted(p for p in paths if not p.startswith(_OWN_OUTPUTS)))
    pushed = bool(_git(root, "for-each-ref", "--contains", "HEAD", "--count=1", "refs/remotes"))
    return Checkout(commit, public_address(_git(root, "remote", "get-url", "origin")), changed, pushed=pushed)
