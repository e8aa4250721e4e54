"""Compiled models: made once by whoever comes first, whole or not at all, repaired, pruned; through the stand-in."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import coremltools as ct
import numpy as np
import pytest
from helpers import ROOT

import milrun
from corembed import Embedder, ReleaseError, cache, places

TEXTS = ["Hello", "importance of trees", "word " * 20]

WORKER = """
import os, pathlib, shutil, sys, time
from corembed import cache
package, log, wait = sys.argv[1:]
def build(source, target):
    with open(log, "a") as opened:
        opened.write(f"{os.getpid()}\\n")
    shutil.copytree(source, target)
    time.sleep(float(wait))
found = cache.compiled(pathlib.Path(package), "d" * 64, "25B78", "9.0", build)
sys.exit(sorted(p.name for p in found.rglob("*")) != ["a", "b"])
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.setenv("COREMBED_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "x.mlpackage"
    folder.mkdir()
    (folder / "a").write_bytes(b"1234")
    (folder / "b").write_bytes(b"5678")
    return folder


def copied(source, target):
    shutil.copytree(source, target)


def compiled(package, build=copied, digest="d", system="25B78", version="9.0"):
    return cache.compiled(package, digest * 64, system, version, build)


def worker(package, log, wait):
    return subprocess.Popen([sys.executable, "-c", WORKER, str(package), str(log), str(wait)], cwd=ROOT)


def test_eight_processes_build_once(package, tmp_path):
    log = tmp_path / "log"
    workers = [worker(package, log, 0.3) for _ in range(8)]

    assert [w.wait(60) for w in workers] == [0] * 8
    assert len(log.read_text().splitlines()) == 1


def test_a_killed_builder_leaves_nothing_to_trip_over(package, tmp_path):
    log = tmp_path / "log"
    first = worker(package, log, 60)
    while not log.exists() or not list((places.cache() / "compiled").glob("*/model.mlmodelc/b")):
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert cache.entries() == []
    found = compiled(package)

    assert (found / "b").read_bytes() == b"5678"
    assert [p.name for p in (places.cache() / "compiled").iterdir()] == [found.parent.name]


def test_a_failed_build_leaves_nothing(package):
    def fails(_source, target):
        target.mkdir()
        raise ReleaseError("Core ML could not compile it")

    with pytest.raises(ReleaseError, match="could not compile"):
        compiled(package, fails)
    assert list((places.cache() / "compiled").iterdir()) == []
    assert compiled(package).is_dir()


@pytest.mark.parametrize("change", [{"digest": "e"}, {"system": "26A1"}, {"version": "9.1"}])
def test_another_package_system_or_coremltools_is_another_entry(package, change):
    assert compiled(package) == compiled(package)
    assert compiled(package, **change) != compiled(package)
    assert len(cache.entries()) == 2


@pytest.mark.parametrize("damage", ["flip", "flip in place, times kept", "cut", "delete", "add", "record"])
def test_a_damaged_entry_is_built_again(package, caplog, damage):
    found = compiled(package)
    compiled(package)  # now its hashes are noted
    target, status = found / "a", (found / "a").stat()
    if damage.startswith("flip"):
        with target.open("r+b") as opened:
            opened.write(b"0")
        if "times" in damage:
            os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif damage == "cut":
        target.write_bytes(b"123")
    elif damage == "delete":
        target.unlink()
    elif damage == "add":
        (found / "c").touch()
    else:
        (found.parent / cache.RECORD).write_text("{")

    again = compiled(package)
    assert (again / "a").read_bytes() == b"1234"
    assert not (again / "c").exists()
    assert "is damaged" in caplog.text


def test_pruning_by_age_and_size_begins_with_the_longest_unused(package):
    for digest in "abc":
        compiled(package, digest=digest)
    by_name = {e.name[0]: e for e in cache.entries()}
    now = time.time()
    for days, name in [(1, "a"), (40, "b"), (5, "c")]:
        os.utime(by_name[name].path / cache.USED, (now - days * 86400,) * 2)

    assert [e.name[0] for e in cache.entries()] == ["b", "c", "a"]
    assert [e.name[0] for e in cache.prune(max_age_days=30)] == ["b"]
    assert [e.name[0] for e in cache.prune(max_bytes=by_name["a"].bytes)] == ["c"]
    assert [e.name[0] for e in cache.entries()] == ["a"]
    assert [e.name[0] for e in cache.clear()] == ["a"]
    assert cache.entries() == []


def test_building_prunes_what_is_too_much_but_never_itself(package, monkeypatch):
    monkeypatch.setattr(cache, "MAX_BYTES", 1)
    compiled(package, digest="a")
    found = compiled(package, digest="b")

    assert [e.name[0] for e in cache.entries()] == ["b"]
    assert found.is_dir()


def test_an_entry_in_the_making_is_not_cleared(package, tmp_path):
    log = tmp_path / "log"
    building = worker(package, log, 1)
    while not list((places.cache() / "compiled").glob("*/model.mlmodelc/b")):
        assert building.poll() is None
        time.sleep(0.01)
    cache.clear()

    assert building.wait(60) == 0


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    monkeypatch.setenv("COREMBED_CACHE", str(tmp_path / "cache"))
    with milrun.installed():
        yield


@pytest.mark.usefixtures("stand_in")
def test_core_ml_compiles_once_and_loads_functions_lazily(batched_release, monkeypatch):
    built, loaded = [], []
    plain, model = ct.models.utils.compile_model, ct.models.CompiledMLModel
    monkeypatch.setattr(ct.models.utils, "compile_model", lambda *a: built.append(a) or plain(*a))

    def load(path, **more):
        loaded.append(more["function_name"])
        return model(path, **more)

    monkeypatch.setattr(ct.models, "CompiledMLModel", load)
    first = Embedder.from_pretrained(batched_release, engine="coreml")
    assert (built, loaded) == ([], [])
    vectors = first.encode(TEXTS)

    expected = Embedder.from_pretrained(batched_release, engine="milrun").encode(TEXTS)
    np.testing.assert_array_equal(vectors, expected)
    assert len(built) == 1
    assert sorted(loaded) == ["length_16", "length_64"]
    np.testing.assert_array_equal(
        Embedder.from_pretrained(batched_release, engine="coreml").encode(TEXTS), vectors
    )
    assert len(built) == 1
    first.encode(["a"] * 4)
    assert loaded[-1] == "length_16_batch_4"
    (entry,) = cache.entries()
    record = json.loads((entry.path / cache.RECORD).read_text())
    assert record["package"] == "fp16.mlpackage"


@pytest.mark.usefixtures("stand_in")
def test_with_a_stand_in_core_ml_is_the_first_choice(tiny_release):
    embedder = Embedder.from_pretrained(tiny_release)

    assert (embedder.engine.name, embedder.engine.reason) == ("coreml", "the first choice")


@pytest.mark.usefixtures("stand_in")
def test_a_flipped_byte_in_a_compiled_model_is_noticed(tiny_release, caplog):
    expected = Embedder.from_pretrained(tiny_release, engine="coreml").encode(TEXTS)
    (weights,) = places.cache().glob("compiled/*/model.mlmodelc/weights/weight.bin")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.unlink()  # the stand-in links weights from the package
    weights.write_bytes(data)

    np.testing.assert_array_equal(
        Embedder.from_pretrained(tiny_release, engine="coreml").encode(TEXTS), expected
    )
    assert "is damaged" in caplog.text


@pytest.mark.usefixtures("stand_in")
def test_what_core_ml_cannot_compile_is_an_error_of_the_release(tiny_release, monkeypatch):
    def refuses(*_):
        raise RuntimeError("Error compiling model")

    monkeypatch.setattr(ct.models.utils, "compile_model", refuses)
    with pytest.raises(ReleaseError, match=r"could not compile .*fp16.mlpackage.*Error compiling model"):
        Embedder.from_pretrained(tiny_release, engine="coreml").encode(["a"])
