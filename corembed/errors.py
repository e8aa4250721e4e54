"""The errors of the loader; all share one base, so that a command line can tell them from its own mistakes."""

from __future__ import annotations


class CorembedError(Exception):
    """Base of everything that corembed raises on purpose."""


class ReleaseError(CorembedError):
    """A release that is incomplete, damaged, or of a schema this version does not know."""


class EngineError(CorembedError):
    """An engine that is not there, or cannot run this release without changing its embedding space."""


class TextError(CorembedError, ValueError):
    """A text that cannot be embedded; `index` is its place in the input."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


class TruncationError(TextError):
    """A text longer than the longest bucket, where cutting was not allowed."""


class VectorError(CorembedError, ArithmeticError):
    """An engine gave something that is no embedding (zero, not finite, wrong width); `index` is the text's place."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index
