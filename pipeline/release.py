"""Renders a release folder as it is to stand on the Hub.

Packages, tokenizer, reports, model card and release notes, statement of origin and bill of materials, `release.json`.
The same packages, reports and code give the same bytes. On a Mac, compiled models may stand beside the packages.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from corembed.release import (
    FILE,
    SCHEMA,
    File,
    Function,
    Package,
    Recipe,
    Release,
    Source,
    Tokenizer,
    decode,
    embedding_space,
)
from pipeline import checkout, places, provenance
from pipeline.errors import PipelineError
from pipeline.files import inventory, link, read_json, staged_folder, write_json

TOOLS = ("coremltools", "torch", "transformers", "sentence-transformers", "tokenizers", "numpy", "corembed")
TEMPLATES = Path(__file__).parent / "templates"

SMALL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")

ALIASES = ("fp16", "int8")
"""Variants whose single package existing clients look for in a folder of that very name."""

PROVENANCE, SBOM, NOTES = "reports/provenance.json", "reports/sbom.json", "reports/release-notes.md"

_MEASURED = ("neural_engine_latency_p50_ms", "neural_engine_share_of_cost")

_PARITY = (
    "min_cosine",
    "p1_cosine",
    "median_cosine",
    "top10_overlap",
    "spearman",
    "texts",
    "ndcg10",
    "original_ndcg10",
)

SYSTEMS = {"iOS16": "iOS 16 and macOS 13", "iOS17": "iOS 17 and macOS 14", "iOS18": "iOS 18 and macOS 15"}

GATED = {
    "min_cosine": "min_cosine",
    "min_top10_overlap": "top10_overlap",
    "min_spearman": "spearman",
    "max_quality_drop": "ndcg10_drop_high",
    "min_neural_engine_cost": "neural_engine_share_of_cost",
}
"""Which figure each gate judges."""


class Reports(NamedTuple):
    """Where the reports of one variant are."""

    parity: Path
    evidence: Path
    benchmark: Path


def template(name: str) -> jinja2.Template:
    """A template of `pipeline/templates`; a name that is not given is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        autoescape=jinja2.select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["measured"] = lambda value, digits=4: (
        "not measured" if value is None else f"{value:.{digits}f}"
    )
    environment.filters["combine"] = lambda one, other: {**one, **other}
    environment.filters["percent"] = lambda share: "not measured" if share is None else f"{share:.1%}"
    environment.filters["milliseconds"] = lambda ms: "not measured" if ms is None else f"{ms:.1f} ms"
    environment.filters["mib"] = lambda size: f"{size / 2**20:.1f} MiB"
    return environment.get_template(name)


def _packages(
    where: places.Places, variant: str, parity: Mapping[str, Any], benchmark: Mapping[str, Any]
) -> list[Package]:
    record = read_json(where.packages(variant) / "packages.json")
    return [
        Package(
            variant=variant,
            layout=layout,
            paths=tuple(places.package_names(variant, layout, count)),
            bytes=benchmark["bytes_by_layout"][layout],
            parity={name: parity[name] for name in _PARITY if parity.get(name) is not None},
            benchmark=_measured(benchmark),
        )
        for layout, count in record["layouts"].items()
    ]


def _measured(benchmark: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What was measured on a Mac, with the machine; None where nothing was."""
    if all(benchmark.get(name) is None for name in _MEASURED):
        return None
    return {name: benchmark.get(name) for name in (*_MEASURED, "machine")}


def render(
    where: places.Places,
    name: str,
    version: str,
    reports: Mapping[str, Reports],
    out: Path,
    *,
    namespace: str = "corembed",
    aliases: bool = False,
    compiled: bool = False,
    code: checkout.Checkout | None = None,
) -> Release:
    """Write the release folder `out`; `reports` gives those of each variant, in order.

    A variant without a passed parity report is refused. With `aliases`, the single packages of `ALIASES` stand a
    second time in a folder named like the variant: the same content, which the Hub stores once. With `compiled`, a
    Mac puts a `.mlmodelc` beside each package.
    """
    variants, code = list(reports), code or checkout.read()
    parity = {variant: _passed(r.parity, variant) for variant, r in reports.items()}
    benchmark = {variant: read_json(r.benchmark) for variant, r in reports.items()}
    packages = [p for v in variants for p in _packages(where, v, parity[v], benchmark[v])]
    with staged_folder(out) as partial:
        for variant, report in reports.items():
            for file in sorted(where.packages(variant).rglob("*")):
                relative = file.relative_to(where.packages(variant))
                if file.is_file() and relative.as_posix() != "packages.json":
                    link(file, partial / relative)
            link(report.parity, partial / "reports" / "parity" / f"{variant}.json")
            link(report.benchmark, partial / "reports" / "benchmark" / f"{variant}.json")
        for small in SMALL_FILES:
            if (where.reference / small).exists():
                link(where.reference / small, partial / small)
        release = _record(where, name, version, packages, variants)
        if aliases:
            release = dataclasses.replace(release, aliases=_alias(partial, packages))
        compiled = platform.system() == "Darwin" and compile_packages(
            packages, where.root / "compiled", partial
        )
        evidence = {v: read_json(r.evidence) for v, r in reports.items()}
        told = {
            "release": release,
            "repository": f"{namespace}/{name}-coreml",
            "first": next((p for p in packages if p.layout == "single"), packages[0]),
            "base_model": None,
            "engines": sorted({p["engine"] for p in parity.values()}),
            "compiled": compiled,
            "code": code,
            "parity": parity,
            "benchmark": benchmark,
            "gates": {v: e["gates"] for v, e in evidence.items()},
            "gated": GATED,
            "system": SYSTEMS[release.target],
            "worst": {v: e["texts"][0] for v, e in evidence.items()},
        }
        (partial / "README.md").write_text(template("card.md.j2").render(told), encoding="utf-8")
        (partial / NOTES).write_text(template("notes.md.j2").render(told), encoding="utf-8")
        write_json(partial / SBOM, provenance.bill(release))
        parameters = {
            "target": release.target,
            "functions": [f.name for f in release.functions],
            "layouts": sorted({p.layout for p in packages}),
            "gates": told["gates"],
        }
        digests = {path: str(entry["sha256"]) for path, entry in inventory(partial).items()}
        write_json(partial / PROVENANCE, provenance.statement(release, digests, code, parameters))
        files = {path: File(**entry) for path, entry in inventory(partial).items()}  # type: ignore[arg-type]
        release = dataclasses.replace(release, files=files, provenance=PROVENANCE, sbom=SBOM)
        (partial / FILE).write_text(release.to_json(), encoding="utf-8")
    return release


def _alias(folder: Path, packages: Sequence[Package]) -> dict[str, str]:
    found = {p.variant: p.paths[0] for p in packages if p.layout == "single" and p.variant in ALIASES}
    for alias, path in found.items():
        for file in sorted((folder / path).rglob("*")):
            if file.is_file():
                link(file, folder / alias / file.relative_to(folder / path))
    return found


def compile_packages(packages: Sequence[Package], kept: Path, folder: Path) -> None:
    """Put a `.mlmodelc` beside each package; only a Mac can make one.

    The compiler's bytes may differ from run to run, so a result is kept under the hash of its package and used again.
    """
    import coremltools as ct  # noqa: PLC0415  # heavy, and only a Mac's

    for package in packages:
        for path in package.paths:
            source = folder / path
            made = kept / hashlib.sha256(json.dumps(inventory(source), sort_keys=True).encode()).hexdigest()
            if not made.exists():
                with staged_folder(made) as partial:
                    ct.models.utils.compile_model(str(source), str(partial / "model.mlmodelc"))
            target = (folder / path).with_suffix(".mlmodelc")
            for file in sorted((made / "model.mlmodelc").rglob("*")):
                if file.is_file():
                    link(file, target / file.relative_to(made / "model.mlmodelc"))


def _passed(report: Path, variant: str) -> Mapping[str, Any]:
    if not report.exists():
        raise PipelineError(f"{report}: no parity report for {variant}; run validate first")
    parity: Mapping[str, Any] = read_json(report)
    if not parity["passed"]:
        raise PipelineError(f"{report}: {variant} did not pass its gates; a release holds only what passed")
    return parity


def _record(
    where: places.Places, name: str, version: str, packages: Sequence[Package], variants: Sequence[str]
) -> Release:
    reference, source = read_json(where.reference_record), read_json(where.source)
    record = read_json(where.packages(variants[0]) / "packages.json")
    origin = Source(
        source["source"],
        source["revision"],
        source["license"],
        {p: File(**f) for p, f in source["files"].items()},
    )
    recipe = decode(Recipe, reference["recipe"], "recipe")
    tokenizer = decode(Tokenizer, reference["tokenizer"], "tokenizer")
    return Release(
        schema=SCHEMA,
        model=name,
        version=version,
        source=origin,
        dimension=reference["dimension"],
        recipe=recipe,
        prompts=reference["prompts"],
        default_prompt=reference["default_prompt"],
        matryoshka_dimensions=tuple(reference["matryoshka_dimensions"]),
        tokenizer=tokenizer,
        target=record["target"],
        functions=tuple(Function(**f) for f in record["functions"]),
        packages=tuple(packages),
        files={},
        tools={tool: importlib.metadata.version(tool) for tool in TOOLS},
        embedding_space=embedding_space(origin, recipe, reference["prompts"], tokenizer.max_length),
    )
