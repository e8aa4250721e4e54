"""Which text runs in which call: the smallest bucket that holds it, packed into the batch functions there are.

A function's shape is fixed, so each missing row of a batch costs as much as a text does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from corembed.release import Function

FULL_ENOUGH = 0.8
"""Share of a batch that must be real texts before the rest is padded with copies: a batch gains about 25 %
throughput on the Neural Engine (measured by the field on an M2 at batch 2), so below 1/1.25 single calls win."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of the model: the function, and which texts fill its first rows."""

    function: Function
    rows: tuple[int, ...]


def plan(lengths: Sequence[int], functions: Sequence[Function], batch_size: int | None = None) -> list[Call]:
    """Calls that embed texts of these token counts, longest bucket first, so that memory is asked for once.

    `batch_size` is the most rows in one call; None allows every batch function. A function of more rows is used
    only where its bucket has no other. Every length must fit the longest function. Texts of equal length keep
    their order, so equal inputs give equal plans.
    """
    batches: dict[int, dict[int, Function]] = {}
    for function in functions:
        batches.setdefault(function.length, {})[function.batch] = function
    buckets = sorted(batches)
    members: dict[int, list[int]] = {bucket: [] for bucket in buckets}
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        members[next(b for b in buckets if b >= lengths[index])].append(index)
    calls = []
    for bucket in reversed(buckets):
        there = batches[bucket]
        allowed = [b for b in sorted(there) if batch_size is None or b <= batch_size] or [min(there)]
        rows = members[bucket]
        while rows:
            batch = _batch(len(rows), allowed)
            calls.append(Call(there[batch], tuple(rows[:batch])))
            rows = rows[batch:]
    return calls


def _batch(remaining: int, allowed: Sequence[int]) -> int:
    fitting = [b for b in allowed if remaining >= FULL_ENOUGH * b]
    return fitting[-1] if fitting else allowed[0]
