"""A folder on its way to the Hub: whatever happens, main is the old or the new release, and a second run finishes."""

import hashlib

import httpx2
import pytest
from hub import TOKEN, Fault
from huggingface_hub import CommitOperationAdd, HfApi

from corembed.release import File
from pipeline.errors import PipelineError
from pipeline.upload import Push, Repository

REPO = "corembed/tiny-coreml"
OLD = {"README.md": b"old", "int4/weight.bin": b"\0four" * 999, "fp16/weight.bin": b"\0half" * 999}
NEW = {
    "README.md": b"new",
    "release.json": b"{}",
    "fp16/weight.bin": OLD["fp16/weight.bin"],
    "fp16.mlpackage/weight.bin": OLD["fp16/weight.bin"],
    "int8/weight.bin": b"\0byte" * 9999,
    "int8.mlpackage/weight.bin": b"\0byte" * 9999,
}


def release(hub, folder, files, tag):
    """A push of these files, written to a folder."""
    described = {}
    for path, data in files.items():
        target = folder / tag / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        described[path] = File(len(data), hashlib.sha256(data).hexdigest())
    repository = Repository(HfApi(endpoint=hub.url, token=TOKEN), REPO, wait=lambda _: None)
    return Push(repository, folder / tag, described, tag)


@pytest.fixture
def new(hub, tmp_path):
    """The next release, where an older one stands already."""
    HfApi(endpoint=hub.url, token=TOKEN).create_repo(REPO)
    release(hub, tmp_path, OLD, "v1.0.0").to_main(100)
    hub.received.clear()
    hub.requests.clear()
    return release(hub, tmp_path, NEW, "v2.0.0")


def contents(hub, revision="main"):
    """What a revision holds, without the Hub's own file."""
    files = hub.store.repositories[REPO].at(revision).files
    return {path: hub.store.data(blob) for path, blob in files.items() if path != ".gitattributes"}


def titles(hub):
    return [c.title for c in hub.store.repositories[REPO].history()]


def test_one_commit_adds_replaces_and_removes(hub, new):
    pushed = new.to_main(100)

    assert pushed.made
    assert contents(hub) == contents(hub, "v2.0.0") == NEW
    assert contents(hub, "v1.0.0") == OLD
    assert titles(hub) == ["Release v2.0.0", "Release v1.0.0", "initial commit"]
    assert hub.store.repositories[REPO].at("v2.0.0").oid == pushed.commit


def test_each_content_is_uploaded_once_and_an_unchanged_one_never(hub, new):
    new.to_main(100)

    assert dict(hub.received) == {
        hashlib.sha256(NEW["int8/weight.bin"]).hexdigest(): len(NEW["int8/weight.bin"])
    }


def test_a_second_run_makes_nothing(hub, new):
    first = new.to_main(100)
    asked = len(hub.requests)
    second = new.to_main(100)

    assert (second.commit, second.made) == (first.commit, False)
    assert not {"commit", "tag", "put", "batch"} & set(hub.requests[asked:])


def test_a_tag_is_never_moved(hub, new, tmp_path):
    new.to_main(100)
    before = contents(hub)
    other = release(hub, tmp_path / "other", {**NEW, "README.md": b"changed"}, "v2.0.0")
    with pytest.raises(PipelineError, match=r"tag v2.0.0 exists .*README.md.*raise publish.version"):
        other.to_main(100)

    assert contents(hub) == contents(hub, "v2.0.0") == before


def test_somebody_elses_commit_meanwhile_is_not_overwritten(hub, new, monkeypatch):
    """The commit names the parent that was looked at, so a change in between refuses it."""
    upload = Push.upload

    def meanwhile(self, *arguments, **more):
        upload(self, *arguments, **more)
        self.api.create_commit(REPO, [CommitOperationAdd("README.md", b"theirs")], commit_message="theirs")

    monkeypatch.setattr(Push, "upload", meanwhile)
    with pytest.raises(PipelineError, match="somebody else writes there"):
        new.to_main(100)

    assert contents(hub) == {**OLD, "README.md": b"theirs"}
    assert "refs/tags/v2.0.0" not in hub.store.repositories[REPO].refs


def test_many_files_are_staged_on_a_pull_request(hub, new):
    before = contents(hub)
    seen = []
    write = hub.store.repositories[REPO].write

    def watched(ref, *arguments):
        seen.append((ref, contents(hub) == before))
        return write(ref, *arguments)

    hub.store.repositories[REPO].write = watched
    pushed = new.to_main(2)

    assert contents(hub) == contents(hub, "v2.0.0") == NEW
    assert seen == [("refs/pr/1", True)] * 3 + [("refs/heads/main", True)]
    assert titles(hub)[1:] == ["Release v1.0.0", "initial commit"]
    assert pushed.made
    assert new.to_main(2).made is False


ONE_COMMIT = [
    ("info", "drop"),
    ("tree", 502),
    ("preupload", 503),
    ("batch", "lost"),
    ("put", "drop"),
    ("put", "lost"),
    ("put", "expired"),
    ("commit", "drop"),
    ("commit", "lost"),
    ("commit", 500),
    ("tag", "drop"),
    ("tag", "lost"),
    ("tag", 503),
]
STAGED = [
    ("commit", "lost"),
    ("put", "expired"),
    ("tag", "lost"),
    ("merge", "drop"),
    ("merge", "lost"),
    ("merge", 502),
    ("propose", "drop"),
    ("propose", "lost"),
    ("status", 503),
    ("discussion", "drop"),
    ("discussions", 500),
]


@pytest.mark.parametrize(
    ("route", "kind", "limit"), [(*f, 100) for f in ONE_COMMIT] + [(*f, 2) for f in STAGED]
)
def test_a_passing_fault_is_survived_without_a_second_commit(hub, new, route, kind, limit):
    hub.faults.append(Fault(route, kind))
    try:
        new.to_main(limit)
    except PipelineError:
        new.to_main(limit)

    assert [f.route for f in hub.struck] == [route]
    assert contents(hub) == contents(hub, "v2.0.0") == NEW
    assert len(titles(hub)) == 3
    assert len(hub.store.repositories[REPO].pulls) == (limit == 2)


def test_a_run_after_an_interruption_finishes_and_uploads_only_the_rest(hub, new):
    """Stopped between the upload and the commit, and between the commit and the tag."""
    hub.faults += [Fault("commit", 403), Fault("tag", 403)]
    with pytest.raises(PipelineError, match="the commit failed: HTTP 403"):
        new.to_main(100)
    assert contents(hub) == OLD
    uploaded = hub.received.total()
    with pytest.raises(PipelineError, match=r"tag v2.0.0 could not be set"):
        new.to_main(100)
    assert contents(hub) == NEW
    new.to_main(100)

    assert contents(hub, "v2.0.0") == NEW
    assert hub.received.total() == uploaded
    assert len(titles(hub)) == 3


def test_a_large_file_goes_in_parts(hub, new):
    hub.part_bytes = 10_000
    hub.faults.append(Fault("put", "drop", skip=2))
    new.to_main(100)

    assert contents(hub)["int8/weight.bin"] == NEW["int8/weight.bin"]
    assert hub.requests.count("put") == 6


def test_a_pull_request_changes_nothing_until_it_is_merged(hub, new):
    pushed = new.to_pull_request(100)
    again = new.to_pull_request(100)

    assert contents(hub) == OLD
    assert contents(hub, "refs/pr/1") == NEW
    assert pushed.pull_request.endswith("/discussions/1")
    assert (again.pull_request, again.made, pushed.tag) == (pushed.pull_request, False, None)
    new.api.merge_pull_request(REPO, 1)
    assert new.to_main(100).made is False
    assert contents(hub, "v2.0.0") == NEW


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_will_not_pass_is_said_at_once_without_token_or_address(hub, new, status):
    hub.faults.append(Fault("preupload", status, times=9))
    with pytest.raises(PipelineError) as error:
        new.to_main(100)

    assert f"HTTP {status}" in str(error.value)
    assert TOKEN not in str(error.value)
    assert "http://" not in str(error.value)
    assert len(hub.struck) == 1


def test_patience_ends(hub, new):
    hub.faults.append(Fault("tag", "drop", times=99))
    with pytest.raises(PipelineError, match="tagging failed: RemoteProtocolError; run again"):
        new.to_main(100)


def test_no_hub_at_all():
    repository = Repository(HfApi(endpoint="http://127.0.0.1:9", token=TOKEN), REPO, wait=lambda _: None)
    with pytest.raises(PipelineError, match="reading failed: ConnectError; run again") as error:
        repository.state("main")
    assert isinstance(error.value.__cause__, httpx2.ConnectError)
