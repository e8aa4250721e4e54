"""Renders a release folder: packages, tokenizer, reports, model card and `release.json`, as they stand on the Hub."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from corembed.release import FILE, SCHEMA, File, Function, Package, Release, Source, embedding_space
from pipeline import places
from pipeline.assemble import package_names
from pipeline.errors import PipelineError
from pipeline.files import inventory, link, read_json, staged_folder
from pipeline.trace import SMALL_FILES, recipe_of, tokenizer_of

TOOLS = ("coremltools", "torch", "transformers", "sentence-transformers", "tokenizers", "numpy", "corembed")
TEMPLATES = Path(__file__).parent / "templates"

_PARITY = ("min_cosine", "p1_cosine", "median_cosine", "top10_overlap", "spearman", "texts")


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
            paths=tuple(package_names(variant, layout, count)),
            bytes=benchmark["bytes_by_layout"][layout],
            parity={name: parity[name] for name in _PARITY},
            benchmark=None,
        )
        for layout, count in record["layouts"].items()
    ]


def render(
    where: places.Places, name: str, version: str, reports: Mapping[str, tuple[Path, Path]], out: Path
) -> Release:
    """Write the release folder `out`; `reports` gives the parity and benchmark report of each variant, in order.

    A variant without a passed parity report, or whose packages are not those that were judged, is refused.
    """
    variants = list(reports)
    packages: list[Package] = []
    with staged_folder(out) as partial:
        for variant, (parity_path, benchmark_path) in reports.items():
            parity = _passed(parity_path, variant)
            packages += _packages(where, variant, parity, read_json(benchmark_path))
            for file in sorted(where.packages(variant).rglob("*")):
                relative = file.relative_to(where.packages(variant))
                if file.is_file() and relative.as_posix() != "packages.json":
                    link(file, partial / relative)
            link(parity_path, partial / "reports" / "parity" / f"{variant}.json")
            link(benchmark_path, partial / "reports" / "benchmark" / f"{variant}.json")
        for small in SMALL_FILES:
            if (where.reference / small).exists():
                link(where.reference / small, partial / small)
        release = _record(where, name, version, packages, variants)
        card = template("card.md.j2").render(release=release, pooling=release.recipe.pooling)
        (partial / "README.md").write_text(card, encoding="utf-8")
        files = {path: File(**entry) for path, entry in inventory(partial).items()}  # type: ignore[arg-type]
        release = dataclasses.replace(release, files=files)
        (partial / FILE).write_text(release.to_json(), encoding="utf-8")
    return release


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
    recipe, tokenizer = recipe_of(reference), tokenizer_of(reference)
    return Release(
        schema=SCHEMA,
        model=name,
        version=version,
        source=origin,
        dimension=reference["dimension"],
        recipe=recipe,
        prompts=reference["prompts"],
        default_prompt=reference["default_prompt"],
        matryoshka_dimensions=(),
        tokenizer=tokenizer,
        target=record["target"],
        functions=tuple(Function(**f) for f in record["functions"]),
        packages=tuple(packages),
        files={},
        tools={tool: importlib.metadata.version(tool) for tool in TOOLS},
        embedding_space=embedding_space(origin, recipe, reference["prompts"], tokenizer.max_length),
    )
