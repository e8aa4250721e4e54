"""Reads a safetensors checkpoint a block of rows at a time, so that memory never depends on its size.

The safetensors library maps whole shards into memory, and mapped pages count as resident; plain reads at an
offset keep the peak at one block. The format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.errors import PipelineError
from pipeline.files import read_json

BLOCK = 32 << 20  # bytes of float32 in a block of rows
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
        with tensor.file.open("rb", buffering=0) as file:
            file.seek(tensor.offset)
            for start in range(0, tensor.shape[0], count):
                size = min(count, tensor.shape[0] - start)
                raw = file.read(size * row * _WIDTH[tensor.dtype])
                values = _float32(raw, tensor.dtype)
                if not np.isfinite(values).all():
                    raise PipelineError(
                        f"{tensor.file}: tensor {tensor.name!r} holds NaN or infinite values; the checkpoint is damaged"
                    )
                yield values.reshape(size, *tensor.shape[1:])


def _float32(raw: bytes, dtype: str) -> npt.NDArray[np.float32]:
    if dtype == "BF16":  # bfloat16 is the upper half of a float32
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, "<f4" if dtype == "F32" else "<f2").astype(np.float32)


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
