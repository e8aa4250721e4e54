"""Writes `weight.bin`, Core ML's file of weights, at planned offsets, so that rows can be streamed into it.

The format is that of coremltools' `MILBlob` storage: a 64-byte header (count, version 2), then for each blob 64
bytes of metadata (sentinel, type, size and offset of the data, unused bits of the last byte), then its data; both
aligned to 64 bytes. coremltools' own writer takes whole arrays only; a test compares the bytes with its.
"""

from __future__ import annotations

import dataclasses
import math
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

ALIGNMENT = 64
_SENTINEL = 0xDEADBEEF

TYPES = {
    "float16": (1, 16),
    "float32": (2, 32),
    "uint8": (3, 8),
    "int8": (4, 8),
    "int16": (6, 16),
    "uint16": (7, 16),
    "int4": (8, 4),
    "uint1": (9, 1),
    "uint2": (10, 2),
    "uint4": (11, 4),
    "uint6": (13, 6),
    "int32": (14, 32),
}
"""MILBlob's number and the width in bits of each type."""


@dataclasses.dataclass(frozen=True)
class Blob:
    """One array to be written: its type and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bits(self) -> int:
        """Width of all values."""
        return math.prod(self.shape) * TYPES[self.dtype][1]

    @property
    def bytes(self) -> int:
        """Size of the packed data."""
        return -(-self.bits // 8)


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def plan(blobs: Iterable[Blob]) -> tuple[list[int], int]:
    """The offset of each blob's metadata, and the size of the file."""
    offsets, end = [], ALIGNMENT
    for blob in blobs:
        offsets.append(_aligned(end))
        end = offsets[-1] + ALIGNMENT + blob.bytes
    return offsets, end


class Writer:
    """A `weight.bin` whose blobs are all known and whose data comes in any pieces."""

    def __init__(self, path: Path, blobs: list[Blob]) -> None:
        """Reserve the file and write its metadata."""
        self.blobs = blobs
        self.offsets, size = plan(blobs)
        self.file: BinaryIO = path.open("wb")
        self.file.truncate(size)
        self.file.write(struct.pack("<II", len(blobs), 2))
        for blob, offset in zip(blobs, self.offsets, strict=True):
            number, _ = TYPES[blob.dtype]
            padding = blob.bytes * 8 - blob.bits
            self.file.seek(offset)
            self.file.write(struct.pack("<IIQQQ", _SENTINEL, number, blob.bytes, offset + ALIGNMENT, padding))
        self.written = [0] * len(blobs)

    def append(self, index: int, data: bytes) -> None:
        """Write the next bytes of a blob's data."""
        if self.written[index] + len(data) > self.blobs[index].bytes:
            raise ValueError(f"blob {index} holds {self.blobs[index].bytes} bytes, given more")
        self.file.seek(self.offsets[index] + ALIGNMENT + self.written[index])
        self.file.write(data)
        self.written[index] += len(data)

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Flush to disk; a blob that is not filled is an error."""
        try:
            if kind is None:
                short = [i for i, blob in enumerate(self.blobs) if self.written[i] != blob.bytes]
                if short:
                    raise ValueError(f"blob {short[0]} is not filled")
                self.file.flush()
                os.fsync(self.file.fileno())
        finally:
            self.file.close()
