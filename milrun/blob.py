"""Reads `weights/weight.bin`: where is a tensor's data, and is that place really inside the file?

The format (coremltools' MILBlob storage, version 2), all little-endian, all structures 64 bytes:
a file header `{count: u32, version: u32, 56 reserved}`, then for each blob a metadata record
`{sentinel: u32 = 0xDEADBEEF, dtype: u32, bytes: u64, data offset: u64, padding bits: u64, 32 reserved}`.
A program refers to the metadata record by its offset. Data stay memory-mapped: nothing is copied here.
"""

from __future__ import annotations

import mmap
import struct
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from milrun.errors import PackageError
from milrun.types import DTYPES, DType

if TYPE_CHECKING:
    from pathlib import Path

_HEADER = struct.Struct("<II56x")
_METADATA = struct.Struct("<IIQQQ32x")
_SENTINEL = 0xDEADBEEF
_VERSION = 2
# Pages of a file larger than this are given back after each use: see `BlobFile.release`.
_RELEASE_ABOVE = 512 << 20
_RELEASE_BLOB = 1 << 20
_NAMES = {t.blob: t for t in DTYPES.values() if t.blob is not None}


@dataclass(frozen=True)
class Blob:
    """One stored tensor: its element type, the offset of its data and its size in bytes."""

    dtype: DType
    offset: int
    nbytes: int
    padding_bits: int

    @property
    def elements(self) -> int:
        """Number of elements, counted from bytes and padding."""
        return (self.nbytes * 8 - self.padding_bits) // self.dtype.bits


class BlobFile:
    """A weight file, mapped privately: writing to an array changes neither the file nor other maps."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        if self.size < _HEADER.size:
            raise PackageError(f"{path.name}: {self.size} bytes, too short for a weight file's header (64).")
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        _, version = _HEADER.unpack_from(self._map)
        if version != _VERSION:
            raise PackageError(f"{path.name}: storage version {version}, expected {_VERSION}.")
        self._releases = self.size > _RELEASE_ABOVE

    def blob(self, offset: int) -> Blob:
        """Validate and return the blob whose metadata record starts at `offset`.

        Raises
        ------
        PackageError
            If the record or its data are not wholly inside the file, or the record is not one.
        """
        if offset < _HEADER.size or offset % 8 or offset + _METADATA.size > self.size:
            raise PackageError(
                f"{self.path.name}: no blob at offset {offset} in a file of {self.size} bytes."
            )
        sentinel, code, nbytes, data, padding = _METADATA.unpack_from(self._map, offset)
        if sentinel != _SENTINEL:
            raise PackageError(f"{self.path.name}: offset {offset} holds no blob record (wrong sentinel).")
        if code not in _NAMES:
            raise PackageError(f"{self.path.name}: blob at {offset} has unknown data type code {code}.")
        if data < _HEADER.size or data > self.size or nbytes > self.size - data:
            raise PackageError(
                f"{self.path.name}: blob at {offset} claims bytes {data}..{data + nbytes} "
                f"of a file of {self.size} bytes."
            )
        dtype = _NAMES[code]
        if data % max(1, dtype.bits // 8):
            raise PackageError(f"{self.path.name}: blob at {offset} has misaligned data at {data}.")
        if padding > nbytes * 8 or (dtype.bits >= 8 and nbytes * 8 % dtype.bits):
            raise PackageError(f"{self.path.name}: blob at {offset} has an impossible size.")
        return Blob(dtype, data, nbytes, padding if dtype.bits < 8 else 0)

    def array(self, blob: Blob) -> npt.NDArray[np.generic]:
        """The blob's stored values, 1-D and uncopied; sub-byte types come packed, as uint8."""
        storage = np.dtype(np.uint8 if blob.dtype.bits < 8 else blob.dtype.storage)
        return np.frombuffer(self._map, storage, blob.nbytes // storage.itemsize, blob.offset)

    def release(self, blob: Blob) -> None:
        """Give the blob's pages back to the system; the next use reads them again.

        Only done for files above 512 MiB, whose pages would otherwise count as this process's memory.
        The mapping is private and never written, so dropping its pages loses nothing.
        """
        if self._releases and blob.nbytes >= _RELEASE_BLOB:
            start = blob.offset // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, start, blob.offset + blob.nbytes - start)


_open: weakref.WeakValueDictionary[tuple[str, int, int], BlobFile] = weakref.WeakValueDictionary()


def open_blob_file(path: Path) -> BlobFile:
    """The `BlobFile` of a path, shared by everything in this process that has it open."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_mtime_ns, stat.st_size)
    file = _open.get(key)
    if file is None:
        file = _open[key] = BlobFile(path)
    return file


def unpack_bits(packed: npt.NDArray[np.uint8], bits: int, count: int) -> npt.NDArray[np.uint8]:
    """Expand `count` unsigned values of `bits` bits each, packed from the least significant bit up."""
    if bits == 8:
        return packed[:count]
    if bits in (1, 2, 4):
        per_byte = 8 // bits
        out = np.empty((packed.size, per_byte), np.uint8)
        mask = (1 << bits) - 1
        for position in range(per_byte):
            np.bitwise_and(packed >> (position * bits), mask, out=out[:, position])
        return out.reshape(-1)[:count]
    flat = np.unpackbits(packed, bitorder="little")[: count * bits].reshape(count, bits)
    weights = (1 << np.arange(bits)).astype(np.uint8)
    result: npt.NDArray[np.uint8] = (flat * weights).sum(axis=1, dtype=np.uint8)
    return result
