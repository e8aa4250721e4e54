"""Reads a safetensors checkpoint a block of rows at a time, so that memory never depends on its size.

The safetensors library maps whole shards into memory, and mapped pages count as resident; plain reads at an
offset keep the peak at one block. The format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import PipelineError
from pipeline.files import read_json

BLOCK = 32 << 20  # bytes of float32 in a block of rows
HALVES = 2 << 20  # values in a block of FP16: small enough that the allocator uses the same memory again
_INFINITE = 0x7C00  # the bits of FP16's infinity
_TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_EXPONENT = {"F32": (np.uint32, 0x7F800000), "F16": (np.uint16, 0x7C00), "BF16": (np.uint16, 0x7F80)}
_WIDTH = {"F32": 4, "F16": 2, "BF16": 2}
_MAX_HEADER = 100 << 20  # bytes; the safetensors library's own bound


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint: `offset` counts bytes from the start of `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int


class Checkpoint:
    """The tensors of a folder's safetensors files; nothing is read but the headers until rows are asked for."""

    def __init__(self, folder: Path) -> None:
        """Read and check the headers of all shards in `folder`."""
        self.folder = folder
        self.tensors = {t.name: t for shard in shards(folder) for t in _header(shard)}

    def find(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor of this name, whose shape and type must be the expected ones."""
        if name not in self.tensors:
            raise PipelineError(
                f"{self.folder}: no tensor {name!r} in the checkpoint; its files do not fit its config.json"
            )
        tensor = self.tensors[name]
        if tensor.shape != shape:
            raise PipelineError(
                f"{tensor.file}: tensor {name!r} has shape {list(tensor.shape)}, config.json implies {list(shape)}"
            )
        if tensor.dtype not in _WIDTH:
            raise PipelineError(
                f"{tensor.file}: tensor {name!r} has type {tensor.dtype}; only {', '.join(_WIDTH)} can be converted"
            )
        return tensor

    def rows(self, tensor: Tensor, multiple: int = 1) -> Iterator[npt.NDArray[np.float32]]:
        """Blocks of whole rows along the first axis as float32, each but the last a multiple of `multiple` rows."""
        row = math.prod(tensor.shape[1:])
        count = max(BLOCK // (4 * row) // multiple, 1) * multiple
        for raw in _read(tensor, count * row):
            values = torch.frombuffer(raw, dtype=_TORCH[tensor.dtype])
            bits, exponent = _EXPONENT[tensor.dtype]
            if (np.frombuffer(raw, bits) & exponent).max() == exponent:  # all ones: infinite or NaN
                raise PipelineError(
                    f"{tensor.file}: tensor {tensor.name!r} holds NaN or infinite values; the checkpoint is damaged"
                )
            yield values.float().numpy().reshape(-1, *tensor.shape[1:])

    def halves(self, tensor: Tensor) -> Iterator[npt.NDArray[np.uint8]]:
        """The bytes of the tensor's values in order, rounded to FP16; one that FP16 cannot hold is an error.

        The same rounding as of `rows`, several times as fast: torch converts from bfloat16 directly.
        """
        for raw in _read(tensor, HALVES):
            values = torch.frombuffer(raw, dtype=_TORCH[tensor.dtype])
            halves = torch.empty_like(values, dtype=torch.float16).copy_(values).numpy()
            # The bits of an infinity or a NaN are the largest of its sign: two integer maxima find them all.
            if halves.view(np.int16).max() >= _INFINITE or halves.view(np.uint16).max() >= 0x8000 | _INFINITE:
                worst = float(values.abs().max())
                if not math.isfinite(worst):
                    raise PipelineError(
                        f"{tensor.file}: tensor {tensor.name!r} holds NaN or infinite values; the checkpoint is damaged"
                    )
                raise PipelineError(
                    f"weight {tensor.name!r} holds {worst:g}, beyond FP16's largest number 65504: "
                    "it cannot be converted to FP16"
                )
            yield halves.view(np.uint8)


def _read(tensor: Tensor, count: int) -> Iterator[bytearray]:
    """`count` values at a time (fewer at the end), each block read while the one before is worked on."""
    width = _WIDTH[tensor.dtype]
    left = math.prod(tensor.shape) * width

    def block(file: FileIO, size: int) -> bytearray:
        raw = bytearray(size)
        if file.readinto(raw) != size:
            raise PipelineError(f"{tensor.file}: cut short while it was read; download it again")
        return raw

    with tensor.file.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as reader:
        file.seek(tensor.offset)
        ahead = reader.submit(block, file, min(left, count * width))
        while left:
            raw = ahead.result()
            left -= len(raw)
            if left:
                ahead = reader.submit(block, file, min(left, count * width))
            yield raw


def shards(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: those its index names, or the one file."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(read_json(index)["weight_map"].values()))
        for name in names:
            if Path(name).name != name:
                raise PipelineError(
                    f"{index}: shard {name!r} is not a plain file name; the index is not to be trusted"
                )
            if not (folder / name).exists():
                raise PipelineError(
                    f"{folder / name}: this shard, which {index.name} names, is missing; download the checkpoint again"
                )
        return [folder / name for name in names]
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    pickles = [p.name for p in sorted(folder.glob("*.bin"))]
    found = f" It holds {pickles[0]}, a pickle, which can run code when it is loaded." if pickles else ""
    raise PipelineError(
        f"{folder}: no model.safetensors.{found} Only safetensors checkpoints are read; convert it first"
    )


def _header(path: Path) -> list[Tensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise PipelineError(
                f"{path}: not a safetensors file, or cut short ({size} bytes); download it again"
            )
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise PipelineError(
                f"{path}: its header is not JSON; the file is damaged, download it again"
            ) from error
    header.pop("__metadata__", None)
    tensors = []
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        shape = tuple(entry["shape"])
        if 8 + length + end > size:
            raise PipelineError(
                f"{path}: cut short: tensor {name!r} ends at byte {8 + length + end} of a file of {size}; download it again"
            )
        if entry["dtype"] in _WIDTH and end - begin != math.prod(shape) * _WIDTH[entry["dtype"]]:
            raise PipelineError(
                f"{path}: tensor {name!r} has {end - begin} bytes, its shape {list(shape)} needs another number"
            )
        tensors.append(Tensor(name, entry["dtype"], shape, path, 8 + length + begin))
    return tensors
