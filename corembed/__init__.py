"""Text-embedding models on Apple silicon: a published release in, vectors out."""

from corembed.embedder import Embedder
from corembed.errors import CorembedError, EngineError, ReleaseError, TextError, TruncationError, VectorError
from corembed.release import Release

__version__ = "0.1.0"
__all__ = [
    "CorembedError",
    "Embedder",
    "EngineError",
    "Release",
    "ReleaseError",
    "TextError",
    "TruncationError",
    "VectorError",
    "__version__",
]
