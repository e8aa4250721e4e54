"""Say what would run here and why, and what is missing: the machine, each engine, the variables set, the cache.

With a release it says which variant and layout would run on which compute units, without loading the model or
fetching it. Exit code 0 if an engine can run (that release, if one is named), else 1.

For example: corembed doctor ORG/MODEL --variant int8
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import corembed
from corembed import cache, download, engines, machine, places, source
from corembed.cli import text
from corembed.engines import coreml
from corembed.errors import EngineError
from corembed.release import Package, Recipe, Release, Source, Tokenizer

HELP = "say what would run here and why, and what is missing"

PACKAGES = ("coremltools", "mlx", "sentence-transformers", "torch", "chromadb", "fastapi", "pyarrow")
"""What engines and extras need."""

VARIABLES = ("COREMBED_", "PAPR_", "HF_HUB_OFFLINE", "HF_HOME", "HF_ENDPOINT")
SECRET = ("KEY", "TOKEN", "SECRET")

_TYPICAL = Release(
    schema=1,
    model="any model",
    version="",
    source=Source("", None, None, {}),
    dimension=1,
    recipe=Recipe("mean", normalize=True),
    prompts={},
    default_prompt=None,
    matryoshka_dimensions=(),
    tokenizer=Tokenizer(512, 0, "right"),
    target="iOS18",
    functions=(),
    packages=(Package("fp16", "single", (), 0),),
    files={},
    tools={},
)
"""What engines are asked about where no release is named: the pipeline's default target and the usual pooling."""


def add(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("model", nargs="?", help="a release folder, or a Hub repository (ORG/NAME)")
    parser.add_argument("--revision", help="tag or commit of the Hub repository")
    parser.add_argument("--variant", help="the release's first by default")
    parser.add_argument("--layout", choices=("single", "parts"))
    parser.add_argument("--compute-units", choices=coreml.UNITS)
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(options: argparse.Namespace) -> int:
    """Examine."""
    located = download.locate(options.model, options.revision) if options.model else None
    record = located.record if located else _TYPICAL
    request = engines.Request(
        release=record,
        machine=machine.here(),
        variant=options.variant,
        layout=options.layout,
        compute_units=options.compute_units,
        packages=lambda _: [],
        source=Path,
    )
    reasons = engines.reasons(request)
    if located and (why := _without_source(record)):
        reasons |= {name: reasons[name] or why for name in ("mlx", "sentence-transformers")}
    asked = os.environ.get(engines.VARIABLE) or None
    can = [name for name in engines.ORDER if reasons[name] is None]
    would = asked or (can[0] if can else None)
    works = would is not None and reasons.get(would, "unknown") is None
    found: dict[str, Any] = {
        "corembed": corembed.__version__,
        "python": platform.python_version(),
        "machine": _machine(request.machine),
        "packages": {name: _version(name) for name in PACKAGES},
        "variables": _variables(),
        "cache": _cache(),
        "engines": reasons,
        "would_run": would,
    }
    if located:
        found["release"] = _release(located, request)
    if options.json:
        print(json.dumps(found | {"works": works}, ensure_ascii=False))
    else:
        _print(found, asked=asked, works=works)
    return 0 if works else 1


def _machine(here: machine.Machine) -> dict[str, Any]:
    macos = ".".join(map(str, here.macos)) if here.macos else None
    return {
        "system": here.system,
        "architecture": here.architecture,
        "macos": macos,
        "build": here.build,
        "chip": here.chip,
        "neural_engine": here.has_neural_engine,
        "largest_package_for_it": here.part_limit if here.has_neural_engine else None,
    }


def _without_source(record: Release) -> str | None:
    """Why the checkpoint that some engines run cannot be had here; one on the Hub is not asked for."""
    if record.source.name.startswith("hub:"):
        return None
    try:
        source.fetch(record)
    except EngineError as error:
        return str(error)
    return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _variables() -> dict[str, str]:
    """Those that decide something here; of a secret only that it is set."""
    return {
        name: "(set)" if any(word in name for word in SECRET) else value
        for name, value in sorted(os.environ.items())
        if name.startswith(VARIABLES)
    }


def _cache() -> dict[str, Any]:
    folder = places.cache()
    there = next(p for p in (folder, *folder.parents) if p.exists())
    return {
        "folder": str(folder),
        "entries": len(cache.entries()),
        "bytes": sum(entry.bytes for entry in cache.entries()),
        "writable": os.access(there, os.W_OK),
        "free_bytes": shutil.disk_usage(there).free,
        "offline": places.offline(),
    }


def _release(located: download.Located, request: engines.Request) -> dict[str, Any]:
    """What Core ML would be given, or the emulator in its place."""
    record, here = request.release, request.machine
    units = coreml.units_of(here, record, request.variant, request.compute_units)
    package = coreml.choose_package(here, record, request.variant, request.layout, units)
    weights = coreml.weight(record, package)
    return {
        "model": record.model,
        "version": record.version,
        "embedding_space": record.embedding_space,
        "variant": package.variant,
        "layout": package.layout,
        "compute_units": units,
        "package_bytes": weights,
        "fits_neural_engine": max(weights) <= here.part_limit if here.has_neural_engine else None,
        "fetched": all((located.folder / path).is_dir() for path in package.paths),
        "folder": str(located.folder),
    }


def _print(found: dict[str, Any], *, asked: str | None, works: bool) -> None:
    here, kept = found["machine"], found["cache"]
    print(f"corembed {found['corembed']}, Python {found['python']}")
    mac = f", macOS {here['macos']} ({here['build']}), {here['chip']}" if here["macos"] else ""
    print(
        f"machine: {here['system']} {here['architecture']}{mac}, Neural Engine: {_yes(here['neural_engine'])}"
    )
    print(
        "packages: "
        + ", ".join(f"{name} {version or 'missing'}" for name, version in found["packages"].items())
    )
    print("variables: " + (", ".join(f"{n}={v}" for n, v in found["variables"].items()) or "none set"))
    offline = ", offline" if kept["offline"] else ""
    print(
        f"cache: {kept['folder']}, {kept['entries']} entries, {text.size(kept['bytes'])}, "
        f"{text.size(kept['free_bytes'])} free, writable: {_yes(kept['writable'])}{offline}"
    )
    print()
    for name, why in found["engines"].items():
        note = "only when asked for" if name not in engines.ORDER else ""
        print(f"engine {name}: {why or 'can run'}{f' ({note})' if note and not why else ''}")
    if release := found.get("release"):
        sizes = ", ".join(text.size(b) for b in release["package_bytes"])
        fits = {
            None: "",
            True: ", fits the Neural Engine",
            False: ", TOO LARGE for the Neural Engine: the CPU would run it",
        }
        print(
            f"\nrelease {release['model']} {release['version']}: {release['variant']} ({release['layout']}), "
            f"packages of {sizes}{fits[release['fits_neural_engine']]}"
        )
        where = "in" if release["fetched"] else "not fetched yet (corembed pull does), would go to"
        print(f"  {where} {release['folder']}; compute units {release['compute_units']}")
    why = f", asked for by {engines.VARIABLE}" if asked else ""
    print(
        f"\nwould run: {found['would_run'] or 'nothing'}{why}" + ("" if works else "; see the reasons above")
    )


def _yes(value: object) -> str:
    return "yes" if value else "no"
