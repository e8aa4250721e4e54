"""Embed texts from standard input, text files, JSONL or Parquet; vectors go to npy, JSONL or Parquet.

Formats follow the suffixes: .jsonl and .parquet hold records, whose --field is the text; anything else is one text a
line. A run that was interrupted goes on where it was when the same command is given again. Memory stays that of a
few thousand texts, whatever the input's size.

For example:
  corembed embed ORG/MODEL articles.jsonl --field body --keep id --prompt-name document --out articles.parquet
  cut -f2 queries.tsv | corembed embed ORG/MODEL - --prompt-name query --out queries.npy
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from corembed.cli import model
from corembed.cli.embedding.outputs import Output, check, line
from corembed.cli.embedding.sources import FORMATS, STDIN, Record, Source
from corembed.cli.errors import UserError
from corembed.cli.text import count
from corembed.embedder import Embedder, StreamOptions

HELP = "embed texts from stdin, files, JSONL or Parquet to npy, JSONL or Parquet"


def add(parser: argparse.ArgumentParser) -> None:
    """Options."""
    model.add(parser)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="files, or - for standard input")
    parser.add_argument(
        "--out", required=True, help="OUT.npy, OUT.jsonl or OUT.parquet; - is JSONL on standard output"
    )
    group = parser.add_argument_group("input")
    group.add_argument("--format", choices=FORMATS, help="instead of by suffix; file: each file is one text")
    group.add_argument("--field", default="text", help="field or column of the text; default: text")
    group.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="FIELD",
        help="copy this field to the output; repeat for more",
    )
    group = parser.add_argument_group("embedding")
    group.add_argument(
        "--prompt-name", help="one of the release's prompts (see `corembed info`), put before each text"
    )
    group.add_argument("--dimensions", type=int, help="keep the first so many, where the release declares it")
    group.add_argument(
        "--truncate",
        choices=("error", "warn", "silent"),
        default="warn",
        help="texts beyond the model's length; default: warn",
    )
    group.add_argument(
        "--window",
        type=count,
        default=256,
        help="texts sorted by length and packed together; a killed run loses at most so many; default: 256",
    )
    group = parser.add_argument_group("output")
    group.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    group.add_argument("--restart", action="store_true", help="forget what an interrupted run left")
    group.add_argument("--no-progress", action="store_true", help="no progress bar")
    group.add_argument("--json", action="store_true", help="print a summary as JSON")


def run(options: argparse.Namespace) -> int:
    """Embed."""
    source = Source(options.inputs, options.format, options.field, options.keep)
    if options.out != STDIN:
        check(Path(options.out), overwrite=options.overwrite)
    embedder = model.load(options)
    try:
        width = embedder.encode([], prompt_name=options.prompt_name, dimensions=options.dimensions).shape[1]
    except ValueError as error:
        raise UserError(str(error)) from error
    encoding: StreamOptions = {
        "prompt_name": options.prompt_name,
        "dimensions": options.dimensions,
        "truncate": options.truncate,
        "window": options.window,
    }
    start = time.monotonic()
    if options.out == STDIN:
        _to_stdout(embedder, source, encoding)
        return 0
    about = _about(embedder, options)
    output = Output(Path(options.out), width, about, restart=options.restart, overwrite=options.overwrite)
    resumed = output.rows
    try:
        _to_file(embedder, source, encoding, output, show=not options.no_progress)
    except KeyboardInterrupt:
        print(f"stopped; {output.rows} texts are done, the same command goes on from there", file=sys.stderr)
        raise
    seconds = time.monotonic() - start
    summary = {
        "out": options.out,
        "texts": output.rows,
        "resumed_after": resumed,
        "seconds": round(seconds, 3),
    }
    if options.json:
        print(json.dumps(summary | {"dimension": width} | about))
    else:
        again = f", {resumed} of them by an earlier run" if resumed else ""
        print(
            f"{options.out}: {output.rows} vectors of {width} dimensions{again}, {seconds:.1f} s",
            file=sys.stderr,
        )
    return 0


def _about(embedder: Embedder, options: argparse.Namespace) -> dict[str, Any]:
    """What decides the rows; a run with another one cannot go on where this one was."""
    return {
        "model": embedder.release.model,
        "version": embedder.release.version,
        "variant": embedder.variant,
        "engine": embedder.engine.name,
        "embedding_space": embedder.embedding_space,
        "prompt_name": options.prompt_name,
        "dimensions": options.dimensions,
        "truncate": options.truncate,
        "keep": options.keep,
    }


def _to_file(
    embedder: Embedder, source: Source, encoding: StreamOptions, output: Output, *, show: bool
) -> None:
    from tqdm import tqdm  # noqa: PLC0415  # huggingface-hub brings it; not needed to show help

    records = source.records()
    for _ in range(output.rows):
        record = next(records, None)
        if record is None:
            raise UserError(f"the input has fewer texts than {output.folder} has rows: say --restart")
        output.skip([record.text])
    output.check()
    total = source.count() if show else None
    with tqdm(total=total, initial=output.rows, unit="text", disable=None if show else True) as progress:
        for block, vectors in _blocks(embedder, records, encoding):
            output.write([r.text for r in block], vectors, [r.kept for r in block])
            progress.update(len(block))
    output.finish()


def _to_stdout(embedder: Embedder, source: Source, encoding: StreamOptions) -> None:
    for block, vectors in _blocks(embedder, source.records(), encoding):
        for record, vector in zip(block, vectors, strict=True):
            sys.stdout.buffer.write(line(vector, record.kept))
        sys.stdout.buffer.flush()


def _blocks(
    embedder: Embedder, records: Iterator[Record], encoding: StreamOptions
) -> Iterator[tuple[list[Record], Any]]:
    """Blocks of records with their vectors. The embedder reads ahead by one window, and that much is held."""
    ahead: deque[Record] = deque()

    def texts() -> Iterator[str]:
        for record in records:
            ahead.append(record)
            yield record.text

    for vectors in embedder.encode_iter(texts(), **encoding):
        yield [ahead.popleft() for _ in itertools.repeat(None, len(vectors))], vectors
