"""Publishes a release again and again while something goes wrong, and looks at the Hub after each run.

`python -m benchmarks.publish_faults [--runs 200] [--seed 0]` builds a tiny model, publishes version 0.1.0 to a hub on
loopback, and then, for each run, starts from there: the next version, which drops a variant and brings another, is
published by the stage's own command, in a process of its own, with one random fault (a connection closed before or
after the work, a status, an expired address, a slow or cut answer, or SIGKILL of the publisher at a random moment),
and once more without one. Writes `reports/publish_faults.json`.

After the first attempt `main` must be the old or the new release, whole; after the second the new one, tagged, with
one commit more than before and every byte right. The token must be in nothing that was printed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from milrun.testing.machine import describe
from pipeline.files import read_json, write_json

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the hub and the project that the tests use

from helpers import CHAIN, TINY, minilm, write_modules  # noqa: E402
from hub import TOKEN, Fault, Hub, running  # noqa: E402
from project import Project, make  # noqa: E402

REPO = "corembed/tiny-coreml"
LIMITS = (100, 6)  # one commit; several, staged on a pull request

ROUTES: Mapping[str, tuple[str | int, ...]] = {
    "create": ("drop", "lost", 503),
    "info": ("drop", "truncate", 500),
    "tree": ("drop", "truncate", 502),
    "preupload": ("drop", "lost", 503),
    "batch": ("drop", "lost", 500),
    "put": ("drop", "lost", "expired", 500, 503),
    "verify": ("drop", "lost", 500),
    "commit": ("drop", "lost", "slow", 409, 412, 500, 503),
    "tag": ("drop", "lost", 409, 503),
    "discussions": ("drop", 500),
    "propose": ("drop", "lost", 503),
    "status": ("drop", "lost", 500),
    "merge": ("drop", "lost", 409, 502),
}
STAGED_ONLY = ("discussions", "propose", "status", "merge")


def checkpoint(folder: Path) -> Path:
    """A tiny random BERT as a sentence-transformers folder."""
    import torch  # noqa: PLC0415  # heavy
    from transformers import AutoConfig, AutoModel  # noqa: PLC0415

    torch.manual_seed(0)
    config = AutoConfig.for_model("bert", **TINY["bert"], initializer_range=0.2)
    AutoModel.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(minilm() / name, folder)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 64, "do_lower_case": false}')
    write_modules(folder, {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}, CHAIN)
    return folder


def contents(hub: Hub, revision: str) -> dict[str, bytes] | None:
    """Every byte of a revision, or None where there is no such revision."""
    repository = hub.store.repositories[REPO]
    if revision != "main" and f"refs/tags/{revision}" not in repository.refs:
        return None
    return {path: hub.store.data(blob) for path, blob in repository.at(revision).files.items()}


def set_version(project: Project, version: str, variants: tuple[str, ...]) -> None:
    """What `params.yaml` is to publish."""
    path = project.folder / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["variants"] = {name: (params["variants"] | params["quantized"])[name] for name in variants}
    path.write_text(yaml.safe_dump(params))
    project.params(version=version)


LAUNCHER = """
import os, sys, traceback
import pipeline.publish
from huggingface_hub import CommitOperationAdd, HfApi
from pipeline import provenance
from pipeline.errors import run
provenance.needed()
for line in sys.stdin:
    said, *arguments = line.split()
    child = os.fork()
    if child == 0:
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.argv = ["publish", *arguments]
        code = 0
        try:
            run(pipeline.publish.main)
        except SystemExit as stop:
            code = 1 if stop.code else 0
            if isinstance(stop.code, str):
                print(stop.code)
        except BaseException:
            traceback.print_exc(file=sys.stdout)
            code = 1
        sys.stdout.flush()
        os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""A process of the project that has imported everything and forks for each command: a third of a run is imports."""


class Trial:
    """The hub as it was before each run, and what the next release is to be."""

    def __init__(self, project: Project, draw: random.Random) -> None:
        self.project, self.hub, self.draw = project, project.hub, draw
        self.launcher = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER],
            cwd=project.folder,
            env=project.environment(),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        set_version(project, "0.1.0", ("fp16", "int8"))
        project.publish("--push", "--no-check")
        self.repository = copy.deepcopy(self.hub.store.repositories[REPO])
        self.blobs = set(self.hub.store.folder.iterdir())
        self.old = contents(self.hub, "main")
        set_version(project, "0.2.0", ("fp16", "mixed"))
        self.reset()
        self.attempt("", check=False)
        self.reset()
        started = time.monotonic()
        self.attempt("", check=False)
        self.seconds = time.monotonic() - started  # how long an undisturbed run takes
        self.new = contents(self.hub, "main")
        if self.new == self.old:
            raise SystemExit("the next version was not published: there is nothing to compare with")

    def reset(self) -> None:
        """The hub as it was when only the old release was there."""
        self.hub.store.repositories[REPO] = copy.deepcopy(self.repository)
        for blob in set(self.hub.store.folder.iterdir()) - self.blobs:
            blob.unlink()
        self.hub.faults.clear()
        self.hub.struck.clear()

    def attempt(self, kind: str | int, *, check: bool) -> tuple[int, str]:
        """Run the command; for `SIGKILL` end it at a random moment of its usual time."""
        said = self.project.folder.parent / "said"
        flags = f"tiny --push {'--check' if check else '--no-check'}"
        self.launcher.stdin.write(f"{said} {flags}\n")
        self.launcher.stdin.flush()
        process = int(self.launcher.stdout.readline())
        if kind == "SIGKILL":
            time.sleep(self.draw.uniform(0, 1.1) * self.seconds)
            with contextlib.suppress(ProcessLookupError):  # it was faster
                os.kill(process, signal.SIGKILL)
        return int(self.launcher.stdout.readline()), said.read_text()

    def run(self, number: int, limit: int) -> dict[str, Any]:
        """One fault, then one run without; the problems that were found are listed."""
        self.reset()
        routes = [r for r in ROUTES if limit != LIMITS[0] or r not in STAGED_ONLY]
        route = self.draw.choice([*routes, *["SIGKILL"] * 5])
        kind = "SIGKILL" if route == "SIGKILL" else self.draw.choice(ROUTES[route])
        if kind != "SIGKILL":
            self.hub.faults.append(
                Fault(
                    route,
                    kind,
                    skip=self.draw.choice([0, 0, 0, 1, 2]),
                    times=self.draw.choice([1, 1, 1, 1, 2, 7]),
                )
            )
        code, first = self.attempt(kind, check=False)
        struck = code == -signal.SIGKILL if kind == "SIGKILL" else bool(self.hub.struck)
        between = contents(self.hub, "main")
        self.hub.faults.clear()
        second_code, second = self.attempt("", check=number % 40 < len(LIMITS))
        after, tagged = contents(self.hub, "main"), contents(self.hub, "v0.2.0")
        commits = len(self.hub.store.repositories[REPO].history()) - len(self.repository.history())
        found = {
            "main was neither the old nor the new release": between not in (self.old, self.new),
            "the second run failed": second_code != 0,
            "main is not the new release": after != self.new,
            "the tag is not the new release": tagged != self.new,
            "the old tag moved": contents(self.hub, "v0.1.0") != self.old,
            f"{commits} commits": commits != 1,
            "the token was printed": TOKEN in first + second,
        }
        return {
            "fault": f"{route} {kind}" if route != kind else route,
            "staged": limit != LIMITS[0],
            "struck": struck,
            "first": "killed" if code == -signal.SIGKILL else "finished" if code == 0 else "stopped",
            "main_between": "new" if between == self.new else "old" if between == self.old else "neither",
            "problems": [problem for problem, so in found.items() if so],
            "said": [first, second] if any(found.values()) else [],
        }


def trials(
    built: Project, folder: Path, limit: int, numbers: range, seed: int, until: float
) -> list[dict[str, Any]]:
    """Many runs with one setting."""
    with running() as hub:
        hub.token, hub.part_bytes = TOKEN, 400_000
        project = built.copy(folder, "corembed")
        project.hub = hub
        project.params(files_per_commit=limit)
        trial = Trial(project, random.Random(seed))  # noqa: S311  # not for secrets
        results = []
        for number in numbers:
            if time.monotonic() > until:
                break
            results.append(trial.run(number, limit))
            last = results[-1]
            print(number, last["fault"], last["first"], last["main_between"], *last["problems"], flush=True)
        return results


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.publish_faults", description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--minutes", type=float, default=600, help="stop after this time, however many runs were made"
    )
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, running() as source:
        folder = Path(scratch)
        (folder / "checkpoint").mkdir()
        built = make(folder / "built", source, checkpoint(folder / "checkpoint"), mixed=True)
        work = LIMITS * 2  # each with a hub and a copy of the project of its own: much of the time is waiting
        with ThreadPoolExecutor(len(work)) as pool:
            until = started + 60 * options.minutes
            jobs = [
                pool.submit(
                    trials,
                    built,
                    folder / str(n),
                    limit,
                    range(n, options.runs, len(work)),
                    options.seed + n,
                    until,
                )
                for n, limit in enumerate(work)
            ]
            results = [result for job in jobs for result in job.result()]
    count = collections.Counter
    report = {
        "runs": len(results),
        "problems": sum(bool(r["problems"]) for r in results),
        "struck": sum(r["struck"] for r in results),
        "staged": sum(r["staged"] for r in results),
        "first_run": dict(sorted(count(r["first"] for r in results).items())),
        "main_between": dict(sorted(count(r["main_between"] for r in results).items())),
        "faults": dict(sorted(count(r["fault"] for r in results).items())),
        "failures": [r for r in results if r["problems"]],
        "seconds": round(time.monotonic() - started),
        "seed": options.seed,
    } | describe("huggingface_hub")
    write_json(ROOT / "reports" / "publish_faults.json", report)
    print(read_json(ROOT / "reports" / "publish_faults.json")["problems"], "problems")
    sys.exit(bool(report["problems"]))


if __name__ == "__main__":
    main()
