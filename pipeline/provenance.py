"""Where a release comes from, for machines: an in-toto statement and a bill of materials.

`reports/provenance.json` is an in-toto Statement v1 with SLSA's provenance predicate v1: every file of the release
with its SHA-256, the checkpoint's files and the code's commit they were made from, parameters, builder, versions.
`reports/sbom.json` is CycloneDX 1.6: the checkpoint and every installed distribution that the pipeline needs, with
versions and licences. Neither holds a date, a host name or a path: the same inputs give the same bytes.

The bill is written here rather than by cyclonedx-python-lib, which stamps each document with the time; the tests
hold it against the library's strict validator of the official schema.

Sources: https://in-toto.io/Statement/v1, https://slsa.dev/spec/v1.0/provenance, https://cyclonedx.org/docs/1.6/json
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import uuid
from collections.abc import Mapping
from typing import Any

from packaging.requirements import Requirement

from corembed.provenance import PREDICATE, STATEMENT
from corembed.release import Release
from pipeline.checkout import Checkout

HOME = "https://github.com/corembed/corembed"


def statement(
    release: Release, files: Mapping[str, str], code: Checkout, parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """The statement about `files` (path to hex SHA-256); `parameters` are the model's and variants' settings."""
    inputs = [
        {"name": name, "uri": release.source.name, "digest": {"sha256": file.sha256}}
        for name, file in sorted(release.source.files.items())
    ]
    program: dict[str, Any] = {"name": "corembed", "uri": f"git+{code.origin or HOME}"}
    if code.commit is not None:
        program["digest"] = {"gitCommit": code.commit}
    workflow = os.environ.get("GITHUB_WORKFLOW_REF")
    server = os.environ.get("GITHUB_SERVER_URL", "https://github.com")
    return {
        "_type": STATEMENT,
        "subject": [{"name": path, "digest": {"sha256": files[path]}} for path in sorted(files)],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": f"{HOME}/blob/main/docs/releasing.md#provenance",
                "externalParameters": {
                    "model": release.model,
                    "version": release.version,
                    "source": release.source.name,
                    "revision": release.source.revision,
                    **parameters,
                },
                "internalParameters": {
                    "system": platform.system(),
                    "processor": platform.machine(),
                    "python": platform.python_version(),
                    "changedFiles": list(code.changed),
                },
                "resolvedDependencies": [program, *inputs],
            },
            "runDetails": {
                "builder": {
                    "id": f"{server}/{workflow}"
                    if workflow
                    else f"{HOME}/blob/main/docs/releasing.md#by-hand",
                    "version": dict(sorted(release.tools.items())),
                },
                "metadata": {},
            },
        },
    }


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@functools.cache
def _installed() -> Mapping[str, importlib.metadata.Distribution]:
    return {_key(d.name): d for d in importlib.metadata.distributions()}


def needed(root: str = "corembed", extras: tuple[str, ...] = ("pipeline",)) -> dict[str, list[str]]:
    """The installed distributions that `root` with `extras` needs, each with those it needs itself; all sorted."""
    found: dict[str, set[str]] = {}
    waiting = [(_key(root), extras)]
    seen = set()
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen or name not in _installed():
            continue
        seen.add((name, wanted))
        needs = found.setdefault(name, set())
        for line in _installed()[name].requires or []:
            requirement = Requirement(line)
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
                continue
            target = _key(requirement.name)
            if target in _installed():
                needs.add(target)
                waiting.append((target, tuple(sorted(requirement.extras))))
    return {name: sorted(needs - {name}) for name, needs in sorted(found.items())}


def _component(name: str) -> dict[str, Any]:
    distribution = _installed()[name]
    address = f"pkg:pypi/{name}@{distribution.version}"
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": address,
        "name": distribution.name,
        "version": distribution.version,
        "purl": address.replace("+", "%2B"),
    }
    if license_id := distribution.metadata.get("License-Expression"):
        component["licenses"] = [{"expression": license_id}]
    return component


def bill(release: Release) -> dict[str, Any]:
    """The bill of materials: the release as the component, made from its checkpoint by these distributions."""
    needs = needed()
    weights = {
        "type": "machine-learning-model",
        "bom-ref": "checkpoint",
        "name": release.source.name,
        "version": str(release.source.revision),
        "components": [
            {"type": "file", "name": name, "hashes": [{"alg": "SHA-256", "content": file.sha256}]}
            for name, file in sorted(release.source.files.items())
        ],
    }
    if release.source.license:
        weights["licenses"] = [{"license": {"name": release.source.license}}]
    components = {name: _component(name) for name in needs}
    reference = {name: component["bom-ref"] for name, component in components.items()}
    dependencies = [
        {"ref": "release", "dependsOn": ["checkpoint", reference["corembed"]]},
        {"ref": "checkpoint"},
    ]
    dependencies += [{"ref": reference[n], "dependsOn": [reference[o] for o in needs[n]]} for n in needs]
    listing = "\n".join([release.model, release.version, *sorted(reference.values())])
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, listing)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "machine-learning-model",
                "bom-ref": "release",
                "name": release.model,
                "version": release.version,
            }
        },
        "components": [weights, *components.values()],
        "dependencies": dependencies,
    }
