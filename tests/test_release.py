"""`release.json` is a contract: read back as it was written, refused when it is newer, incomplete or leaves its folder."""

import json

import pytest

from corembed import release
from corembed.__main__ import main


def spoiled(folder, **changes):
    return json.dumps(json.loads((folder / release.FILE).read_text()) | changes)


def test_reading_gives_back_what_was_written(tiny_release):
    text = (tiny_release / release.FILE).read_text()

    assert release.parse(text).to_json() == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 99}, "upgrade corembed"),
        ({"schema": None}, "no schema version"),
        ({"dimension": "many"}, "release.dimension must be int"),
        ({"functions": {}}, "release.functions must be a list"),
        ({"files": {"../../etc/passwd": {"bytes": 1, "sha256": ""}}}, "not inside the release"),
        ({"files": {"/etc/passwd": {"bytes": 1, "sha256": ""}}}, "not inside the release"),
    ],
)
def test_a_record_that_is_not_right_is_refused(tiny_release, changes, message):
    with pytest.raises(release.ReleaseError, match=message):
        release.parse(spoiled(tiny_release, **changes))


def test_a_missing_field_is_named(tiny_release):
    raw = json.loads((tiny_release / release.FILE).read_text())
    del raw["recipe"]["pooling"]

    with pytest.raises(release.ReleaseError, match=r"release\.recipe\.pooling is missing"):
        release.parse(json.dumps(raw))


def test_an_unknown_variant_names_those_there(tiny_release):
    with pytest.raises(release.ReleaseError, match=r"fp16 \(single\), int8 \(single\)"):
        release.read(tiny_release).package("int3")


def test_the_command_line_says_what_is_wrong(tiny_release, tmp_path, capsys):
    assert main(["verify", str(tiny_release)]) == 0
    assert main(["verify", str(tmp_path)]) == 1
    assert "not a corembed release" in capsys.readouterr().err


def test_no_figure_of_a_mac_is_invented(tiny_release):
    card = (tiny_release / "README.md").read_text()
    benchmark = json.loads((tiny_release / "reports/benchmark/fp16.json").read_text())

    assert "not measured" in card
    assert benchmark["neural_engine_latency_p50_ms"] is None
    assert benchmark["neural_engine_share_of_cost"] is None
