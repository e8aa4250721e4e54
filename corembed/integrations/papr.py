"""The environment variables of papr's on-device memory, as one adapter.

| variable | meaning here |
| --- | --- |
| `PAPR_ONDEVICE_PROCESSING` | off by default: then nothing is loaded |
| `PAPR_ENABLE_COREML` | allows the Core ML engine |
| `PAPR_ENABLE_MLX` | allows the MLX engine; with Core ML as well, the loader's order decides |
| `PAPR_COREML_MODEL` | release folder, a package folder inside one, or a Hub repository (`ORG/NAME` or `ORG/NAME@REVISION`) |
| `PAPR_COREML_VARIANT` | `fp16`, `int8`, …; the release's first by default |
| `PAPR_COREML_COMPUTE_UNITS` | `ALL`, `CPU_AND_NE`, `CPU_AND_GPU`, `CPU_ONLY` |
| `PAPR_EMBEDDING_MODEL` | the model that the release must have been made from; another one is refused |

Truths are `true`, `1`, `yes`, `on`. `COREMBED_ENGINE`, where it is set, wins over the two that allow engines, so that
a test on Linux can run the very packages.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from corembed import release
from corembed.embedder import Embedder
from corembed.errors import CorembedError

log = logging.getLogger("corembed.papr")

TRUE, FALSE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off", ""}
UNITS = ("ALL", "CPU_AND_NE", "CPU_AND_GPU", "CPU_ONLY")


class SettingError(CorembedError):
    """A variable whose value cannot be followed."""


def settings(environment: Mapping[str, str] | None = None) -> dict[str, Any] | None:
    """The variables as arguments of `Embedder.from_pretrained`; None where on-device embedding is off."""
    environment = os.environ if environment is None else environment
    coreml, mlx = (_flag(environment, f"PAPR_ENABLE_{name}") for name in ("COREML", "MLX"))
    if not _flag(environment, "PAPR_ONDEVICE_PROCESSING"):
        log.info("PAPR_ONDEVICE_PROCESSING is off: nothing is embedded on this device")
        return None
    if not (coreml or mlx):
        log.info("neither PAPR_ENABLE_COREML nor PAPR_ENABLE_MLX is on: nothing is embedded on this device")
        return None
    named = environment.get("PAPR_COREML_MODEL", "").strip()
    if not named:
        raise SettingError("PAPR_COREML_MODEL is not set: name a release folder or a Hub repository")
    model, revision, found = _release(named)
    variant = environment.get("PAPR_COREML_VARIANT", "").strip().lower() or found
    if found not in {None, variant}:
        raise SettingError(
            f"PAPR_COREML_MODEL is {named}, of variant {found}; PAPR_COREML_VARIANT is {variant}"
        )
    units = environment.get("PAPR_COREML_COMPUTE_UNITS", "").strip().upper() or None
    if units not in {None, *UNITS}:
        raise SettingError(f"PAPR_COREML_COMPUTE_UNITS is {units}, expected one of {', '.join(UNITS)}")
    only = None if coreml and mlx else "coreml" if coreml else "mlx"
    engine = environment.get("COREMBED_ENGINE") or only
    chosen = {"revision": revision, "variant": variant, "engine": engine, "compute_units": units}
    return {"folder_or_repo": model} | {name: value for name, value in chosen.items() if value is not None}


def from_environment(environment: Mapping[str, str] | None = None) -> Embedder | None:
    """The embedder that the variables describe; None where on-device embedding is off.

    Unlike in the client these variables come from, nothing falls back in silence: what cannot be followed raises
    `SettingError`, `ReleaseError` or `EngineError`.
    """
    environment = os.environ if environment is None else environment
    arguments = settings(environment)
    if arguments is None:
        return None
    embedder = Embedder.from_pretrained(**arguments)
    wanted, source = environment.get("PAPR_EMBEDDING_MODEL", "").strip(), embedder.release.source.name
    if wanted and _tail(wanted) != _tail(source):
        raise SettingError(
            f"PAPR_EMBEDDING_MODEL is {wanted}, the release {arguments['folder_or_repo']} was made from {source}: "
            "their vectors lie in different spaces"
        )
    return embedder


def _flag(environment: Mapping[str, str], name: str) -> bool:
    value = environment.get(name, "").strip().lower()
    if value not in TRUE | FALSE:
        raise SettingError(f"{name} is {value!r}, expected true or false")
    return value in TRUE


def _release(named: str) -> tuple[str, str | None, str | None]:
    """Folder or repository, its revision, and the variant where a package folder was named."""
    path = Path(named).expanduser()
    if path.exists():
        if (path / release.FILE).is_file():
            return str(path), None, None
        for package in release.read(path.parent).packages if (path.parent / release.FILE).is_file() else ():
            if path.name in {package.variant, *package.paths}:
                return str(path.parent), None, package.variant
        raise SettingError(f"PAPR_COREML_MODEL is {named}: neither a release folder nor a package of one")
    repository, _, revision = named.partition("@")
    if repository.count("/") != 1 or repository.startswith((".", "~", "/")):
        raise SettingError(
            f"PAPR_COREML_MODEL is {named}: there is no such folder, and it is no Hub repository"
        )
    return repository, revision or None, None


def _tail(name: str) -> str:
    """A model's name without where it is from: `hub:Qwen/Qwen3-Embedding-4B` gives `qwen3-embedding-4b`."""
    return name.rsplit(":", 1)[-1].rstrip("/").rsplit("/", 1)[-1].lower()
