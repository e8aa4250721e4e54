"""Where corembed keeps what it downloads and compiles.

```
CACHE/releases/OWNER--REPO/COMMIT/   a release, as far as it was needed
CACHE/releases/OWNER--REPO/refs/     which commit a tag or branch was last seen at
CACHE/sources/OWNER--REPO/COMMIT/    a source checkpoint, for engines that run it
CACHE/compiled/KEY/                  a compiled Core ML model
CACHE/verified/, CACHE/locks/        notes of what was hashed; one lock for each of the above
```
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

VARIABLE = "COREMBED_CACHE"


def cache() -> Path:
    """The cache folder: `COREMBED_CACHE`, or the user's own for this system."""
    if asked := os.environ.get(VARIABLE):
        return Path(asked).expanduser()
    if platform.system() == "Darwin":
        return Path.home() / "Library" / "Caches" / "corembed"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "corembed"


def lock(name: str) -> Path:
    """The lock file of this name."""
    folder = cache() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.lock"


def offline() -> bool:
    """Whether the network must not be used: `COREMBED_OFFLINE` or `HF_HUB_OFFLINE`."""
    return any(
        os.environ.get(name, "").lower() in {"1", "true", "yes", "on"}
        for name in ("COREMBED_OFFLINE", "HF_HUB_OFFLINE")
    )
