"""Say what a release is: its model, source, prompts, buckets, variants, and how exact they were measured to be.

Of a Hub repository only release.json is fetched. What was not measured reads "not measured".

For example: corembed info ORG/MODEL --revision v1.2.0
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from corembed import download
from corembed.cli import text
from corembed.release import Package, Release

HELP = "say what a release is and holds"
NOT_MEASURED = "not measured"


def add(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("model", help="a release folder, or a Hub repository (ORG/NAME)")
    parser.add_argument("--revision", help="tag or commit of the Hub repository")
    parser.add_argument("--json", action="store_true", help="the record as JSON, without its list of files")


def run(options: argparse.Namespace) -> int:
    """Print it."""
    located = download.locate(options.model, options.revision)
    record = located.record
    if options.json:
        raw = dataclasses.asdict(record)
        del raw["files"], raw["source"]["files"]
        print(json.dumps(raw | {"folder": str(located.folder), "commit": located.commit}, ensure_ascii=False))
        return 0
    width = max(map(len, facts(record)))
    for name, value in facts(record).items():
        print(f"{name:{width}}  {value}")
    print()
    head = ("variant", "layout", "packages", "size", "min cosine", "latency p50")
    print(text.table([_row(package) for package in record.packages], head))
    return 0


def facts(record: Release) -> dict[str, str]:
    """What a user of the vectors has to know, in lines."""
    prompts = ", ".join(f"{name} {prompt!r}" for name, prompt in record.prompts.items())
    lengths = sorted({(f.length, f.batch) for f in record.functions})
    steps = ["normalised"] if record.recipe.normalize else []
    return {
        "model": f"{record.model} {record.version}",
        "source": f"{record.source.name} at {record.source.revision or 'no revision'}",
        "licence": record.source.license or "not declared",
        "vectors": f"{record.dimension} dimensions, {record.recipe.pooling} pooling, {len(record.recipe.dense)} dense "
        f"layers{''.join(f', {step}' for step in steps)}",
        "dimensions": ", ".join(map(str, record.matryoshka_dimensions)) or "only all of them",
        "prompts": prompts or "none",
        "default": record.default_prompt or "no prompt",
        "tokens": f"at most {record.tokenizer.max_length}, in buckets of "
        + ", ".join(f"{length}" + (f" (batch {batch})" if batch > 1 else "") for length, batch in lengths),
        "target": record.target,
        "space": record.embedding_space,
    }


def _row(package: Package) -> tuple[str, ...]:
    parity, benchmark = package.parity or {}, package.benchmark or {}
    return (
        package.variant,
        package.layout,
        str(len(package.paths)),
        text.size(package.bytes),
        _figure(parity.get("min_cosine"), "{:.6f}"),
        _figure(benchmark.get("neural_engine_latency_p50_ms"), "{:.3g} ms"),
    )


def _figure(value: Any, form: str) -> str:
    return NOT_MEASURED if value is None else form.format(value)
