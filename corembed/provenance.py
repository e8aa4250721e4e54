"""Checks what a release says of its origin against `release.json`, without a network.

`reports/provenance.json` is an in-toto statement, `reports/sbom.json` a CycloneDX bill of materials. Hashes show
that the three agree with each other and with every byte; who wrote them they do not show.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corembed.release import Release

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"


def problems(folder: Path, release: Release) -> list[str]:
    """One line for each contradiction; a release that names neither file has none."""
    found = []
    for path, check in ((release.provenance, _statement), (release.sbom, _bill)):
        if path is None:
            continue
        try:
            found += [
                f"{path}: {line}" for line in check(json.loads((folder / path).read_bytes()), path, release)
            ]
        except FileNotFoundError:
            continue  # reported with the other missing files
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            found.append(f"{path}: not the document it should be ({type(error).__name__}: {error})")
    return found


def _statement(document: dict[str, Any], path: str, release: Release) -> list[str]:
    if (document["_type"], document["predicateType"]) != (STATEMENT, PREDICATE):
        return [
            f"is {document['_type']} with {document['predicateType']}, expected {STATEMENT} with {PREDICATE}"
        ]
    subjects = {s["name"]: s["digest"]["sha256"] for s in document["subject"]}
    expected = {name: file.sha256 for name, file in release.files.items() if name != path}
    found = [
        f"is about {name} with SHA-256 {subjects.get(name)}, release.json says {expected.get(name)}"
        for name in sorted({*subjects, *expected})
        if subjects.get(name) != expected.get(name)
    ]
    definition = document["predicate"]["buildDefinition"]
    given = definition["externalParameters"]
    said: dict[str, str | None] = {"model": release.model, "version": release.version}
    said |= {"source": release.source.name, "revision": release.source.revision}
    found += [
        f"{name} is {given.get(name)!r}, release.json says {value!r}"
        for name, value in said.items()
        if given.get(name) != value
    ]
    inputs = {
        d["name"]: d["digest"]["sha256"]
        for d in definition["resolvedDependencies"]
        if "sha256" in d.get("digest", {})
    }
    if inputs != {name: file.sha256 for name, file in release.source.files.items()}:
        found.append("its checkpoint's files are not those of release.json")
    if document["predicate"]["runDetails"]["builder"]["version"] != dict(release.tools):
        found.append("its versions are not those of release.json")
    return found


def _bill(document: dict[str, Any], _: str, release: Release) -> list[str]:
    if document["bomFormat"] != "CycloneDX":
        return [f"bomFormat is {document['bomFormat']!r}, expected 'CycloneDX'"]
    subject = document["metadata"]["component"]
    found = []
    if (subject["name"], subject["version"]) != (release.model, release.version):
        found.append(
            f"is about {subject['name']} {subject['version']}, not {release.model} {release.version}"
        )
    versions = {c["name"].lower().replace("_", "-"): c["version"] for c in document["components"]}
    return found + [
        f"{tool} is {versions.get(tool)}, release.json says {version}"
        for tool, version in sorted(release.tools.items())
        if versions.get(tool) != version
    ]
