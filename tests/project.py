"""A whole project in a folder, built as users build theirs: code, params, git with a remote, one tiny model, judged."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from helpers import ROOT
from hub import COMMIT, TOKEN, Hub

STAGES = """
import runpy, sys
for stage, *arguments in (line.split() for line in sys.argv[1].splitlines()):
    sys.argv = [stage, *arguments]
    runpy.run_module("pipeline." + stage, run_name="__main__")
"""


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder."""
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)  # noqa: S607
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Project:
    """One at `folder`; its model `tiny` comes from `hub`, where it is published too."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        self.folder, self.hub, self.said = folder, hub, ""

    def environment(self) -> dict[str, str]:
        """The hub's address and the token; nothing else of this machine's settings for the Hub."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PYTHONPATH"))}
        return clean | self.hub.environment(self.folder.parent / "home") | {"HF_TOKEN": TOKEN}

    def start(self, *command: str) -> subprocess.Popen[str]:
        """`python COMMAND` in the project."""
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=self.folder,
            env=self.environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, *command: str, fails: bool = False) -> str:
        """`python COMMAND`, to its end; everything it says is kept, to be searched for the token."""
        process = self.start(*command)
        said, _ = process.communicate()
        self.said += said
        assert (process.returncode != 0) == fails, said
        return said

    def publish(self, *flags: str, fails: bool = False) -> str:
        """The stage, as a user runs it."""
        return self.run("-m", "pipeline.publish", "tiny", *flags, fails=fails)

    def params(self, **publish: object) -> None:
        """Change settings of publishing, commit and push them."""
        path = self.folder / "params.yaml"
        params = yaml.safe_load(path.read_text())
        params["publish"] |= publish
        path.write_text(yaml.safe_dump(params))
        self.push()

    def copy(self, folder: Path, namespace: str) -> Project:
        """The same project somewhere else, with a remote and a namespace of its own."""
        shutil.copytree(self.folder.parent, folder, symlinks=True)
        other = Project(folder / self.folder.name, self.hub)
        git(other.folder, "remote", "set-url", "origin", str(folder / "remote.git"))
        other.params(namespace=namespace)
        return other

    def push(self) -> None:
        """Commit all that changed, and push it."""
        git(self.folder, "add", "-A")
        git(self.folder, "commit", "-q", "--allow-empty", "-m", "change")
        git(self.folder, "push", "-q", "origin", "main")


def make(folder: Path, hub: Hub, checkpoint: Path, *, mixed: bool = False) -> Project:
    """Copy the code, build the model through every stage up to benchmark, commit and push.

    Variants are fp16 and int8; with `mixed` also one of that name, whose embedding table stays in FP16.
    """
    project = Project(folder / "project", hub)
    hub.store.create(
        "org/model", {p.name: p.read_bytes() for p in checkpoint.iterdir() if p.is_file()}, COMMIT
    )
    pooling = (checkpoint / "1_Pooling" / "config.json").read_bytes()
    files = hub.store.repositories["org/model"].commits[COMMIT].files
    files["1_Pooling/config.json"] = hub.store.put(pooling, lfs=False)  # type: ignore[index]
    for name in ("pipeline", "corembed", "milrun"):
        shutil.copytree(ROOT / name, project.folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".gitignore", "pyproject.toml"):
        shutil.copy(ROOT / name, project.folder)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    entry = {"source": "hub:org/model", "revision": COMMIT, "license": "apache-2.0", "max_lengths": [16, 64]}
    params["models"] = {"tiny": entry | {"parity_texts": 40}}
    int8 = params["quantized"]["int8"]
    params["quantized"] = {"int8": int8}
    if mixed:
        params["quantized"]["mixed"] = int8 | {"weights": {"linear": int8["weights"]["linear"]}}
    params["variants"] = {"fp16": params["variants"]["fp16"]} | params["quantized"]
    variants = list(params["variants"])
    (project.folder / "params.yaml").write_text(yaml.safe_dump(params))
    stages = ["download tiny", "trace tiny", "reference tiny", "calibrate tiny", "convert tiny"]
    stages += [f"quantize tiny {v}" for v in variants if v != "fp16"]
    stages += [f"{stage} tiny {v}" for stage in ("audit", "validate", "benchmark") for v in variants]
    project.run("-c", STAGES, "\n".join(stages))
    git(folder, "init", "-q", "--bare", "-b", "main", "remote.git")
    git(project.folder, "init", "-q", "-b", "main")
    git(project.folder, "config", "user.email", "a@example.org")
    git(project.folder, "config", "user.name", "a")
    git(project.folder, "remote", "add", "origin", str(folder / "remote.git"))
    project.push()
    return project
