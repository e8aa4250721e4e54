"""Two machines' `dvc.lock` become one, through git as a user has set it up."""

import subprocess
import sys

import pytest
import yaml
from helpers import ROOT

from pipeline.errors import PipelineError
from pipeline.locks import join

BASE = {"convert@a": {"md5": "1"}, "convert@b": {"md5": "1"}, "old@a": {"md5": "1"}}


def test_each_stage_is_as_whoever_ran_it_left_it():
    ours = BASE | {"convert@a": {"md5": "2"}, "validate@a": {"md5": "1"}}
    theirs = {k: v for k, v in BASE.items() if k != "old@a"} | {"convert@b": {"md5": "3"}}

    assert join(BASE, ours, theirs) == {
        "convert@a": {"md5": "2"},
        "convert@b": {"md5": "3"},
        "validate@a": {"md5": "1"},
    }


def test_the_same_work_twice_is_fine_and_different_results_are_not():
    changed = BASE | {"convert@a": {"md5": "2"}}

    assert join(BASE, changed, changed) == changed
    with pytest.raises(PipelineError, match="both sides ran convert@a with different results"):
        join(BASE, changed, BASE | {"convert@a": {"md5": "3"}})
    with pytest.raises(PipelineError, match="both sides ran new@a"):
        join(BASE, BASE | {"new@a": {"md5": "1"}}, BASE | {"new@a": {"md5": "2"}})


def test_as_gits_merge_driver(tmp_path):
    def git(*arguments):
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def commit(stages):
        (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
        git("add", "-A")
        git("commit", "-qm", "lock")

    git("init", "-q", "-b", "main")
    git("config", "user.email", "a@example.org")
    git("config", "user.name", "a")
    driver = f"env PYTHONPATH={ROOT} {sys.executable} -m pipeline.locks %O %A %B"
    git("config", "merge.dvclock.driver", driver)
    (tmp_path / ".gitattributes").write_text("dvc.lock merge=dvclock\n")
    commit(BASE)
    git("switch", "-qc", "other")
    commit(BASE | {"convert@a": {"md5": "2"}})
    git("switch", "-q", "main")
    commit(BASE | {"convert@b": {"md5": "2"}})
    git("merge", "-q", "other")
    joined = yaml.safe_load((tmp_path / "dvc.lock").read_text())

    assert joined["schema"] == "2.0"
    assert joined["stages"] == BASE | {"convert@a": {"md5": "2"}, "convert@b": {"md5": "2"}}
