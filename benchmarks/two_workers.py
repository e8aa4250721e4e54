"""Two workers and a Mac's part on one machine, with no shared state but a DVC remote.

`python -m benchmarks.two_workers [--s3]` makes a project with two tiny models and two variants, and two clones of it, each with a cache of its own. Both
work at the same time, each on one model, push to the remote, and commit. The commits are joined by git (`dvc.lock` by
`pipeline.locks`). A third clone then finds nothing left to do, and a fourth fetches packages alone. With `--s3` the remote is an S3 server (moto) on
loopback instead of a folder. Writes `reports/two_workers.json`; fails if a stage ran twice or not at all.
"""

from __future__ import annotations

import argparse
import collections
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from benchmarks.publish_faults import ROOT, checkpoint
from milrun.testing.machine import describe
from pipeline.files import write_json

MODELS = ("first", "second")
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "local",
    "AWS_SECRET_ACCESS_KEY": "local",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def start(command: str, folder: Path) -> subprocess.Popen[str]:
    """Begin a shell command in a clone, which finds its own code and this environment's programs."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | CREDENTIALS
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    return subprocess.Popen(  # noqa: S602  # commands of this file
        command,
        cwd=folder,
        shell=True,
        text=True,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def sh(command: str, folder: Path) -> str:
    """Run a shell command in a clone to its end; gives what it says."""
    return finish(start(command, folder), command)


def finish(process: subprocess.Popen[str], command: str) -> str:
    """What a command said, or the end of all if it failed."""
    said, _ = process.communicate()
    if process.returncode:
        sys.exit(f"{command}\n{said}")
    return said


def project(folder: Path, source: Path, remote: str, endpoint: str | None) -> None:
    """A repository with this project's code and two models of one tiny checkpoint, that differ in their buckets."""
    folder.mkdir()
    for name in ("pipeline", "corembed", "milrun"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".gitignore", ".dvcignore", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    (folder / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, folder / ".dvc")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    entry = {"source": f"path:{source}", "revision": None, "license": "apache-2.0", "parity_texts": 40}
    params["models"] = {m: entry | {"max_lengths": [16, 32 * (i + 1)]} for i, m in enumerate(MODELS)}
    params["quantized"] = {"int8": params["quantized"]["int8"]}
    params["variants"] = {name: params["variants"][name] for name in ("fp16", "int8")}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / ".gitattributes").write_text("dvc.lock merge=dvclock\n")
    sh("git init -q -b main && git config user.email a@example.org && git config user.name a", folder)
    sh(f"dvc remote add -q -d store {remote}", folder)
    if endpoint:
        sh(f"dvc remote modify -q store endpointurl {endpoint}", folder)
    sh("git add -A && git commit -qm start && git config receive.denyCurrentBranch ignore", folder)


def clone(origin: Path, folder: Path) -> Path:
    """A clone with an empty cache of its own."""
    sh(f"git clone -q {origin} {folder}", origin)
    sh("git config user.email a@example.org && git config user.name a", folder)
    sh(f"git config merge.dvclock.driver '{sys.executable} -m pipeline.locks %O %A %B'", folder)
    return folder


def ran(said: str) -> list[str]:
    """The stages that a `dvc repro` really ran."""
    return re.findall(r"Running stage '([^']+)'", said)


@contextmanager
def s3() -> Iterator[str]:
    """An S3 server on loopback with an empty bucket."""
    import boto3  # noqa: PLC0415  # only with --s3
    from moto.server import ThreadedMotoServer  # noqa: PLC0415

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    os.environ.update(CREDENTIALS)
    client = boto3.client("s3", endpoint_url=url)
    client.create_bucket(Bucket="corembed")
    try:
        yield url
    finally:
        server.stop()


def measure(scratch: Path, remote: str, endpoint: str | None) -> dict[str, object]:
    """Both workers, the join, a third clone that has nothing to do, and a Mac's part."""
    (scratch / "checkpoint").mkdir()
    origin = scratch / "origin"
    project(origin, checkpoint(scratch / "checkpoint"), remote, endpoint)
    workers = {model: clone(origin, scratch / model) for model in MODELS}
    started = time.monotonic()
    command = "dvc repro --pull --allow-missing --glob 'validate@{0}-*' 'audit@{0}-*' && dvc push -q && git add -A && git commit -qm {0}"
    running = {model: start(command.format(model), folder) for model, folder in workers.items()}
    said = {model: finish(process, command.format(model)) for model, process in running.items()}
    seconds = time.monotonic() - started
    stages = {model: ran(text) for model, text in said.items()}
    for folder in workers.values():
        sh("git pull -q --no-rebase --no-edit && git push -q origin main", folder)
    third = clone(origin, scratch / "third")
    left = sh("dvc repro --pull --allow-missing --glob 'validate@*' 'audit@*'", third)
    mac = clone(origin, scratch / "mac")
    sh("dvc pull -q $(dvc stage list --name-only | grep -E '^(convert|quantize)@')", mac)
    measured = ran(sh("dvc repro --single-item --force --glob 'benchmark@*'", mac))
    counts = collections.Counter(stage for found in stages.values() for stage in found)
    return {
        "stages": stages,
        "repeated": sorted(stage for stage, count in counts.items() if count > 1),
        "left_for_a_third": ran(left),
        "measured_elsewhere": measured,
        "fetched_checkpoints_elsewhere": sorted(
            str(p.relative_to(mac)) for p in mac.glob("artifacts/*/checkpoint")
        ),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.two_workers", description=__doc__)
    parser.add_argument("--s3", action="store_true", help="an S3 server on loopback as the remote")
    parser.add_argument("--no-report", action="store_true", help="print, and leave reports/ alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if options.s3:
            with s3() as url:
                found = measure(scratch, "s3://corembed/store", url)
        else:
            found = measure(scratch, str(scratch / "remote"), None)
    report = found | {"remote": "s3 (moto)" if options.s3 else "folder"} | describe("dvc", "dvc-s3")
    if not options.no_report:
        write_json(ROOT / "reports" / f"two_workers{'_s3' if options.s3 else ''}.json", report)
    print({model: len(stages) for model, stages in found["stages"].items()}, "repeated:", found["repeated"])  # type: ignore[attr-defined]
    wrong = found["repeated"] or found["left_for_a_third"] or found["fetched_checkpoints_elsewhere"]
    sys.exit(f"not as it should be: {wrong}" if wrong else 0)


if __name__ == "__main__":
    main()
