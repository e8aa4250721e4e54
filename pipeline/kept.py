"""Encoded tensors of an unfinished run: what an interrupted quantization need not do again.

Each finished tensor is kept beside the variant's folder until the variant is complete. Its key is the hash of all
that decides its bytes: the tensor's file, place and shape, the scheme, and the code that encodes. A second layout
of the same variant takes its tensors from here as well.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from pipeline.checkpoint import Tensor
from pipeline.encodings import Pieces
from pipeline.files import CHUNK, remove, staged_folder
from pipeline.params import Scheme

_CODE = ("clusters.py", "compensate.py", "encodings.py", "grids.py", "kmeans.py")


class Kept:
    """Encoded tensors in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        here = Path(__file__).parent
        self.code = [(here / name).read_bytes() for name in _CODE if (here / name).exists()]

    @classmethod
    def beside(cls, packages: Path) -> Kept:
        """The place for a variant's folder of packages."""
        return cls(packages.parent / f".tensors-{packages.name}")

    def key(self, tensor: Tensor, scheme: Scheme, more: str = "") -> str:
        """What stands for an encoded tensor; `more` names other inputs."""
        status = tensor.file.stat()
        facts = (str(tensor.file.resolve()), status.st_size, status.st_mtime_ns, tensor.offset, tensor.shape)
        digest = hashlib.sha256(repr((facts, dataclasses.astuple(scheme), more)).encode())
        for code in self.code:
            digest.update(code)
        return digest.hexdigest()[:32]

    def through(self, key: str, pieces: Pieces) -> Pieces:
        """Pass pieces on, from the folder if they are there, else from `pieces`, which are then kept."""
        folder = self.folder / key
        if not folder.exists():
            with staged_folder(folder) as partial:
                for argument, data in pieces:
                    with (partial / argument).open("ab") as file:
                        file.write(data)
        for path in sorted(folder.iterdir()):
            with path.open("rb") as file:
                while data := file.read(CHUNK):
                    yield path.name, data

    def clear(self) -> None:
        """Remove all: the variant is complete."""
        remove(self.folder)
