"""What must not change a vector: padding, the bucket, the other texts of a batch.

Each figure is the least cosine between the vectors of one text in two settings, over a few short texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from corembed.tokenizer import Tokens
from pipeline import agreement
from pipeline.runner import Runner, Vectors

PROBES = 8  # texts at most that each setting is tried with; one for every 16 that a model is judged on


def short(runner: Runner, tokens: Sequence[Tokens]) -> list[Tokens]:
    """Texts that leave padding in every bucket, evenly drawn."""
    count = min(max(len(tokens) // 16, 2), PROBES)
    fit = [t for t in tokens if len(t.ids) < runner.buckets[0].length]
    return fit[:: max(len(fit) // count, 1)][:count]


def _least(pairs: Sequence[Vectors]) -> float | None:
    if not pairs:
        return None
    return min(float(agreement.similarities(np.stack(p)).min()) for p in pairs)


def buckets(runner: Runner, tokens: Sequence[Tokens]) -> float | None:
    """The same text in every bucket; None where there is one bucket."""
    if len(runner.buckets) == 1:
        return None
    return _least([[runner.embed(t, f) for f in runner.buckets] for t in short(runner, tokens)])


def padding(runner: Runner, tokens: Sequence[Tokens]) -> float | None:
    """The same text with other ids where the mask is 0: a mask that is ignored anywhere shows."""
    function = runner.buckets[0]
    pairs = []
    for item in short(runner, tokens):
        ids, mask = runner.tokenizer.pad([item], function)
        noise = np.resize(np.array(item.ids, np.int32), ids.shape)
        other = np.where(mask == 1, ids, noise).astype(np.int32)
        pairs.append([runner.engine.run(function, i, mask)[0] for i in (ids, other)])
    return _least(pairs)


def batches(runner: Runner, tokens: Sequence[Tokens]) -> float | None:
    """The same text alone and as the last row of a batch of others; None without batches."""
    found = short(runner, tokens)
    pairs = []
    for function in runner.functions:
        if function.batch == 1:
            continue
        for i, item in enumerate(found):
            others = [found[(i + k + 1) % len(found)] for k in range(function.batch - 1)]
            ids, mask = runner.tokenizer.pad([*others, item], function)
            pairs.append([runner.embed(item), runner.engine.run(function, ids, mask)[-1]])
    return _least(pairs)
