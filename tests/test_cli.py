"""The other commands: what they say, what they leave behind, and a sentence instead of a traceback."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT
from hub import running

from corembed import cli, release
from corembed.__main__ import main


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COREMBED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub(tiny_release, cache, tmp_path):
    """A hub with the tiny release; gives what runs the real command against it."""
    with running(tiny_release) as server:
        server.store.of("org/model").tag("v1.0", "main")
        environment = (
            os.environ
            | server.environment(tmp_path / "hf")
            | {"COREMBED_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
        )

        def corembed(*arguments, code=0, **more):
            command = [sys.executable, "-m", "corembed", *map(str, arguments)]
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env=environment | more
            )
            assert done.returncode == code, done.stderr
            assert "Traceback" not in done.stderr
            return done.stdout if code == 0 else done.stderr

        yield corembed


def test_pull_fetches_one_variant_and_then_needs_no_network(hub, cache):
    """Fetched with a network, embedded without one; the cache then says what it holds, and forgets it when told."""
    pulled = json.loads(hub("pull", "org/model", "--revision", "v1.0", "--variant", "int8", "--json"))
    folder = cache / "releases" / "org--model" / pulled["commit"]

    assert pulled["folder"] == str(folder)
    assert [p["variant"] for p in pulled["packages"]] == ["int8"]
    assert (folder / "int8.mlpackage").is_dir()
    assert not (folder / "fp16.mlpackage").exists()
    said = hub("info", "org/model", "--revision", "v1.0", COREMBED_OFFLINE="1")
    assert re.search(r"int8 +single +1 ", said)
    assert "offline" in hub("pull", "org/model", "--revision", "v2.0", code=1, COREMBED_OFFLINE="1")
    assert "no tag, branch or commit 'v2.0'" in hub("pull", "org/model", "--revision", "v2.0", code=1)
    assert "no such repository" in hub("info", "org/other", code=1)

    (entry,) = json.loads(hub("cache", "list", "--json"))["entries"]
    assert (entry["kind"], entry["name"]) == ("releases", f"org/model@{pulled['commit']}")
    assert entry["bytes"] == sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    assert "0 entries, 0 B, deleted" in hub("cache", "prune", "--max-size", "1GiB", "--max-age-days", "1")
    assert folder.is_dir()
    assert "1 entries" in hub("cache", "clear")
    assert not folder.exists()


def test_prune_by_size(hub, cache):
    hub("pull", "org/model", "--all")
    (commit,) = [p for p in (cache / "releases" / "org--model").iterdir() if p.name != "refs"]
    assert {"fp16.mlpackage", "int8.mlpackage"} <= {p.name for p in commit.iterdir()}

    assert "1 entries" in hub("cache", "prune", "--max-size", "1kB")
    assert not commit.exists()


def test_info_says_what_was_not_measured(tiny_release, capsys):
    assert main(["info", str(tiny_release)]) == 0
    said = capsys.readouterr().out

    record = release.read(tiny_release)
    assert record.embedding_space in said
    assert re.search(r"fp16 +single +1 .* 0\.99\d+ +not measured", said)
    assert main(["info", str(tiny_release), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["embedding_space"] == record.embedding_space


def test_doctor_names_each_engine_and_hides_secrets(tiny_release, monkeypatch, capsys, cache):
    monkeypatch.setenv("COREMBED_ENGINE", "milrun")
    monkeypatch.setenv("COREMBED_API_KEY", "very-secret")
    monkeypatch.setenv("COREMBED_OFFLINE", "1")

    assert main(["doctor", str(tiny_release), "--variant", "int8", "--json"]) == 0
    text = capsys.readouterr().out
    found = json.loads(text)
    assert list(found["engines"]) == ["coreml", "mlx", "sentence-transformers", "milrun"]
    assert (found["would_run"], found["works"], found["engines"]["milrun"]) == ("milrun", True, None)
    assert "pass source=FOLDER" in found["engines"]["mlx"]  # the tiny checkpoint was a folder of the tests
    assert (found["release"]["variant"], found["release"]["fetched"]) == ("int8", True)
    assert (found["cache"]["folder"], found["cache"]["offline"]) == (str(cache), True)
    assert found["variables"]["COREMBED_API_KEY"] == "(set)"
    assert "very-secret" not in text


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML runs on a Mac")
def test_doctor_fails_where_nothing_can_run(tiny_release, monkeypatch, capsys):
    monkeypatch.delenv("COREMBED_ENGINE", raising=False)

    assert main(["doctor", str(tiny_release)]) == 1
    said = capsys.readouterr().out
    assert "engine coreml: Core ML runs on a Mac only" in said
    assert "would run: nothing" in said


def notes(folder):
    (folder / "sub").mkdir(parents=True)
    (folder / "a.md").write_text("first paragraph\nof two lines\n\nsecond paragraph\n")
    (folder / "sub" / "b.txt").write_text("\n\nthird paragraph")
    (folder / "image.png").write_bytes(b"\xff")
    return folder


@pytest.fixture
def search(tiny_release, tmp_path, capsys):
    folder = notes(tmp_path / "notes")

    def run(*arguments):
        command = ["search", str(tiny_release), str(folder), *arguments, "--engine", "milrun", "--json"]
        code, said = main(command), capsys.readouterr()
        return code, [json.loads(line) for line in said.out.splitlines()], said.err

    return folder, run


def test_search_finds_passages_with_their_places(search):
    _, run = search
    code, found, said = run("third paragraph", "--top", "2")

    assert code == 0
    assert "3 passages embedded, 0 removed" in said
    assert (found[0]["path"], found[0]["line"], found[0]["text"]) == ("sub/b.txt", 3, "third paragraph")
    assert found[0]["score"] == pytest.approx(1, abs=1e-3)  # the very text, and this release has no prompts
    assert found[1]["score"] < found[0]["score"]
    assert len(found) == 2


def test_search_embeds_only_what_changed(search):
    folder, run = search
    run("x")
    (folder / "a.md").write_text("second paragraph\n")
    (folder / "sub" / "b.txt").unlink()
    (folder / "c.txt").write_text("new")

    _, found, said = run("x")
    assert "2 passages embedded, 3 removed, 2 in" in said
    assert sorted(p["text"] for p in found) == ["new", "second paragraph"]
    assert "0 passages embedded, 0 removed" in run("x")[2]


def test_search_refuses_an_index_of_another_space(search, tiny_release, tmp_path, capsys):
    folder, run = search
    run("x")
    other = shutil.copytree(tiny_release, tmp_path / "other")
    raw = json.loads((other / release.FILE).read_text()) | {"embedding_space": "0" * 16}
    (other / release.FILE).write_text(json.dumps(raw))

    assert main(["search", str(other), str(folder), "x", "--engine", "milrun"]) == 1
    assert "cannot be compared" in capsys.readouterr().err
    assert "0 passages embedded, 0 removed, 3 in" in run("x")[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "no/such/folder"], "no such folder"),
        (["info", "."], "holds no release.json"),
        (["cache", "prune"], "say --max-size, --max-age-days or both"),
        (["embed", "RELEASE", "-", "--out", "x.npy", "--engine", "onnx"], "no engine 'onnx'"),
        (["search", "RELEASE", "missing", "x"], "missing is not a folder"),
        (["search", "RELEASE", "empty", "x", "--engine", "milrun"], "holds no text"),
        (["serve", "RELEASE", "--host", "192.0.2.1"], "set COREMBED_API_KEY"),
        (["serve", "RELEASE", "--api-key-file", "empty.txt"], "holds no API key"),
        (["serve", "RELEASE", "--api-key-file", "missing.txt"], "missing.txt"),
        (
            ["serve", "RELEASE", "--port", "1", "--host", "192.0.2.1", "--allow-anonymous"],
            "cannot serve on 192.0.2.1 port 1",
        ),
        (["search", "RELEASE", "empty", "x", "--store", "empty.txt"], "empty.txt is not a folder"),
        (["embed", "RELEASE", "empty.txt", "--out", "folder.npy"], "folder.npy is a folder"),
        (["verify", "empty"], "not a corembed release"),
    ],
)
def test_mistakes_get_a_sentence(tiny_release, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "empty.txt").touch()

    assert main([str(tiny_release) if a == "RELEASE" else a for a in arguments]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.splitlines()[-1].startswith(f"corembed {arguments[0]}: ")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["serve", "x", "--port", "70000"],
        ["cache", "prune", "--max-size", "big"],
        ["cache", "prune", "--max-age-days", "-5"],
    ],
)
def test_a_wrong_call_is_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)

    assert stopped.value.code == 2
    assert "usage: corembed" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_an_example_or_a_reason(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])

    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert f"usage: corembed {name}" in said
    assert len(said.splitlines()) > 5


def test_a_missing_extra_is_named(tiny_release, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "chromadb", None)

    assert main(["search", str(tiny_release), str(tiny_release), "x", "--engine", "milrun"]) == 1
    assert "pip install 'corembed[chroma]'" in capsys.readouterr().err


def test_help_loads_nothing_heavy():
    heavy = ["torch", "transformers", "coremltools", "chromadb", "fastapi", "pyarrow", "mlx"]
    code = (
        "import sys\nfrom corembed.__main__ import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print('loaded:', *[m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1].strip() == "loaded:"


def test_a_closed_pipe_is_no_failure(tiny_release):
    """As in `corembed info … | head -1`, where the reader is gone before all is said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "corembed", "info", tiny_release],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()

    assert process.wait(60) == 0
    assert process.stderr.read() == b""
