"""Why does a package not give the original's vectors? Hypotheses, each tested, the first cause first.

In the order in which a text passes: token ids, prompts, the mask, the layers, the pooling. What is found is one
sentence a cause, for the message of a missed gate and the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from corembed.tokenizer import Tokens
from pipeline import agreement, drift
from pipeline.runner import Runner, Vectors
from pipeline.stored import Probe, Reference

SAME = 0.999  # cosine from which two vectors are taken for one
_WRONG = 0.05  # relative error of a state from which a layer is wrong, if it comes at once
_AT_ONCE = 5.0  # times the error before it


def tokens(rows: Sequence[Mapping[str, Any]], found: Sequence[Tokens]) -> str | None:
    """Whether each parity text becomes the ids that the original makes of it."""
    wrong = [i for i, row in enumerate(rows) if list(found[i].ids) != list(row["ids"])]
    if not wrong:
        return None
    index = wrong[0]
    ours, theirs = list(found[index].ids), list(rows[index]["ids"])
    head = f"token ids of {len(wrong)} of {len(rows)} texts are not the original's, first {rows[index]['text'][:40]!r}"
    if ours == theirs[:-1]:
        return f"{head}: the last id {theirs[-1]} is missing, which the tokenizer must append"
    if ours == theirs[1:]:
        return f"{head}: the first id {theirs[0]} is missing, which the tokenizer must put first"
    at = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
    )
    return f"{head}: from place {at} on {ours[at : at + 4]}, the original has {theirs[at : at + 4]}"


def prompts(
    rows: Sequence[Mapping[str, Any]], expected: Vectors, runner: Runner, declared: Mapping[str, str]
) -> str | None:
    """Whether another prompt, or none, would give what the original gives with this one."""
    for name in declared:
        mine = [i for i, row in enumerate(rows) if row["prompt"] == name]
        for other, prompt in {**declared, "none": ""}.items():
            if other == name or not mine or prompt == declared[name]:
                continue
            ids = runner.tokenizer.encode([prompt + rows[i]["text"] for i in mine])
            if all(list(t.ids) == list(rows[i]["ids"]) for t, i in zip(ids, mine, strict=True)):
                vectors = np.stack([runner.embed(t) for t in ids])
                cosine = float(agreement.cosines(vectors, expected[mine]).min())
                return (
                    f"prompt {name!r} is not the original's: with the text of {other!r} the vectors agree "
                    f"(cosine {cosine:.4f}); the prompts were swapped or changed"
                )
    return None


def mask(padding: float | None) -> str | None:
    """Whether ids at masked positions change a vector."""
    if padding is None or padding >= SAME:
        return None
    return f"other ids where the attention mask is 0 change the vector (cosine {padding:.4f}): the mask is ignored"


def first_wrong(layers: Sequence[Mapping[str, Any]]) -> str | None:
    """The first layer whose state is wrong at once, not by growing errors."""
    before = 0.0
    for layer in layers:
        if layer["error"] > _WRONG and layer["error"] > _AT_ONCE * before:
            hint = {"embeddings": " (token or position table, or its norm)"}.get(layer["layer"], "")
            return (
                f"the first layer that differs from the original is {layer['layer']}{hint}: relative error "
                f"{layer['error']:.3g}, before it {before:.3g}"
            )
        before = max(before, layer["error"])
    return None


def pooling(runner: Runner, probe: Probe, declared: Mapping[str, Any]) -> str | None:
    """Whether the vector is another pooling of the original's own states."""
    function = next(f for f in runner.buckets if f.length > len(probe.ids))
    vector = runner.embed(Tokens(probe.ids, 0), function)[None]
    if agreement.cosines(vector, probe.embedding[None])[0] >= SAME or declared["dense"]:
        return None
    states = probe.final
    candidates = {
        "cls": states[0],
        "lasttoken": states[-1],
        "mean": states.mean(0),
        "max": states.max(0),
        "mean without the special tokens": states[1:-1].mean(0),
    }
    close = {
        n: float(agreement.cosines(vector, v[None].astype(np.float32))[0]) for n, v in candidates.items()
    }
    best = max(close, key=lambda n: close[n])
    if close[best] >= SAME and best != declared["pooling"]:
        return f"the vectors are those of pooling {best!r} (cosine {close[best]:.4f})"
    return f"the states of all layers agree and the vectors do not: pooling, Dense layers or normalisation are wrong (nearest pooling: {best!r}, cosine {close[best]:.4f})"


def diagnose(
    runner: Runner, reference: Reference, record: Mapping[str, Any], figures: Mapping[str, Any]
) -> list[str]:
    """One sentence for each cause that is found, in the order in which a text passes; empty where none is."""
    rows, expected, _ = reference.use("parity")
    bare = [row for row in rows if row["prompt"] is None]
    found = [tokens(bare, runner.tokenizer.encode([r["text"] for r in bare]))]
    found.append(prompts(rows, expected, runner, record["prompts"]))
    found.append(mask(figures["padding_min_cosine"]))
    probe = next((p for p in reference.probes if len(p.ids) < runner.buckets[-1].length), None)
    if probe is not None:
        wrong = first_wrong(drift.against_original(runner, probe))
        found.append(wrong or pooling(runner, probe, record["recipe"]))
    causes = [cause for cause in found if cause]
    return causes or ["no single cause: errors grow over the layers, as rounding of weights does"]
