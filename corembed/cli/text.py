"""Sizes and tables for people."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence

UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}


def size(count: int) -> str:
    """Bytes in binary units, three digits."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1000:
            break
        value, unit = value / 1024, larger
    return f"{value:.3g} {unit}"


def bytes_of(text: str) -> int:
    """`10GiB`, `500 MB`, `1000` as bytes; for argparse."""
    found = re.fullmatch(r"\s*([\d.]+)\s*([kmgt]i?)?b?\s*", text.lower())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 10GiB or 500MB")
    return int(float(found[1]) * UNITS[found[2] or ""])


def table(rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    """Columns of the width they need."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    )


def count(text: str) -> int:
    """A whole number of at least 1; for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def positive(text: str) -> float:
    """A number above 0; for argparse."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value
