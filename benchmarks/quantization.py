"""What does each encoding lose, and what does coremltools' lose with the same settings?

Usage: `python -m benchmarks.quantization [MODEL] [--out FILE] [--plot FILE] [--only NAME ...]` after `dvc repro
sensitivity@MODEL` (or `--root FOLDER` with checkpoint, traced, calibration and sensitivity.json). Every linear
layer and the embedding table is encoded (or compressed by coremltools on a model that holds that one weight, as a
user calls it), decoded, and put into the model in float32, so that only the weights' rounding is judged. Judged
are the parity texts (cosine with the original), Lee's documents (Spearman with people) and the descriptions of
articles (nDCG@10), cut at 256 tokens. Sizes are bytes of the weights against FP16's. A figure that `--out` holds
already is kept, so an interrupted run goes on. Nothing of this is measured on a Neural Engine.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - as coremltools' documentation has it
from coremltools.optimize import coreml as cto
from tokenizers import Tokenizer as FastTokenizer
from torch import nn

from milrun.model import load
from milrun.testing.machine import describe
from pipeline import allocate, params, places
from pipeline.agreement import cosines
from pipeline.calibrate import batches
from pipeline.calibration import Calibration
from pipeline.decoded import rounded
from pipeline.files import read_json, write_json
from pipeline.labelled import labelled_texts
from pipeline.params import Scheme
from pipeline.quality import retrieval, similarity
from pipeline.recipe import read_tokenizer
from pipeline.sensitivity import Probe, decibels
from pipeline.texts import parity_texts
from pipeline.trace import open_source

LENGTHS = (16, 32, 64, 128, 256)
RETRIEVAL = params.Retrieval(queries=150, documents=300)
Weights = Mapping[str, Scheme]

_INT8, _AFFINE8 = Scheme("linear", 8), Scheme("linear", 8, affine=True)
_INT4, _AFFINE4 = Scheme("linear", 4, block=32), Scheme("linear", 4, block=32, affine=True)
_P4, _P6 = Scheme("palette", 4, group=2), Scheme("palette", 6, group=16)
_TABLE4, _TABLE6 = Scheme("palette", 4, group=1), Scheme("palette", 6, group=3)


def _aware(scheme: Scheme) -> Scheme:
    return dataclasses.replace(scheme, calibrated=True)


UNIFORM: dict[str, dict[str, Scheme]] = {
    "int8 symmetric, nearest": {"linear": _INT8, "embedding": _INT8},
    "int8 affine, nearest": {"linear": _AFFINE8, "embedding": _AFFINE8},
    "int8 symmetric, calibrated": {"linear": _aware(_INT8), "embedding": _INT8},
    "int8 affine, calibrated": {"linear": _aware(_AFFINE8), "embedding": _AFFINE8},
    "int4 symmetric, nearest": {"linear": _INT4, "embedding": _INT8},
    "int4 affine, nearest": {"linear": _AFFINE4, "embedding": _AFFINE8},
    "int4 affine, calibrated": {"linear": _aware(_AFFINE4), "embedding": _AFFINE8},
    "palette4, nearest": {"linear": _P4, "embedding": _TABLE4},
    "palette4, calibrated": {"linear": _aware(_P4), "embedding": _TABLE4},
    "palette4, calibrated, table at 8 bits": {"linear": _aware(_P4), "embedding": _AFFINE8},
    "palette6, nearest": {"linear": _P6, "embedding": _TABLE6},
    "palette6, calibrated": {"linear": _aware(_P6), "embedding": _TABLE6},
}
THEIRS = {
    "coremltools int8 symmetric": "int8 symmetric, nearest",
    "coremltools int8 affine": "int8 affine, nearest",
    "coremltools int4 symmetric": "int4 symmetric, nearest",
    "coremltools palette4": "palette4, nearest",
}
"""coremltools' variants, and ours of the same settings."""

BUDGETS = (0.30, 0.32, 0.338, 0.36, 0.42)
"""Sizes of mixed variants, as a share of FP16's."""


def compressed(weight: np.ndarray, scheme: Scheme) -> np.ndarray:
    """A weight as coremltools compresses it with the same settings."""

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, weight.shape[1]))], opset_version=ct.target.iOS18)
    def program(x):  # type: ignore[no-untyped-def]
        return mb.linear(x=x, weight=weight, name="y")

    model = ct.convert(program, minimum_deployment_target=ct.target.iOS18)
    if scheme.scheme == "palette":
        grain = {"granularity": "per_grouped_channel", "group_size": scheme.group} if scheme.group else {}
        palette = cto.OpPalettizerConfig(mode="kmeans", nbits=scheme.bits, weight_threshold=0, **grain)
        made = cto.palettize_weights(model, cto.OptimizationConfig(global_config=palette))
    else:
        grain = (
            {"granularity": "per_block", "block_size": scheme.block}
            if scheme.block
            else {"granularity": "per_channel"}
        )
        mode = "linear" if scheme.affine else "linear_symmetric"
        linear = cto.OpLinearQuantizerConfig(
            mode=mode, dtype=f"int{scheme.bits}", weight_threshold=0, **grain
        )
        made = cto.linear_quantize_weights(model, cto.OptimizationConfig(global_config=linear))
    with tempfile.TemporaryDirectory() as folder:
        made.save(f"{folder}/made.mlpackage")
        (plan,) = load(Path(folder) / "made.mlpackage").functions.values()
        (found,) = [w for w in plan.initial if getattr(w, "shape", None) == weight.shape]
        decoded: np.ndarray = found.decode().float().numpy().copy()
    return decoded


class Judge:
    """A model in float32 whose weights are replaced, and the texts it is judged on."""

    def __init__(self, root: Path, texts: int) -> None:
        self.where = places.Places(root)
        source, self.record = open_source(self.where.checkpoint), read_json(self.where.traced / "trace.json")
        self.calibration = Calibration(self.where.calibration)
        tokenizer = FastTokenizer.from_file(str(self.where.checkpoint / "tokenizer.json"))
        tokenizer.no_padding()
        limit = read_tokenizer(self.where.checkpoint, source.config.vocabulary, LENGTHS[-1]).max_length
        tokenizer.enable_truncation(limit)
        self.rows = [*parity_texts(texts), *labelled_texts(RETRIEVAL, {})]
        tokens = [e.ids for e in tokenizer.encode_batch([row["text"] for row in self.rows])]
        bucket = [next(n for n in LENGTHS if n >= len(ids)) for ids in tokens]
        self.order = np.argsort(bucket, kind="stable")  # as `batches` puts them
        self.probe = Probe(
            source, self.record, batches(tokens, LENGTHS), hold=source.config.layers, keep=False
        )
        self.original = self.vectors()

    def vectors(self) -> np.ndarray:
        """Embeddings of all texts with the present weights, in the order of the rows."""
        found = self.probe.run(0).float().numpy()
        ordered: np.ndarray = np.empty_like(found)
        ordered[self.order] = found
        return ordered

    @torch.no_grad()
    def judge(self, weights: Weights, *, theirs: bool) -> dict[str, Any]:
        """The figures of one variant, `weights` being the scheme of each."""
        started, before, noise, size = time.monotonic(), {}, {}, 0
        for name, entry in self.record["weights"].items():
            if name not in weights:
                size += 2 * int(np.prod(entry["shape"]))
                continue
            owner, _ = self.probe.owner(name)
            before[name] = owner.weight
            values = owner.weight.detach().numpy()
            inputs = self.calibration.inputs(name) if weights[name].calibrated else None
            if theirs:
                stored, bytes_ = (
                    compressed(values, weights[name]),
                    rounded(name, values, weights[name], None)[1],
                )
            else:
                stored, bytes_ = rounded(name, values, weights[name], inputs)
            noise[name] = decibels(values, stored)
            size += bytes_
            owner.weight = nn.Parameter(torch.from_numpy(stored), requires_grad=False)
        encoded = time.monotonic() - started
        self.probe.embed_again()
        vectors = self.vectors()
        for name, weight in before.items():
            self.probe.owner(name)[0].weight = weight
        self.probe.embed_again()
        return self.figures(vectors) | {"bytes": size, "seconds_to_encode": encoded, "sqnr_db": noise}

    def figures(self, vectors: np.ndarray) -> dict[str, Any]:
        """Agreement with the original, and what people say."""
        uses = np.array([row["use"] for row in self.rows])
        each = cosines(vectors[uses == "parity"], self.original[uses == "parity"])
        news = [row for row in self.rows if row["use"] == "similarity"]
        people = similarity(news, vectors[uses == "similarity"], self.original[uses == "similarity"])
        found, _ = retrieval(self.rows, vectors, self.original)
        return {
            "min_cosine": float(each.min()),
            "p5_cosine": float(np.quantile(each, 0.05)),
            "median_cosine": float(np.median(each)),
            **{
                k: people[k] for k in ("spearman", "spearman_drop", "spearman_drop_low", "spearman_drop_high")
            },
            **{k: found[k] for k in ("ndcg10", "ndcg10_drop", "ndcg10_drop_low", "ndcg10_drop_high")},
        }


def variants(judge: Judge) -> dict[str, tuple[Weights, bool]]:
    """All variants by name: the scheme of each weight, and whether coremltools compresses it."""
    record = judge.record["weights"]

    def spread(schemes: Mapping[str, Scheme]) -> Weights:
        return {n: schemes[w["kind"]] for n, w in record.items() if w["kind"] in schemes}

    found = {name: (spread(schemes), False) for name, schemes in UNIFORM.items()}
    if judge.where.sensitivity.exists():
        report = read_json(judge.where.sensitivity)
        smallest = report["front"][0]["bytes"] + report["fixed_bytes"]
        for share in BUDGETS:
            if share * report["fp16_bytes"] < smallest:
                continue
            asked = params.Variant("mixed", {}, {}, params.Gates(0), budget_share=share)
            found[f"mixed at {share}"] = (allocate.mixed(asked, report).layers, False)
    return found | {name: (found[same][0], True) for name, same in THEIRS.items()}


def plot(figures: Mapping[str, Any], path: Path) -> None:
    """Quality per byte: cosine of the worst text and loss of nDCG@10 by size, all variants."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "corembed"
    from matplotlib import pyplot as plt  # noqa: PLC0415

    kinds = {"mixed": "o", "coremltools": "x", "nearest": "s", "calibrated": "D"}
    chart, axes = plt.subplots(1, 2, figsize=(12, 5))
    for kind, mark in kinds.items():
        points = sorted((v["share"], n, v) for n, v in figures.items() if kind in n)
        for axis, value in zip(axes, ("min_cosine", "ndcg10_drop"), strict=True):
            ys = [1 - v[value] if value == "min_cosine" else v[value] for _, _, v in points]
            axis.plot(
                [x for x, _, _ in points],
                ys,
                mark[0],
                label=kind,
                linestyle="-" if kind == "mixed" else "",
            )
            if kind != "mixed":
                for (x, name, _), y in zip(points, ys, strict=True):
                    axis.annotate(name.split(",")[0].removeprefix("coremltools "), (x, y), fontsize=7)
    axes[0].set(yscale="log", ylabel="1 - cosine of the worst parity text", xlabel="size against FP16")
    axes[1].set(ylabel="loss of nDCG@10", xlabel="size against FP16")
    axes[0].legend()
    chart.tight_layout()
    chart.savefig(path, format=path.suffix[1:], metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="all-minilm-l6-v2")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--only", nargs="+", default=[])
    chosen = parser.parse_args()
    out = chosen.out or Path("reports") / "quantization" / f"{chosen.model}.json"
    result: dict[str, Any] = read_json(out) if out.exists() else {"variants": {}}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        judge = Judge(chosen.root or Path("artifacts") / chosen.model, chosen.texts)
        whole = sum(2 * int(np.prod(w["shape"])) for w in judge.record["weights"].values())
        for name, (weights, theirs) in variants(judge).items():
            if name in result["variants"] or (chosen.only and not any(o in name for o in chosen.only)):
                continue
            found = judge.judge(weights, theirs=theirs)
            result["variants"][name] = found | {"share": found["bytes"] / whole}
            result |= {
                "model": chosen.model,
                "fp16_bytes": whole,
                "original": {k: v for k, v in judge.figures(judge.original).items() if "drop" not in k},
                "texts": {"parity": chosen.texts, **dataclasses.asdict(RETRIEVAL)},
            } | describe("coremltools", "numba", "numpy", "torch")
            if judge.where.sensitivity.exists():
                result["front_foreseen"] = read_json(judge.where.sensitivity)["front"]
            write_json(out, result)
            row = {k: v for k, v in result["variants"][name].items() if k != "sqnr_db"}
            print(name, {k: round(v, 5) for k, v in row.items()}, file=sys.stderr, flush=True)
    if chosen.plot:
        plot(result["variants"], chosen.plot)
    print(out)


if __name__ == "__main__":
    main()
