"""Vectors to npy, JSONL or Parquet, block by block, in a folder beside the output until all is there.

The folder `OUT.part` holds the rows so far and `state.json`: what made them, how many there are, and a digest of
their texts. State is written after its rows, so after a kill the rows may be more than the state says: the surplus is
cut off. The output itself appears in one rename.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from corembed.cli.errors import UserError, needs

Vectors = npt.NDArray[np.float32]

HEADER = 128
"""Bytes of an npy header; numpy pads that of any float32 matrix to this size."""


ROW_GROUP = 4096
"""Rows of a Parquet row group, at least: a reader wants few, and that many vectors fit any memory."""


class Rows(Protocol):
    """Rows on disk, in one of the formats."""

    def __init__(self, folder: Path, width: int, about: dict[str, Any]) -> None: ...
    def keep(self, rows: int) -> None:
        """Cut what is beyond the first `rows` rows."""

    def write(self, vectors: Vectors, kept: Sequence[dict[str, Any]]) -> None:
        """Add a block."""

    def finish(self, rows: int) -> Path:
        """Complete the file and say where it is."""
        ...


class Npy:
    """A float32 matrix; the header, which needs the number of rows, is written last."""

    def __init__(self, folder: Path, width: int, about: dict[str, Any]) -> None:
        del about  # npy has no place for it
        self.path, self.width = folder / "rows.npy", width
        self.path.touch()

    def keep(self, rows: int) -> None:
        """See `Rows`."""
        os.truncate(self.path, HEADER + rows * self.width * 4)

    def write(self, vectors: Vectors, kept: Sequence[dict[str, Any]]) -> None:
        """See `Rows`."""
        del kept
        with self.path.open("ab") as file:
            file.write(vectors.astype("<f4").tobytes())

    def finish(self, rows: int) -> Path:
        """See `Rows`."""
        with self.path.open("r+b") as file:
            shape = {"descr": "<f4", "fortran_order": False, "shape": (rows, self.width)}
            np.lib.format.write_array_header_1_0(file, shape)  # type: ignore[no-untyped-call]
            if file.tell() != HEADER:
                raise RuntimeError(f"numpy wrote a header of {file.tell()} bytes, expected {HEADER}")
        return self.path


def line(vector: Vectors, kept: dict[str, Any]) -> bytes:
    """One JSONL row. Nine significant digits give back the same float32 (IEEE 754: 9 = ceil(24 log10 2 + 1))."""
    numbers = ",".join(format(value, ".9g") for value in vector.tolist())
    head = "".join(
        f"{json.dumps(k)}:{json.dumps(v, ensure_ascii=False, default=str)}," for k, v in kept.items()
    )
    return f'{{{head}"embedding":[{numbers}]}}\n'.encode()


class Jsonl:
    """An object a line: the kept fields, then `embedding`."""

    def __init__(self, folder: Path, width: int, about: dict[str, Any]) -> None:
        del width, about
        self.path = folder / "rows.jsonl"
        self.path.touch()

    def keep(self, rows: int) -> None:
        """See `Rows`."""
        with self.path.open("r+b") as file:
            for _ in range(rows):
                file.readline()
            file.truncate()

    def write(self, vectors: Vectors, kept: Sequence[dict[str, Any]]) -> None:
        """See `Rows`."""
        with self.path.open("ab") as file:
            file.writelines(line(vector, fields) for vector, fields in zip(vectors, kept, strict=True))

    def finish(self, rows: int) -> Path:
        """See `Rows`."""
        del rows
        return self.path


class Parquet:
    """The kept columns, then `embedding` as lists of fixed size; what made it in the schema's metadata.

    A Parquet file cannot be continued, so each block is a file of its own until the end.
    """

    def __init__(self, folder: Path, width: int, about: dict[str, Any]) -> None:
        with needs("parquet"):
            import pyarrow as pa  # noqa: PLC0415  # an extra's package
            from pyarrow import parquet  # noqa: PLC0415
        self._pa, self._parquet = pa, parquet
        self.folder, self.width = folder, width
        self.about = {"corembed": json.dumps(about, sort_keys=True)}

    def _blocks(self) -> list[Path]:
        return sorted(self.folder.glob("rows-*.parquet"))

    def keep(self, rows: int) -> None:
        """See `Rows`; a block's name ends in the number of rows before it."""
        for path in self._blocks():
            if int(path.stem.removeprefix("rows-")) >= rows:
                path.unlink()
        self.rows = rows

    def write(self, vectors: Vectors, kept: Sequence[dict[str, Any]]) -> None:
        """See `Rows`."""
        pa = self._pa
        flat = pa.array(np.ascontiguousarray(vectors).reshape(-1), pa.float32())
        columns = {name: pa.array([fields[name] for fields in kept]) for name in (kept[0] if kept else ())}
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, self.width)
        temporary = self.folder / "block.tmp"
        self._parquet.write_table(pa.table(columns), temporary)
        temporary.rename(self.folder / f"rows-{self.rows:012}.parquet")
        self.rows += len(vectors)

    def finish(self, rows: int) -> Path:
        """See `Rows`."""
        del rows
        pa, out = self._pa, self.folder / "all.parquet"
        blocks = self._blocks()
        empty = pa.schema([("embedding", pa.list_(pa.float32(), self.width))])
        # A column may be all null in one block and typed in another: the schema that holds both.
        schema = pa.unify_schemas(
            [self._parquet.read_schema(p) for p in blocks] or [empty], promote_options="permissive"
        )
        with self._parquet.ParquetWriter(out, schema.with_metadata(self.about)) as writer:
            tables: list[Any] = []
            for path in blocks:
                tables.append(self._parquet.read_table(path).cast(schema))
                if sum(map(len, tables)) >= ROW_GROUP or path == blocks[-1]:
                    writer.write_table(pa.concat_tables(tables))
                    tables.clear()
        return out


FORMATS: dict[str, type[Rows]] = {".npy": Npy, ".jsonl": Jsonl, ".parquet": Parquet}


def check(out: Path, *, overwrite: bool) -> None:
    """Can this be written? Asked before a model is loaded."""
    if out.suffix.lower() not in FORMATS:
        raise UserError(
            f"{out}: cannot write {out.suffix or 'a file without suffix'}; there is {', '.join(FORMATS)}"
        )
    if out.is_dir():
        raise UserError(f"{out} is a folder")
    if out.exists() and not overwrite:
        raise UserError(f"{out} is there already: say --overwrite, or name another")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent} is not a folder")


class Output:
    """A file in the making. `rows` is how many an earlier run left, `digest` that of their texts."""

    def __init__(
        self, out: Path, width: int, about: dict[str, Any], *, restart: bool, overwrite: bool
    ) -> None:
        check(out, overwrite=overwrite)
        self.out, self.folder, self.about = out, out.with_name(out.name + ".part"), about
        self.folder.mkdir(exist_ok=True)
        self._lock = self._locked()
        if restart:
            for path in self.folder.iterdir():
                if path.name != "lock":
                    path.unlink()
        self.state, self.hash = self.folder / "state.json", hashlib.sha256()
        self.rows, self.digest = self._earlier()
        self._rows = FORMATS[out.suffix.lower()](self.folder, width, about)
        self._rows.keep(self.rows)

    def write(self, texts: Sequence[str], vectors: Vectors, kept: Sequence[dict[str, Any]]) -> None:
        """Add a block: rows first, then the state that counts them."""
        self._rows.write(vectors, kept)
        self.skip(texts)
        self.rows += len(vectors)
        state = {"about": self.about, "rows": self.rows, "digest": self.hash.hexdigest()}
        temporary = self.state.with_suffix(".tmp")
        temporary.write_text(json.dumps(state), "utf-8")
        temporary.replace(self.state)

    def skip(self, texts: Sequence[str]) -> None:
        """Texts whose rows are there; `check` afterwards tells whether they are the same ones."""
        for text in texts:
            data = text.encode("utf-8", "surrogatepass")
            self.hash.update(len(data).to_bytes(8, "little") + data)

    def check(self) -> None:
        """Were the texts skipped those of the earlier run?"""
        if self.rows and self.hash.hexdigest() != self.digest:
            raise UserError(
                f"the first {self.rows} texts are not those that {self.folder} was made from: say --restart"
            )

    def finish(self) -> None:
        """The output appears."""
        self._rows.finish(self.rows).replace(self.out)
        shutil.rmtree(self.folder)
        self._lock.close()

    def _earlier(self) -> tuple[int, str]:
        if not self.state.is_file():
            return 0, ""
        state = json.loads(self.state.read_text("utf-8"))
        if changed := [key for key, value in self.about.items() if state["about"].get(key) != value]:
            raise UserError(
                f"{self.folder} was made with another {', '.join(changed)}: say --restart, or name another output"
            )
        return state["rows"], state["digest"]

    def _locked(self) -> BinaryIO:
        """Held until the process ends, however it ends."""
        lock = (self.folder / "lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise UserError(f"{self.folder} is being written by another process") from error
        return lock
