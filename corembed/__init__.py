"""Text-embedding models on Apple silicon: a published release in, vectors out."""

from corembed.embedder import Embedder
from corembed.release import Release, ReleaseError

__version__ = "0.1.0"
__all__ = ["Embedder", "Release", "ReleaseError", "__version__"]
