"""`corembed embed`: every format in and out, going on after a kill, and a sentence instead of a traceback."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest
import stub
from pyarrow import parquet

from corembed import Embedder, engines
from corembed.__main__ import main
from corembed.engines.packages import PackageEngine

STUB = stub.__file__
TEXTS = ["one", "a longer text about the sea", "", "üñí\u2028code", "one"]


@pytest.fixture(scope="module")
def vectors(tiny_release):
    return Embedder.from_pretrained(tiny_release, engine="milrun").encode(TEXTS)


@pytest.fixture
def stubbed(tiny_release, monkeypatch):
    """An embedder with the stub, which every command in this process then shares."""
    monkeypatch.setattr(engines, "choose", lambda _, request: stub.Stub(request))
    made = Embedder.from_pretrained(tiny_release)
    monkeypatch.setattr(engines, "choose", lambda *_: made.engine)
    return made


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def embed(tiny_release):
    """Run the command in this process; gives its exit code."""
    return lambda *arguments: main(["embed", str(tiny_release), *map(str, arguments), "--engine", "milrun"])


def write(path, texts=TEXTS):
    """A file of these texts, in the format of its suffix."""
    if path.endswith(".jsonl"):
        with open(path, "w") as file:
            file.writelines(
                json.dumps({"id": i, "body": t, "more": None}) + "\n" for i, t in enumerate(texts)
            )
    elif path.endswith(".parquet"):
        parquet.write_table(pa.table({"id": range(len(texts)), "body": texts}), path, row_group_size=2)
    else:
        with open(path, "w") as file:
            file.writelines(t + "\n" for t in texts)
    return path


def read(path):
    """Vectors and kept ids of an output."""
    if path.endswith(".npy"):
        return np.load(path), None
    if path.endswith(".parquet"):
        table = parquet.read_table(path)
        rows = np.stack(table["embedding"].to_numpy(zero_copy_only=False))
        return rows, table["id"].to_pylist() if "id" in table.column_names else None
    with open(path) as file:
        rows = [json.loads(line) for line in file]
    return np.array([r["embedding"] for r in rows], np.float32), [r.get("id") for r in rows]


@pytest.mark.parametrize("source", ["in.txt", "in.jsonl", "in.parquet"])
@pytest.mark.parametrize("out", ["out.npy", "out.jsonl", "out.parquet"])
def test_each_format_gives_the_same_vectors_in_order(embed, vectors, source, out):
    records = source != "in.txt"
    options = ["--field", "body", "--keep", "id"] if records else []

    assert embed(write(source), "--out", out, *options) == 0
    rows, ids = read(out)
    np.testing.assert_array_equal(rows, vectors)
    assert rows.dtype == np.float32
    if records and ids is not None:
        assert ids == [0, 1, 2, 3, 4]
    assert not os.path.exists(out + ".part")


def test_several_files_and_files_as_texts(embed, tiny_release):
    for name, text in {"a.md": "first\nfile\n", "b.md": "second"}.items():
        with open(name, "w") as file:
            file.write(text)

    assert embed("a.md", "b.md", "--format", "file", "--keep", "path", "--out", "out.jsonl") == 0
    rows, _ = read("out.jsonl")
    model = Embedder.from_pretrained(tiny_release, engine="milrun")
    np.testing.assert_array_equal(rows, model.encode(["first\nfile\n", "second"]))
    with open("out.jsonl") as file:
        assert [json.loads(line)["path"] for line in file] == ["a.md", "b.md"]


def test_a_pipe_in_and_out(tiny_release, stubbed):
    command = [sys.executable, STUB, "embed", tiny_release, "-", "--out", "-"]
    text = "".join(t + "\n" for t in TEXTS)
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, check=True, env=stub.ENVIRONMENT
    )

    rows = [json.loads(line)["embedding"] for line in done.stdout.splitlines()]
    np.testing.assert_array_equal(np.float32(rows), stubbed.encode(TEXTS))


def test_nothing_in_gives_an_empty_output(embed):
    for out in ("out.npy", "out.jsonl", "out.parquet"):
        assert embed(write("none.txt", []), "--out", out) == 0
    assert np.load("out.npy").shape == (0, 32)
    assert parquet.read_table("out.parquet").num_rows == 0


def test_parquet_says_what_made_it(embed, tiny_release):
    embed(write("in.txt"), "--out", "out.parquet")
    about = json.loads(parquet.read_schema("out.parquet").metadata[b"corembed"])

    assert (about["variant"], about["engine"]) == ("fp16", "milrun")
    assert about["embedding_space"] == Embedder.from_pretrained(tiny_release, engine="milrun").embedding_space


@pytest.mark.parametrize("out", ["out.npy", "out.jsonl", "out.parquet"])
def test_a_killed_run_goes_on(tiny_release, stubbed, capsys, out):
    """SIGKILL in the middle; the same command does only the rest, and the output is that of one run."""
    texts = [f"text number {i}" for i in range(400)]
    write("in.jsonl", texts)
    arguments = [
        "embed",
        tiny_release,
        "in.jsonl",
        "--field",
        "body",
        "--keep",
        "id",
        "--window",
        "16",
        "--out",
        out,
    ]
    # Small windows, so that a small input has many.
    command = [sys.executable, STUB, "--delay", "0.005", *arguments]
    process = subprocess.Popen(command, env=stub.ENVIRONMENT)
    state = f"{out}.part/state.json"
    deadline = time.monotonic() + 300
    while not os.path.exists(state):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with open(state) as file:
        before = json.load(file)["rows"]
    if out == "out.npy":  # rows whose state was not written yet
        with open("out.npy.part/rows.npy", "ab") as file:
            file.write(b"x" * 777)

    expected = stubbed.encode(texts)
    stubbed.engine.calls = 0
    assert main([*map(str, arguments), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    rows, ids = read(out)

    assert 0 < before < 400
    assert (summary["texts"], summary["resumed_after"]) == (400, before)
    assert stubbed.engine.calls == 400 - before
    np.testing.assert_array_equal(rows, expected)
    assert ids in (None, list(range(400)))


def interrupted(embed, monkeypatch, out="out.npy"):
    """A run of five texts that ends after its first window."""
    calls, run = [], PackageEngine.run

    def stop(self, *arguments):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return run(self, *arguments)

    monkeypatch.setattr(PackageEngine, "run", stop)
    assert embed(write("in.txt"), "--window", "2", "--out", out) == 130
    monkeypatch.setattr(PackageEngine, "run", run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: write("in.txt", ["changed", *TEXTS[1:]]), "are not those that"),
        (lambda: write("in.txt", TEXTS[:1]), "fewer texts"),
    ],
)
def test_a_changed_input_does_not_go_on(embed, monkeypatch, capsys, change, message):
    interrupted(embed, monkeypatch)
    assert "2 texts are done, the same command goes on" in capsys.readouterr().err
    change()

    assert embed("in.txt", "--out", "out.npy") == 1
    assert message in capsys.readouterr().err
    assert embed("in.txt", "--out", "out.npy", "--restart") == 0


def test_other_options_do_not_go_on(embed, monkeypatch, capsys):
    interrupted(embed, monkeypatch)

    assert embed("in.txt", "--out", "out.npy", "--variant", "int8") == 1
    assert "was made with another variant" in capsys.readouterr().err


def test_two_runs_of_one_output_do_not_mix(embed, capsys):
    import fcntl  # noqa: PLC0415

    os.mkdir("out.npy.part")
    with open("out.npy.part/lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert embed(write("in.txt"), "--out", "out.npy") == 1
    assert "another process" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (
            b'{"body": "a"}\n{"body": 1}\n',
            ["in.jsonl", "--field", "body"],
            "in.jsonl:2: body is int, expected a string",
        ),
        (b'{"body": "a"}\n', ["in.jsonl"], "in.jsonl:1: no field 'text'; it has body"),
        (b'"a"\n{\n', ["in.jsonl"], "in.jsonl:2: not JSON"),
        (b"[]\n", ["in.jsonl"], "in.jsonl:1: list, expected an object or a string"),
        (b"a\n\xff\n", ["in.jsonl", "--format", "lines"], "in.jsonl:2: not UTF-8"),
        (b"", ["missing.txt"], "missing.txt: no such file"),
        (b"not parquet", ["in.jsonl", "--format", "parquet"], "not a Parquet file"),
        (b'"a"', ["in.jsonl", "--keep", "embedding"], "the output's own field"),
        (b'"a"', ["in.jsonl", "--out", "out.csv"], "cannot write .csv"),
        (b'"a"', ["in.jsonl", "--out", "no/such/out.npy"], "no/such is not a folder"),
        (b'"a"', ["in.jsonl", "--out", "in.jsonl"], "in.jsonl is there already"),
        (b'"a"', ["in.jsonl", "--prompt-name", "query"], "no prompt 'query'"),
        (b'"a"', ["in.jsonl", "--dimensions", "3"], "dimensions=3"),
        (b'"a"', ["in.jsonl", "--variant", "int3"], "no variant 'int3'"),
        (b'"' + b"word " * 100 + b'"', ["in.jsonl", "--truncate", "error"], "text 0 has 102 tokens"),
    ],
)
def test_mistakes_get_a_sentence(embed, capsys, content, options, message):
    with open("in.jsonl", "wb") as file:
        file.write(content)
    out = [] if "--out" in options else ["--out", "out.npy"]

    assert embed(*options, *out) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not os.path.exists("out.npy")


def test_cut_texts_are_counted(embed, capsys):
    assert embed(write("in.txt", ["word " * 100, "short"]), "--out", "out.npy") == 0
    assert "corembed embed: warning: 1 of 2 texts were cut to 64 tokens" in capsys.readouterr().err
