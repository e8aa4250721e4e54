"""What a server allows: limits, names, keys."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import os
from pathlib import Path

KEY_VARIABLE = "COREMBED_API_KEY"
"""Environment variable that holds the API key where no file is given."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Limits of a server. A request beyond one is refused with the limit in the message.

    `inputs` is OpenAI's own limit of texts in a request; `text_bytes` and `body_bytes` are of UTF-8; `waiting` is
    how many requests may wait or run at once, the next is answered 429; one that has waited `wait_seconds`
    without its turn is answered 503; `combined` is how many texts of waiting requests are embedded in one call.
    `truncate` cuts texts beyond the model's longest bucket instead of refusing them. `names` are the model names
    a request may use. `keys` are SHA-256 digests of the accepted API keys; empty means that none is asked for.
    """

    names: tuple[str, ...]
    keys: tuple[bytes, ...] = ()
    inputs: int = 2048
    text_bytes: int = 1 << 18
    body_bytes: int = 1 << 24
    waiting: int = 64
    wait_seconds: float = 60.0
    combined: int = 64
    truncate: bool = False

    def admits(self, key: str) -> bool:
        """Is this one of the keys? Takes the same time whichever differs, and wherever it does."""
        digest = _digest(key)
        return any([hmac.compare_digest(digest, known) for known in self.keys])  # noqa: C419  # all are compared


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def read_keys(file: Path | None) -> tuple[bytes, ...]:
    """Digests of the keys in a file, one a line, or of the one in the environment.

    A key is never an argument of the command: every user of a machine may read those. Raises `ValueError` where a
    file holds no key.
    """
    if file is None:
        key = os.environ.get(KEY_VARIABLE, "").strip()
        return (_digest(key),) if key else ()
    try:
        lines = file.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a text of API keys: {error}") from error
    keys = tuple(_digest(line.strip()) for line in lines if line.strip())
    if not keys:
        raise ValueError(f"{file} holds no API key: write one a line")
    return keys
