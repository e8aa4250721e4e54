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
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt

ALIGNMENT = 64
_SENTINEL = 0xDEADBEEF

_QUEUE = 4  # pieces that wait to be written
_EARLY = 128 << 20  # bytes after which the disk is asked to begin

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
    """A `weight.bin` whose blobs are all known and whose data comes in any pieces.

    Pieces are written by a thread of their own, and another asks the disk to begin early: otherwise all of a large
    file waits in memory for the end.
    """

    def __init__(self, path: Path, blobs: list[Blob]) -> None:
        """Reserve the file and write its metadata."""
        self.blobs = blobs
        self.offsets, size = plan(blobs)
        self.file: BinaryIO = path.open("wb", buffering=0)
        self.file.truncate(size)
        self.file.write(struct.pack("<II", len(blobs), 2))
        for blob, offset in zip(blobs, self.offsets, strict=True):
            number, _ = TYPES[blob.dtype]
            padding = blob.bytes * 8 - blob.bits
            metadata = struct.pack("<IIQQQ", _SENTINEL, number, blob.bytes, offset + ALIGNMENT, padding)
            os.pwrite(self.file.fileno(), metadata, offset)
        self.written = [0] * len(blobs)
        self._threads, self._flusher = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._pending: deque[Future[None]] = deque()
        self._flush: Future[None] | None = None
        self._dirty = 0

    def append(self, index: int, data: bytes | npt.NDArray[np.uint8]) -> None:
        """Write the next bytes of a blob's data, which must not change afterwards."""
        view = memoryview(data)
        if self.written[index] + len(view) > self.blobs[index].bytes:
            raise ValueError(f"blob {index} holds {self.blobs[index].bytes} bytes, given more")
        while len(self._pending) >= _QUEUE:
            self._pending.popleft().result()
        offset = self.offsets[index] + ALIGNMENT + self.written[index]
        self._pending.append(self._threads.submit(self._write, view, offset))
        self.written[index] += len(view)
        self._dirty += len(view)
        if self._dirty >= _EARLY and (self._flush is None or self._flush.done()):
            self._flush, self._dirty = self._flusher.submit(os.fsync, self.file.fileno()), 0

    def _write(self, data: memoryview, offset: int) -> None:
        while data:
            done = os.pwrite(self.file.fileno(), data, offset)
            data, offset = data[done:], offset + done

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Flush to disk; a blob that is not filled is an error."""
        try:
            while self._pending and kind is None:
                self._pending.popleft().result()
            self._threads.shutdown()
            self._flusher.shutdown()
            if kind is None:
                short = [i for i, blob in enumerate(self.blobs) if self.written[i] != blob.bytes]
                if short:
                    raise ValueError(f"blob {short[0]} is not filled")
                os.fsync(self.file.fileno())
        finally:
            self.file.close()
