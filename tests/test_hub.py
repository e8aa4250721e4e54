"""The test hub answers the real client as the Hub does: what publishing and downloading rely on, and its faults."""

import pytest
from hub import TOKEN, Fault
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

REPO = "corembed/tiny-coreml"
LARGE = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def api(hub):
    api = HfApi(endpoint=hub.url, token=TOKEN)
    api.create_repo(REPO)
    return api


def add(**files):
    return [CommitOperationAdd(name.replace("_", "."), data) for name, data in files.items()]


def commit(api, operations, **more):
    return api.create_commit(REPO, operations, commit_message="files", **more)


def status(error):
    return error.value.response.status_code


def test_files_arrive_large_ones_in_parts_and_once(hub, api, tmp_path):
    hub.part_bytes = 300_000
    commit(api, add(README_md=b"# hello", weight_bin=LARGE))
    made = commit(api, add(again_bin=LARGE))
    folder = api.snapshot_download(REPO, cache_dir=tmp_path)
    again = commit(api, add(README_md=b"# hello", weight_bin=LARGE))

    assert (tmp_path / folder / "again.bin").read_bytes() == LARGE
    assert (tmp_path / folder / "README.md").read_bytes() == b"# hello"
    assert sum(hub.received.values()) == len(LARGE)
    assert hub.requests.count("put") == 4
    assert again.oid == made.oid
    assert next(c.commit_id for c in api.list_repo_commits(REPO)) == made.oid


def test_a_commit_names_its_parent_or_is_refused(api):
    first = commit(api, add(a_txt=b"1"))
    second = commit(api, add(a_txt=b"2"), parent_commit=first.oid)
    with pytest.raises(HfHubHTTPError) as error:
        commit(api, add(a_txt=b"3"), parent_commit=first.oid)

    assert status(error) == 412
    assert api.model_info(REPO).sha == second.oid


def test_files_and_folders_are_deleted_in_the_same_commit(api):
    commit(api, [CommitOperationAdd(p, b"x") for p in ("old/a.txt", "old/b.txt", "c.txt", "d.txt")])
    commit(api, [CommitOperationDelete("old/"), CommitOperationDelete("c.txt"), *add(e_txt=b"new")])

    assert set(api.list_repo_files(REPO)) == {".gitattributes", "d.txt", "e.txt"}
    with pytest.raises(RemoteEntryNotFoundError):
        commit(api, [CommitOperationDelete("c.txt")])


def test_tags_and_branches_are_made_once(api):
    made = commit(api, add(a_txt=b"1"))
    api.create_tag(REPO, tag="v1.0.0", revision=made.oid)
    api.create_branch(REPO, branch="next")
    for again in (
        lambda: api.create_tag(REPO, tag="v1.0.0"),
        lambda: api.create_branch(REPO, branch="next"),
        lambda: api.create_repo(REPO),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            again()
        assert status(error) == 409
    refs = api.list_repo_refs(REPO)

    assert [(t.name, t.target_commit) for t in refs.tags] == [("v1.0.0", made.oid)]
    assert {b.name for b in refs.branches} == {"main", "next"}
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO


def test_a_pull_request_changes_main_only_when_it_is_merged(api):
    before = commit(api, add(a_txt=b"1", gone_txt=b"1"))
    pull = api.create_pull_request(REPO, title="release")
    commit(api, add(b_bin=LARGE), revision=pull.git_reference)
    commit(api, [CommitOperationDelete("gone.txt")], revision=pull.git_reference)
    untouched = api.model_info(REPO).sha
    with pytest.raises(HfHubHTTPError):
        api.merge_pull_request(REPO, pull.num)  # a draft
    api.change_discussion_status(REPO, pull.num, "open")
    api.merge_pull_request(REPO, pull.num)

    assert untouched == before.oid
    assert set(api.list_repo_files(REPO)) == {".gitattributes", "a.txt", "b.bin"}
    assert api.get_discussion_details(REPO, pull.num).status == "merged"


def test_a_merge_over_another_change_is_a_conflict(api):
    made = commit(api, add(a_txt=b"1"), create_pr=True)
    commit(api, add(a_txt=b"2"))
    with pytest.raises(HfHubHTTPError) as error:
        api.merge_pull_request(REPO, made.pr_num)

    assert status(error) == 409


def test_long_listings_come_in_pages_and_checksums_are_compared(hub, api, tmp_path):
    hub.page = 2
    commit(api, [CommitOperationAdd(f"{n}.txt", b"x") for n in range(5)])
    folder = tmp_path / "folder"
    api.snapshot_download(REPO, local_dir=folder)
    (folder / "3.txt").write_bytes(b"y")
    found = api.verify_repo_checksums(REPO, local_dir=folder)

    assert found.checked_count == 6
    assert [m["path"] for m in found.mismatches] == ["3.txt"]


def test_what_is_not_there_and_who_may_not_write(hub, api):
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("corembed/other")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="v9")
    with pytest.raises(HfHubHTTPError) as error:
        HfApi(endpoint=hub.url, token=TOKEN[:-1]).create_tag(REPO, tag="v1")
    assert status(error) == 403
    with pytest.raises(HfHubHTTPError) as error:
        HfApi(endpoint=hub.url, token=False).create_tag(REPO, tag="v1")
    assert status(error) == 401


def test_a_large_file_must_have_arrived_before_a_commit_names_it(hub, api):
    hub.faults.append(Fault("put", "expired"))
    with pytest.raises(RuntimeError, match="Error while uploading"):
        commit(api, add(weight_bin=LARGE))
    untouched = api.list_repo_files(REPO)
    commit(api, add(weight_bin=LARGE))

    assert untouched == [".gitattributes"]
    assert api.file_exists(REPO, "weight.bin")


@pytest.mark.parametrize(
    ("route", "kind"), [("batch", 503), ("put", "drop"), ("put", 500), ("preupload", "lost"), ("tree", 502)]
)
def test_passing_faults_are_met_and_survived(hub, api, tmp_path, route, kind):
    hub.faults.append(Fault(route, kind))
    commit(api, add(weight_bin=LARGE))
    folder = api.snapshot_download(REPO, cache_dir=tmp_path)

    assert [f.route for f in hub.struck] == [route]
    assert (tmp_path / folder / "weight.bin").read_bytes() == LARGE


@pytest.mark.parametrize("kind", ["truncate", "slow"])
def test_a_download_over_a_bad_line_has_every_byte(hub, api, tmp_path, kind):
    commit(api, add(weight_bin=LARGE))
    hub.faults.append(Fault("resolve", kind, skip=1, at=0.7))
    path = api.hf_hub_download(REPO, "weight.bin", cache_dir=tmp_path)

    assert [f.kind for f in hub.struck] == [kind]
    assert (tmp_path / path).read_bytes() == LARGE


def test_a_lost_answer_may_hide_a_commit_that_was_made(hub, api):
    hub.faults.append(Fault("commit", "lost"))
    with pytest.raises(Exception, match="Server disconnected"):
        commit(api, add(a_txt=b"1"))

    assert api.file_exists(REPO, "a.txt")
