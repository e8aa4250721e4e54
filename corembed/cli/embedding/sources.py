"""Texts from standard input, text files, JSONL and Parquet, one record at a time.

A fault in the input is a `UserError` that names the file and the line or row.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from corembed.cli.errors import UserError, needs

FORMATS = ("lines", "jsonl", "parquet", "file")
STDIN = "-"


@dataclasses.dataclass(frozen=True)
class Record:
    """A text, and the other fields of its record that go along to the output."""

    text: str
    kept: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Source:
    """Where records are read from: paths or `-`, their format (by suffix if None), the fields wanted."""

    paths: Sequence[str]
    format: str | None
    field: str
    keep: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Find what is missing before a model is loaded."""
        for path in self.paths:
            if path != STDIN and not Path(path).is_file():
                raise UserError(f"{path}: no such file")
            kind = self._kind(path)
            if path == STDIN and kind in {"parquet", "file"}:
                raise UserError(f"standard input cannot be read as {kind}")
            if kind == "parquet":
                self._table(path).close()
            has = {"lines": {self.field}, "file": {self.field, "path"}}.get(kind)
            if has is not None and (unknown := set(self.keep) - has):
                raise UserError(
                    f"{path}: no field {', '.join(sorted(unknown))}, only {', '.join(sorted(has))}"
                )
        if "embedding" in self.keep:
            raise UserError("--keep embedding: the output's own field has that name")

    def records(self) -> Iterator[Record]:
        """All records, in the order of the paths."""
        for path in self.paths:
            readers = {
                "lines": self._lines,
                "jsonl": self._jsonl,
                "parquet": self._parquet,
                "file": self._file,
            }
            yield from readers[self._kind(path)](path)

    def count(self) -> int | None:
        """How many records there are, where that is known without reading them twice; else None."""
        total = 0
        for path in self.paths:
            kind = self._kind(path)
            if path == STDIN:
                return None
            if kind == "parquet":
                total += self._table(path).metadata.num_rows
            elif kind == "file":
                total += 1
            else:
                with Path(path).open("rb") as opened:
                    total += sum(block.count(b"\n") for block in iter(lambda: opened.read(1 << 20), b""))
        return total

    def _kind(self, path: str) -> str:
        if self.format:
            return self.format
        return {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}.get(
            Path(path).suffix.lower(), "lines"
        )

    def _lines(self, path: str) -> Iterator[Record]:
        for number, text in enumerate(_read(path), 1):
            yield self._record({self.field: text.rstrip("\r\n")}, f"{path}:{number}")

    def _jsonl(self, path: str) -> Iterator[Record]:
        for number, line in enumerate(_read(path), 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}:{number}: not JSON: {error}") from error
            value = {self.field: value} if isinstance(value, str) else value
            if not isinstance(value, dict):
                raise UserError(f"{path}:{number}: {type(value).__name__}, expected an object or a string")
            yield self._record(value, f"{path}:{number}")

    def _table(self, path: str) -> Any:
        with needs("parquet"):
            from pyarrow import ArrowInvalid, parquet  # noqa: PLC0415  # an extra's package
        try:
            file = parquet.ParquetFile(path)
        except ArrowInvalid as error:
            raise UserError(f"{path}: not a Parquet file: {error}") from error
        if missing := {self.field, *self.keep} - set(file.schema_arrow.names):
            there = ", ".join(file.schema_arrow.names)
            raise UserError(f"{path}: no column {', '.join(sorted(missing))}; it has {there}")
        return file

    def _parquet(self, path: str) -> Iterator[Record]:
        file = self._table(path)
        row = 0
        for batch in file.iter_batches(1024, columns=list(dict.fromkeys((self.field, *self.keep)))):
            for value in batch.to_pylist():
                yield self._record(value, f"{path}: row {row}")
                row += 1

    def _file(self, path: str) -> Iterator[Record]:
        yield self._record({self.field: "".join(_read(path)), "path": path}, path)

    def _record(self, value: dict[str, Any], where: str) -> Record:
        for name in (self.field, *self.keep):
            if name not in value:
                raise UserError(f"{where}: no field {name!r}; it has {', '.join(value)}")
        if not isinstance(value[self.field], str):
            raise UserError(f"{where}: {self.field} is {type(value[self.field]).__name__}, expected a string")
        return Record(value[self.field], {name: value[name] for name in self.keep})


def _read(path: str) -> Iterator[str]:
    """Lines of UTF-8, with their ends."""
    number = 0
    try:
        with open(0, "rb", closefd=False) if path == STDIN else Path(path).open("rb") as opened:
            for number, line in enumerate(opened, 1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start})") from error
