"""What a command says instead of a traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class UserError(Exception):
    """Something that whoever called the command can put right; the message says how."""


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """Imports inside may be missing: then the message names the extra that brings them."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"needs the package {error.name}: pip install 'corembed[{extra}]'") from error
