"""Text-embedding models on Apple silicon: a published release in, vectors out."""

__version__ = "0.1.0"
