"""Download and trust: what was asked for and no more, at one commit, checked, continued, and there without a network."""

import json
import logging
import shutil

import numpy as np
import pytest
from helpers import edited
from hub import Fault, files_of, running
from huggingface_hub import constants

from corembed import Embedder, ReleaseError, places, release, trust
from corembed.download import locate
from pipeline.files import inventory

TEXTS = ["Hello", "importance of trees"]


@pytest.fixture
def hub(tiny_release, monkeypatch, tmp_path):
    """A hub with the tiny release at tag v1.0 of `org/model`, and a cache of its own."""
    monkeypatch.setenv("COREMBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None, raising=False)
    with running(tiny_release) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        server.store.of("org/model").tag("v1.0", "main")
        yield server


def files_in(folder):
    return {n for n in files_of(folder) if not n.startswith(".")}


def replace_on_hub(hub, **files):
    """A commit on main that changes files, without a word in `release.json`."""
    repository = hub.store.of("org/model")
    blobs = {n: hub.store.put(data, lfs=n.endswith(".bin")) for n, data in files.items()}
    return repository.write("refs/heads/main", {**repository.at("main").files, **blobs}, "changed").oid


def flip(path, offset=None):
    data = bytearray(path.read_bytes())
    place = len(data) // 2 if offset is None else offset
    data[place] ^= 1
    path.write_bytes(data)


def unlinked(release_folder, out):
    """A copy that shares no file with the original."""
    return shutil.copytree(release_folder, out)


def test_a_tag_gives_its_variant_and_nothing_else(hub, tiny_release):
    hub.store.of("org/model").write("refs/heads/main", {}, "all gone")
    embedder = Embedder.from_pretrained("org/model", "v1.0", "int8", engine="milrun")
    expected = Embedder.from_pretrained(tiny_release, variant="int8", engine="milrun")

    np.testing.assert_array_equal(embedder.encode(TEXTS), expected.encode(TEXTS))
    everything = files_in(tiny_release)
    assert files_in(embedder.folder) == {
        n for n in everything if n.startswith("int8.mlpackage/") or (n.endswith(".json") and "/" not in n)
    }
    assert not any(p.is_symlink() for p in embedder.folder.rglob("*"))
    assert hub.requests.count("tree") == hub.requests.count("info") == 0


def test_a_commit_that_is_there_needs_no_request(hub):
    first = locate("org/model", "v1.0")
    first.packages(first.record.package("fp16"))
    hub.requests.clear()
    again = locate("org/model", first.commit)
    again.packages(again.record.package("fp16"))

    assert again.folder == first.folder
    assert hub.requests == []


def test_an_interrupted_download_is_continued(hub):
    located = locate("org/model", "v1.0")
    located.basics()
    package = located.record.package("fp16")
    weights = next(
        f.bytes for n, f in located.record.files.items() if n.endswith("weight.bin") and "fp16" in n
    )
    hub.sent = 0
    hub.faults = [Fault("resolve", "truncate", skip=1, times=100)]
    with pytest.raises(ReleaseError, match=r"org/model@.*stopped.*call again to continue it"):
        located.packages(package)
    hub.faults = []
    located.packages(package)

    total = sum(f.bytes for n, f in located.record.files.items() if n.startswith("fp16.mlpackage/"))
    assert hub.sent < total + 0.6 * weights
    assert (
        trust.problems(located.folder, {n: f for n, f in located.record.files.items() if "fp16.ml" in n})
        == {}
    )


@pytest.mark.parametrize("variable", ["COREMBED_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_uses_what_was_fetched(hub, monkeypatch, variable):
    online = Embedder.from_pretrained("org/model", "v1.0", engine="milrun")
    hub.requests.clear()
    monkeypatch.setenv(variable, "1")
    offline = Embedder.from_pretrained("org/model", "v1.0", engine="milrun")

    np.testing.assert_array_equal(offline.encode(TEXTS), online.encode(TEXTS))
    with pytest.raises(ReleaseError, match=r"offline, and int8.mlpackage/.* and \d more not in the cache"):
        Embedder.from_pretrained("org/model", "v1.0", "int8", engine="milrun")
    with pytest.raises(ReleaseError, match=r"org/model@v2.0: offline, and never fetched before"):
        Embedder.from_pretrained("org/model", "v2.0", engine="milrun")
    assert hub.requests == []


def test_a_tag_that_cannot_be_asked_for_is_as_last_seen(hub, caplog):
    commit = locate("org/model", "v1.0").commit
    hub.faults = [Fault("resolve", "drop", times=100)]

    assert locate("org/model", "v1.0").commit == commit
    assert "using v1.0 as it was last seen" in caplog.text
    with pytest.raises(ReleaseError, match="main"):
        locate("org/model")


def test_what_is_not_there_is_said_plainly(hub):
    for repo, revision, message in [
        ("org/other", None, "org/other: no such repository"),
        ("org/model", "v9", "org/model: no tag, branch or commit 'v9'"),
        ("./nowhere", None, "no such folder, and no name of a Hub repository"),
        ("nowhere", None, "no such folder, and no name of a Hub repository"),
    ]:
        with pytest.raises(ReleaseError, match=message):
            locate(repo, revision)
    hub.store.create("org/plain")
    with pytest.raises(ReleaseError, match="not a corembed release"):
        locate("org/plain")


def test_a_newer_schema_and_paths_that_leave_are_refused(hub, tiny_release, tmp_path):
    record = json.loads((tiny_release / release.FILE).read_text())
    newer = replace_on_hub(hub, **{release.FILE: json.dumps(record | {"schema": 99}).encode()})
    with pytest.raises(ReleaseError, match="upgrade corembed"):
        Embedder.from_pretrained("org/model", newer, engine="milrun")
    leaving = record["files"] | {"../../../out.json": {"bytes": 1, "sha256": "0" * 64}}
    escaped = replace_on_hub(hub, **{release.FILE: json.dumps(record | {"files": leaving}).encode()})
    with pytest.raises(ReleaseError, match="not inside the release"):
        Embedder.from_pretrained("org/model", escaped, engine="milrun")
    assert not list(tmp_path.rglob("out.json"))


def test_a_hub_that_gives_other_bytes_is_not_believed(hub, tiny_release):
    name = next(n for n in files_in(tiny_release) if n.endswith("weight.bin") and n.startswith("fp16"))
    other = bytearray((tiny_release / name).read_bytes())
    other[-1] ^= 1
    commit = replace_on_hub(hub, **{name: bytes(other)})

    for _ in range(2):
        with pytest.raises(ReleaseError, match=r"weight.bin: SHA-256 .* not what was released"):
            Embedder.from_pretrained("org/model", commit, engine="milrun")
        assert not list(places.cache().rglob("weight.bin"))


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_damage_in_the_cache_is_noticed_and_repaired(caplog, damage):
    embedder = Embedder.from_pretrained("org/model", "v1.0", engine="milrun")
    expected = embedder.encode(TEXTS)
    (weights,) = embedder.folder.rglob("weight.bin")
    if damage == "flip":
        flip(weights)
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    else:
        weights.unlink()

    np.testing.assert_array_equal(
        Embedder.from_pretrained("org/model", "v1.0", engine="milrun").encode(TEXTS), expected
    )
    assert ("fetched again" in caplog.text) == (damage != "delete")


def test_a_folder_of_the_users_is_checked_and_left_as_it_is(tiny_release, tmp_path):
    folder = unlinked(tiny_release, tmp_path / "release")
    Embedder.from_pretrained(folder, engine="milrun")
    assert release.verify(folder) == []
    flip(folder / "fp16.mlpackage/Data/com.apple.CoreML/weights/weight.bin")

    with pytest.raises(ReleaseError, match=r"weight.bin: SHA-256"):
        Embedder.from_pretrained(folder, engine="milrun")
    Embedder.from_pretrained(folder, variant="int8", engine="milrun")
    flip(folder / "tokenizer.json")
    with pytest.raises(ReleaseError, match=r"tokenizer.json: SHA-256"):
        Embedder.from_pretrained(folder, variant="int8", engine="milrun")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ReleaseError, match=r"tokenizer.json: missing"):
        Embedder.from_pretrained(folder, variant="int8", engine="milrun")


def test_a_folder_has_no_revision(tiny_release):
    with pytest.raises(ReleaseError, match="it has no revision 'v1'"):
        Embedder.from_pretrained(tiny_release, "v1", engine="milrun")


def test_a_linked_folder_does_not_lead_outside(tiny_release, tmp_path):
    folder = unlinked(tiny_release, tmp_path / "release")
    (folder / "fp16.mlpackage" / "Data").rename(tmp_path / "elsewhere")
    (folder / "fp16.mlpackage" / "Data").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(ReleaseError, match="leads outside the release"):
        Embedder.from_pretrained(folder, engine="milrun")


def test_hashes_are_computed_once(tiny_release, tmp_path, monkeypatch):
    folder = unlinked(tiny_release, tmp_path / "release")
    files = release.read(folder).files
    hashed, plain = [], trust.sha256
    monkeypatch.setattr(trust, "sha256", lambda path: hashed.append(path) or plain(path))

    assert trust.problems(folder, files) == {}
    assert len(hashed) == len(files)
    hashed.clear()
    assert trust.problems(folder, files) == {}
    assert hashed == []
    flip(folder / "config.json")
    assert set(trust.problems(folder, files)) == {"config.json"}
    assert hashed == [folder / "config.json"]


def test_a_broken_note_is_no_obstacle(tiny_release, tmp_path, monkeypatch):
    monkeypatch.setenv("COREMBED_CACHE", str(tmp_path))
    files = release.read(tiny_release).files
    trust.problems(tiny_release, files)
    (note,) = (tmp_path / "verified").iterdir()
    note.write_text(note.read_text()[:50])

    assert trust.problems(tiny_release, files) == {}


def test_the_source_model_is_fetched_at_its_revision(hub, tiny_release, tiny_checkpoint, tmp_path, caplog):
    checkpoint = tiny_checkpoint()
    made = hub.store.create("org/source", files_of(checkpoint) | {"pytorch_model.bin": b"never asked for"})
    commit = made.at("main").oid
    made.write("refs/heads/main", {}, "all gone")
    source = {
        "name": "hub:org/source",
        "revision": commit,
        "license": None,
        "files": inventory(checkpoint),
    }
    folder = edited(tiny_release, tmp_path / "r", source=source)
    with caplog.at_level(logging.INFO, "corembed"):
        embedder = Embedder.from_pretrained(folder, engine="mlx")
    expected = Embedder.from_pretrained(tiny_release, engine="milrun").encode(TEXTS)

    assert (embedder.encode(TEXTS) * expected).sum(1).min() >= 0.9995
    assert not list(places.cache().rglob("pytorch_model.bin"))
