"""Failures that a user can act on, and how a command reports them."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable


class PipelineError(Exception):
    """What was wrong, where, what was expected and what to do, in one line."""


def run(command: Callable[[], None]) -> None:
    """Run a command; turn a failure that a user can act on into one line on stderr and exit code 1."""
    try:
        command()
    except PipelineError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS}:
            raise
        sys.exit(
            f"error: cannot write {error.filename or 'the output'}: {error.strerror}. Nothing was left "
            "half-written at its final place; free space or choose another folder, then run the same command."
        )
    except KeyboardInterrupt:
        sys.exit("interrupted: run the same command again to continue")
