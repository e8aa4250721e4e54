"""Cuts a model at layer borders into packages that the Neural Engine takes: as few as fit, and of even size."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from pipeline.errors import PipelineError
from pipeline.splice import Span

ROOM = 0.05
"""Share of the size limit that is left to the compiled program, whose weights are what is counted here."""


def cut(layers: Sequence[int], head: int, tables: int, size_limit: int, depth: int = 1) -> list[Span]:
    """Spans of a parts layout, in running order.

    All sizes are bytes as the variant stores them: each layer, the head, and the tables that every package with
    layers carries. The token-embedding table is a package of its own, and no limit holds for it: looking rows up is
    not the Neural Engine's work. The head takes the last `depth` layers, which stay with it.
    """
    count = len(layers)
    items = [*layers[: count - depth], sum(layers[count - depth :]) + head]
    room = int(size_limit * (1 - ROOM)) - tables
    worst = max(range(len(items)), key=items.__getitem__)
    if items[worst] > room:
        raise PipelineError(
            f"layer {worst} with what belongs to it takes {items[worst] + tables} bytes, more than the size limit "
            f"{size_limit} allows (less {ROOM:.0%} for the compiled program); raise it"
        )
    ends = [*_even(items, room)[:-1], count]
    spans = [Span(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    spans[-1] = Span(spans[-1].start, count, head=True)
    return [Span(0, 0, table=True), *spans]


def _even(items: Sequence[int], room: int) -> list[int]:
    """Ends of the fewest runs that fit `room`; of those, the ends with the least sum of squared sizes."""
    total = [0, *itertools.accumulate(items)]
    # best[i]: (runs, sum of squares, start of the last run) of the first i items.
    best: list[tuple[int, int, int]] = [(0, 0, 0)]
    for end in range(1, len(total)):
        choices = [
            (best[start][0] + 1, best[start][1] + (total[end] - total[start]) ** 2, start)
            for start in range(end)
            if total[end] - total[start] <= room
        ]
        best.append(min(choices))
    ends = [len(items)]
    while start := best[ends[0]][2]:
        ends.insert(0, start)
    return ends
