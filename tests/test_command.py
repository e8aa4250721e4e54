"""`python -m pipeline SOURCE --out FOLDER`: a release folder, canonical bytes, and one line for each mistake."""

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import coremltools as ct
import numpy as np
import pytest
from helpers import ROOT, build_release, run
from sentence_transformers import SentenceTransformer

from corembed import Embedder, release
from pipeline.errors import PipelineError
from pipeline.files import inventory


def build(source, out, *more):
    return build_release(f"path:{source}", "--out", out, *more)


def test_the_release_verifies_and_equals_sentence_transformers(tiny_checkpoint, tiny_release):
    texts = ["", "Hello", "The capital of China is Beijing.", "importance of trees"] + [
        f"text number {i}" for i in range(20)
    ]
    theirs = SentenceTransformer(str(tiny_checkpoint()), device="cpu").encode(texts)
    ours = Embedder.from_pretrained(tiny_release, engine="milrun").encode(texts)

    assert release.verify(tiny_release) == []
    assert ours.dtype == np.float32
    assert (ours * theirs).sum(1).min() >= 0.9995


def test_a_package_opens_in_unmodified_coremltools(tiny_release):
    path = str(tiny_release / "int8.mlpackage")
    ct.models.MLModel(path, skip_model_load=True)
    spec = ct.models.utils.load_spec(path)

    assert [f.name for f in spec.description.functions] == ["length_16", "length_64"]
    assert spec.description.defaultFunctionName == "length_16"
    assert spec.description.metadata.userDefined["corembed.variant"] == "int8"


def test_linear_layers_stay_linear_and_ranks_stay_low(tiny_release):
    spec = ct.models.utils.load_spec(str(tiny_release / "fp16.mlpackage"))
    (block,) = spec.mlProgram.functions["length_64"].block_specializations.values()
    kinds = [o.type for o in block.operations]
    ranks = [o.type.tensorType.rank for op in block.operations for o in op.outputs]

    assert kinds.count("linear") == 3 * 6
    assert kinds.count("matmul") == 1  # the pooling
    assert kinds.count("scaled_dot_product_attention") == 3
    assert max(ranks) <= 4


def test_buckets_share_the_weights(tiny_checkpoint, tmp_path):
    """Three buckets weigh at most 1.02 times one on disk, apart from the programs themselves."""
    source = tiny_checkpoint()
    build(source, tmp_path / "one", "--max-length", 16)
    build(source, tmp_path / "three", "--max-length", 16, 32, 64)
    one, three = (
        (tmp_path / n / "fp16.mlpackage/Data/com.apple.CoreML/weights/weight.bin").stat().st_size
        for n in ("one", "three")
    )

    assert three <= 1.02 * one


def test_parts_fit_the_limit_and_give_the_same_bits(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint(num_hidden_layers=4, hidden_size=64, intermediate_size=1024)
    build(source, tmp_path / "single", "--max-length", 16)
    last = build(source, tmp_path / "parts", "--max-length", 16, "--layout", "parts", "--size-limit", "5MiB")
    texts = ["one", "two words", "", "importance"]
    single = Embedder.from_pretrained(tmp_path / "single", engine="milrun").encode(texts)
    parts = Embedder.from_pretrained(tmp_path / "parts", engine="milrun").encode(texts)
    sizes = [
        sum(f.stat().st_size for f in p.rglob("*") if f.is_file())
        for p in (tmp_path / "parts").glob("*/*.mlpackage")
    ]

    assert len(sizes) > 1
    assert max(sizes) <= 5 << 20
    np.testing.assert_array_equal(parts, single)
    assert last["passed"]


def test_two_builds_have_the_same_bytes(tiny_checkpoint, tiny_release, tmp_path):
    again = tmp_path / "tiny"
    build(tiny_checkpoint(), again, "--max-length", 16, 64, "--variant", "fp16", "int8")

    def packages(folder):
        return {path: entry for path, entry in inventory(folder).items() if ".mlpackage/" in path}

    assert len(packages(again)) == 6
    assert packages(again) == packages(tiny_release)


@pytest.mark.parametrize("after", [3.0, 7.0, 10.0, 13.0])
def test_killed_at_any_moment_a_second_run_ends_with_the_same_bytes(
    tiny_checkpoint, tiny_release, tmp_path, after
):
    out = tmp_path / "tiny"
    command = [
        "pipeline",
        f"path:{tiny_checkpoint()}",
        "--out",
        str(out),
        "--max-length",
        "16",
        "64",
        "--variant",
        "fp16",
        "int8",
    ]
    with subprocess.Popen(
        [sys.executable, "-m", *command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
    complete = [
        p for p in tmp_path.rglob("*.mlpackage") if not any(x.startswith(".partial-") for x in p.parts)
    ]
    for package in complete:  # what is at a final path is whole
        ct.models.utils.load_spec(str(package))
        assert (package / "Data/com.apple.CoreML/weights/weight.bin").exists()
    build_release(*command[1:])

    digest = {p: e for p, e in inventory(out).items() if ".mlpackage/" in p}
    assert digest == {p: e for p, e in inventory(tiny_release).items() if ".mlpackage/" in p}


def test_work_kept_from_a_failed_run_is_not_used_for_other_weights(tiny_checkpoint, tmp_path):
    """A gate is missed, the checkpoint is replaced, the same command again: the new weights are built."""
    source = shutil.copytree(tiny_checkpoint(initializer_range=1.0), tmp_path / "source")
    assert not build(source, tmp_path / "out", "--max-length", 16, "--variant", "int4")["passed"]
    for file in tiny_checkpoint().rglob("*.safetensors"):
        shutil.copy(file, source / file.name)
    build(source, tmp_path / "out", "--max-length", 16)
    build(tiny_checkpoint(), tmp_path / "other", "--max-length", 16)
    weights = "fp16.mlpackage/Data/com.apple.CoreML/weights/weight.bin"

    assert (tmp_path / "out" / weights).read_bytes() == (tmp_path / "other" / weights).read_bytes()


def test_a_flipped_byte_is_noticed(tiny_release, tmp_path):
    copy = shutil.copytree(tiny_release, tmp_path / "copy")
    path = copy / "fp16.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.unlink()
    path.write_bytes(data)

    (problem,) = release.verify(copy)

    assert hashlib.sha256(data).hexdigest() in problem


def edit(folder, name, **changes):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def untouched(folder):
    return folder


MISTAKES = {
    "unknown variant": (untouched, ["--variant", "int3"], "no entry 'int3' under `variants:`"),
    "beyond the positions": (
        untouched,
        ["--max-length", 65],
        "max_length 65 is beyond the model's 64 positions",
    ),
    "unordered lengths": (untouched, ["--max-length", 64, 16], "rising order"),
    "unsupported config": (
        lambda f: edit(f, "config.json", model_type="rwkv"),
        [],
        "no architecture for model_type 'rwkv'",
    ),
    "other sizes": (lambda f: edit(f, "config.json", intermediate_size=65), [], "config.json implies"),
    "vocabulary": (lambda f: edit(f, "config.json", vocab_size=100), [], "config.json implies [100, 32]"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), [], "no model.safetensors"),
    "limit too small": (untouched, ["--layout", "parts", "--size-limit", "1KiB"], "more than the size limit"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_says_what_is_wrong_and_leaves_nothing(tiny_checkpoint, tmp_path, mistake):
    spoil, more, message = MISTAKES[mistake]
    source = shutil.copytree(tiny_checkpoint(), tmp_path / "source")
    spoil(source)

    with pytest.raises(PipelineError, match=re.escape(message)):
        build(source, tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("reference.json"))  # told before the long step


def test_at_the_command_line_a_mistake_is_one_line(tiny_checkpoint, tmp_path):
    said = run(
        "pipeline", f"path:{tiny_checkpoint()}", "--out", tmp_path / "out", "--max-length", 65, fails=True
    )

    assert [line for line in said.splitlines() if line.startswith("error: ")] == [said.splitlines()[-1]]
    assert "Traceback" not in said


def test_the_last_line_is_json(tiny_checkpoint, tmp_path):
    said = run("pipeline", f"path:{tiny_checkpoint()}", "--out", tmp_path / "out", "--max-length", 16)
    last = json.loads(said.splitlines()[-1])

    assert last.keys() == {"passed", "model", "dimension", "variants", "peak_rss_bytes", "seconds"}
    assert last["dimension"] == 32
    assert last["variants"]["fp16"]["min_cosine"] >= 0.9995
    assert last["variants"]["fp16"]["bytes"] > 30522 * 32 * 2


def test_a_gate_that_is_missed_fails_and_leaves_no_release(tiny_checkpoint, tmp_path):
    """Random tiny weights lose too much at 4 bits: the command names what was measured and allowed."""
    command = ["pipeline", f"path:{tiny_checkpoint(initializer_range=1.0)}", "--out", tmp_path / "out"]
    said = run(*command, "--max-length", 16, "--variant", "int4", fails=True)

    assert "allowed at least 0.9" in said
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_line(tiny_checkpoint, tmp_path):
    """With files limited to 1 MB the weights do not fit: no traceback, nothing at the final path."""
    limited = f"ulimit -f 1024; trap '' XFSZ; {sys.executable} -m pipeline path:{tiny_checkpoint()} --out {tmp_path / 'out'}"
    done = subprocess.run(["/bin/bash", "-c", limited], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "error: cannot write" in done.stderr
    assert not (tmp_path / "out").exists()
