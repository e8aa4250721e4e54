"""Stage `publish`: the release folder, as it is to stand on the Hub, and its way there.

From the packages, reference and reports of one model, writes `artifacts/MODEL/release/` and the receipt
`reports/publish/MODEL.json` (repository, version, commit, tag, hash of every file). With `publish.push` in
`params.yaml` the folder goes to the Hub: one commit, then the tag `vVERSION`, then the Hub's checksums are
compared with the folder's, and the tag is fetched by `corembed`, loaded, and must give the folder's vectors. Without
it nothing is uploaded, and the receipt's `commit` is null.

Refused is what nobody should rely on: a variant that failed or was not judged, packages other than those that were
judged, a source that is not pinned, a licence that is not known to allow it, code that is not on a git remote
(`--force` allows that, and the release says so), and a tag that exists. The token is the one that the Hub's own
client finds.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.utils import disable_progress_bars, logging

from corembed.release import FILE, File, Release, verify
from pipeline import checkout, params, places
from pipeline.errors import PipelineError, run
from pipeline.files import inventory, read_json, sha256, write_json
from pipeline.release import Reports, render
from pipeline.upload import KEPT, Push, Pushed, Repository


def refuse(model: str, variants: list[str], where: places.Places, settings: params.Publish) -> None:
    """Raise for packages that were not judged as they are, a source that can move, or a licence that forbids it."""
    source = read_json(where.source)
    kind = source["source"].partition(":")[0]
    if settings.push and (kind == "path" or not source["revision"]):
        raise PipelineError(
            f"{source['source']}: revision {source['revision']!r} does not say which checkpoint this is; publish from "
            "hub: at a commit hash or from package: at a version"
        )
    if settings.push and source["license"] not in settings.licenses:
        raise PipelineError(
            f"{source['source']}: licence {source['license']!r} is not one that is known to allow publishing a converted "
            f"copy ({', '.join(settings.licenses)}); read it, and add it to publish.licenses only if it does"
        )
    for variant in variants:
        _passed("audit", "passed", model, variant)
        _passed("benchmark", "placement_passed", model, variant, unknown=True)
        report = places.report("evidence", model, variant)
        if not report.exists():
            raise PipelineError(f"{report}: no evidence for {variant}; run validate first")
        judged, there = read_json(report)["files"], inventory(where.packages(variant))
        for path in sorted({*judged, *there}):
            if judged.get(path) != there.get(path):
                raise PipelineError(
                    f"{where.packages(variant) / path}: not the file that validate judged; run validate again"
                )


def _passed(stage: str, field: str, model: str, variant: str, *, unknown: bool = False) -> None:
    """Refuse where a stage's report is missing or failed; `unknown`: it may also say that nothing was measured."""
    report = places.report(stage, model, variant)
    if not report.exists():
        raise PipelineError(f"{report}: no {stage} report for {variant}; run {stage} first")
    found = read_json(report).get(field)
    if found is not True and not (unknown and found is None):
        raise PipelineError(f"{report}: {variant} did not pass; a release holds only what passed")


def check(api: HfApi, repo: str, tag: str, out: Path, release: Release) -> dict[str, Any]:
    """Compare the Hub's checksums with the folder's, then fetch the tag as a user does and embed with it."""
    repository = Repository(api, repo)
    found = repository.call(
        "comparing checksums", lambda: api.verify_repo_checksums(repo, revision=tag, local_dir=out)
    )
    wrong = (
        [m["path"] for m in found.mismatches]
        + sorted(set(found.missing_paths) - KEPT)
        + list(found.extra_paths)
    )
    if wrong:
        raise PipelineError(f"{repo}@{tag}: {wrong[0]} is not the file of {out}; run again")
    smallest = min(release.packages, key=lambda p: p.bytes)
    with tempfile.TemporaryDirectory(dir=out.parent) as home:
        environment = os.environ | {
            "HF_ENDPOINT": api.endpoint,
            "HF_HOME": home,
            "COREMBED_CACHE": f"{home}/corembed",
        }
        environment.pop("HF_HUB_CACHE", None)
        if isinstance(api.token, str):
            environment["HF_TOKEN"] = api.token
        done = subprocess.run(  # noqa: S603  # this project's own command
            [
                sys.executable,
                "-m",
                "pipeline.published",
                repo,
                tag,
                str(out),
                smallest.variant,
                smallest.layout,
            ],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise PipelineError(
            f"{repo}@{tag}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'the check failed'}"
        )
    return {
        "files": found.checked_count,
        "variant": smallest.variant,
        "layout": smallest.layout,
        "engine": done.stdout.strip(),
    }


def push(api: HfApi, repo: str, out: Path, release: Release, settings: params.Publish) -> Pushed:
    """Bring the folder to the Hub, as a commit and a tag or as a pull request."""
    files = {**release.files, FILE: File((out / FILE).stat().st_size, sha256(out / FILE))}
    repository = Repository(api, repo)
    repository.call("creating", lambda: api.create_repo(repo, private=settings.private, exist_ok=True))
    work = Push(repository, out, files, f"v{settings.version}")
    go = work.to_pull_request if settings.create_pr else work.to_main
    return go(settings.files_per_commit)


def publish(
    model: str,
    variants: list[str],
    where: places.Places,
    settings: params.Publish,
    code: checkout.Checkout,
    api: HfApi | None = None,
) -> Mapping[str, Any]:
    """Render the release folder, bring it to the Hub where that is asked for, and write the receipt."""
    if settings.push and code.problem and not settings.force:
        raise PipelineError(f"{code.problem}; or --force, and the release says so")
    reports = {v: Reports(*(places.report(s, model, v) for s in Reports._fields)) for v in variants}
    refuse(model, variants, where, settings)
    out = where.root / "release"
    release = render(
        where,
        model,
        settings.version,
        reports,
        out,
        namespace=settings.namespace,
        aliases=settings.aliases,
        compiled=settings.push,
        code=code,
    )
    if problems := verify(out):
        raise PipelineError(f"{out}: {problems[0]}")
    repo = f"{settings.namespace}/{model}-coreml"
    receipt: dict[str, Any] = {
        "repository": repo,
        "version": settings.version,
        "commit": None,
        "tag": None,
        "pull_request": None,
        "checked": None,
        "code": {"commit": code.commit, "changed": list(code.changed), "pushed": code.pushed},
        "forced": bool(settings.push and code.problem),
        "files": {path: dataclasses.asdict(file) for path, file in release.files.items()},
        "release_json_sha256": sha256(out / FILE),
    }
    if settings.push:
        api = api or HfApi(token=get_token())
        pushed = push(api, repo, out, release, settings)
        receipt |= {"commit": pushed.commit, "tag": pushed.tag, "pull_request": pushed.pull_request}
        said = "made" if pushed.made else "nothing changed, no commit made"
        print(f"{repo}: {pushed.tag or pushed.pull_request or 'main'} at {pushed.commit[:12]} ({said})")
        if pushed.tag and settings.check:
            receipt["checked"] = check(api, repo, pushed.tag, out, release)
    write_json(places.report("publish", model), receipt)
    return receipt


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; what it says overrides `publish:` of params.yaml."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.publish",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a key of `models` in params.yaml")
    parser.add_argument(
        "--push", action=argparse.BooleanOptionalAction, help="upload, or only render the folder"
    )
    parser.add_argument("--create-pr", action="store_true", default=None, help="as a pull request on the Hub")
    parser.add_argument(
        "--force", action="store_true", default=None, help="although the code is not on a git remote"
    )
    parser.add_argument(
        "--check", action=argparse.BooleanOptionalAction, help="fetch the tag and embed with it"
    )
    parser.add_argument("--tag", help="the git tag that asked for this: must be MODEL/vVERSION")
    return parser.parse_args(arguments)


def main() -> None:
    """`python -m pipeline.publish MODEL`; `--help` says more."""
    chosen = options()
    everything = params.load()
    given = {name: getattr(chosen, name) for name in ("push", "create_pr", "force", "check")}
    settings = params.publish(
        everything, **{name: value for name, value in given.items() if value is not None}
    )
    entry = params.model(chosen.model)
    if chosen.tag not in {None, f"{entry.name}/v{settings.version}"}:
        raise PipelineError(
            f"tag {chosen.tag} is not {entry.name}/v{settings.version}, which params.yaml would publish; set publish.version "
            "in the commit that the tag names"
        )
    logging.set_verbosity_error()  # its warnings hold the signed addresses of uploads
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        publish(entry.name, params.variants(everything), places.of(entry.name), settings, checkout.read())
    except Exception as error:
        token = get_token()
        if token and token in str(error):  # nothing here puts it there; a library's message might
            raise PipelineError(str(error).replace(token, "[token]")) from None
        raise


if __name__ == "__main__":
    run(main)
