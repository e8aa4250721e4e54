"""Which engine runs a release, and why; whichever does, the vectors lie in the release's space."""

import concurrent.futures
import dataclasses
import json
import logging
import random
import shutil
import sys

import numpy as np
import pytest
import torch
from helpers import edited, minilm
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer

from corembed import Embedder, EngineError, engines, release
from corembed.engines import coreml
from corembed.machine import Machine
from corembed.release import Package, Release
from pipeline.files import inventory

TEXTS = ["", "Hello", "importance of trees", "日本語の文章", "naïve café", "word " * 40, "é" * 30, "a\tb\n c"]
GIB = 2**30


def source_release(tiny_release, checkpoint, out, **changes):
    """A release that says it was made of this checkpoint."""
    record = json.loads((tiny_release / release.FILE).read_text())
    source = {**record["source"], "name": "path:here", "files": inventory(checkpoint)}
    folder = edited(tiny_release, out, **{"source": source, **changes})
    shutil.copy(checkpoint / "tokenizer.json", folder / "tokenizer.json.new")
    (folder / "tokenizer.json.new").replace(folder / "tokenizer.json")
    files = record["files"] | {"tokenizer.json": inventory(folder)["tokenizer.json"]}
    (folder / release.FILE).write_text(
        json.dumps(json.loads((folder / release.FILE).read_text()) | {"files": files})
    )
    return folder


@pytest.fixture(scope="module")
def minilm_release(tiny_release, tmp_path_factory):
    tokenizer = {"max_length": 128, "pad_id": 0, "padding": "right"}
    return source_release(
        tiny_release, minilm(), tmp_path_factory.mktemp("minilm") / "r", dimension=384, tokenizer=tokenizer
    )


@pytest.fixture(scope="module")
def original():
    model = SentenceTransformer(str(minilm()), device="cpu", model_kwargs={"dtype": torch.float32})
    model.max_seq_length = 128
    return model


@pytest.mark.parametrize("engine", ["mlx", "sentence-transformers"])
def test_a_fallback_gives_the_original_vectors(minilm_release, original, engine):
    texts = TEXTS * 5
    embedder = Embedder.from_pretrained(minilm_release, engine=engine, source=minilm())

    assert (embedder.encode(texts) * original.encode(texts)).sum(1).min() >= 0.99999
    assert embedder.engine.name == engine
    assert embedder.package is None
    assert embedder.embedding_space == release.read(minilm_release).embedding_space


@pytest.mark.parametrize("engine", ["mlx", "sentence-transformers"])
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_decoders_with_the_last_token(tiny_checkpoint, tiny_release, tmp_path, engine, kind, padding):
    checkpoint = tiny_checkpoint("pooling_mode_lasttoken", model_type=kind)
    record = release.read(tiny_release)
    recipe = dataclasses.asdict(dataclasses.replace(record.recipe, pooling="lasttoken"))
    tokenizer = dataclasses.asdict(dataclasses.replace(record.tokenizer, padding=padding))
    folder = source_release(tiny_release, checkpoint, tmp_path / "r", recipe=recipe, tokenizer=tokenizer)
    expected = SentenceTransformer(str(checkpoint), device="cpu").encode(TEXTS)

    embedder = Embedder.from_pretrained(folder, engine=engine, source=checkpoint)

    assert (embedder.encode(TEXTS) * expected).sum(1).min() >= 0.99999


@pytest.mark.parametrize("engine", ["mlx", "sentence-transformers"])
def test_the_releases_recipe_holds_not_the_checkpoints(tiny_checkpoint, tiny_release, tmp_path, engine):
    """The checkpoint declares mean; the release was made with cls, as its maker asked."""
    recipe = dataclasses.asdict(dataclasses.replace(release.read(tiny_release).recipe, pooling="cls"))
    folder = source_release(tiny_release, tiny_checkpoint(), tmp_path / "r", recipe=recipe)
    model = SentenceTransformer(str(tiny_checkpoint()), device="cpu")
    declared = model.encode(TEXTS)
    model[1].pooling_mode = "cls"
    expected = model.encode(TEXTS)

    found = Embedder.from_pretrained(folder, engine=engine, source=tiny_checkpoint()).encode(TEXTS)

    assert (found * expected).sum(1).min() >= 0.99999
    assert (found * declared).sum(1).min() < 0.99


@pytest.mark.parametrize("engine", ["mlx", "sentence-transformers"])
def test_a_fallback_in_threads_and_in_any_order(tiny_checkpoint, tiny_release, tmp_path, engine):
    folder = source_release(tiny_release, tiny_checkpoint(), tmp_path / "r")
    embedder = Embedder.from_pretrained(folder, engine=engine, source=tiny_checkpoint())
    texts = [f"text {i}" for i in range(32)]
    expected = embedder.encode(texts, batch_size=4)

    def shuffled(seed):
        order = random.Random(seed).sample(range(32), 32)  # noqa: S311
        return order, embedder.encode([texts[i] for i in order], batch_size=4)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for order, vectors in pool.map(shuffled, range(8)):
            np.testing.assert_array_equal(vectors, expected[order])


@pytest.mark.parametrize("engine", ["mlx", "sentence-transformers"])
def test_another_checkpoint_is_refused(tiny_checkpoint, tiny_release, tmp_path, engine):
    folder = source_release(tiny_release, tiny_checkpoint(), tmp_path / "r")

    with pytest.raises(EngineError, match=r"model.safetensors: SHA-256 .*not the checkpoint"):
        Embedder.from_pretrained(folder, engine=engine, source=tiny_checkpoint(seed=7))
    with pytest.raises(EngineError, match="pass source=FOLDER"):
        Embedder.from_pretrained(folder, engine=engine)
    with pytest.raises(EngineError, match="no such folder"):
        Embedder.from_pretrained(folder, engine=engine, source=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mpnet"}, "model type 'mpnet' is not implemented"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({"hidden_act": "swish2"}, "activation 'swish2'"),
    ],
)
def test_mlx_refuses_what_it_does_not_know_to_the_letter(
    tiny_checkpoint, tiny_release, tmp_path, changes, message
):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint(), checkpoint)
    config = json.loads((checkpoint / "config.json").read_text()) | changes
    (checkpoint / "config.json").write_text(json.dumps(config))
    folder = source_release(tiny_release, checkpoint, tmp_path / "r")

    with pytest.raises(EngineError, match=message):
        Embedder.from_pretrained(folder, engine="mlx", source=checkpoint)


def test_a_tensor_that_is_missing_is_missed_at_once(tiny_checkpoint, tiny_release, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint(), checkpoint)
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["encoder.layer.2.output.dense.weight"]
    save_file(tensors, checkpoint / "model.safetensors")
    folder = source_release(tiny_release, checkpoint, tmp_path / "r")

    with pytest.raises(EngineError, match=r"weights have no 'encoder.layer.2.output.dense.weight'"):
        Embedder.from_pretrained(folder, engine="mlx", source=checkpoint)


def test_an_engine_that_cannot_be_loaded_is_passed_over(tiny_checkpoint, tiny_release, tmp_path, monkeypatch):
    folder = source_release(tiny_release, tiny_checkpoint(), tmp_path / "r")
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    embedder = Embedder.from_pretrained(folder, source=tiny_checkpoint())

    assert embedder.engine.name == "sentence-transformers"
    assert "mlx (cannot be loaded" in embedder.engine.reason
    monkeypatch.setitem(sys.modules, "sentence_transformers.sentence_transformer", None)
    with pytest.raises(EngineError, match=r"sentence-transformers \(cannot be loaded"):
        Embedder.from_pretrained(folder, source=tiny_checkpoint())


def test_an_unknown_recipe_is_refused(tiny_release, tmp_path):
    recipe = dataclasses.asdict(
        dataclasses.replace(release.read(tiny_release).recipe, pooling="mean_of_layers")
    )
    folder = edited(tiny_release, tmp_path / "r", recipe=recipe)

    for engine in ("mlx", "sentence-transformers"):
        with pytest.raises(EngineError, match="'mean_of_layers' is not implemented"):
            Embedder.from_pretrained(folder, engine=engine)


def test_the_choice_is_explained_in_one_line(tiny_release, tiny_checkpoint, tmp_path, caplog):
    folder = source_release(tiny_release, tiny_checkpoint(), tmp_path / "r")
    with caplog.at_level(logging.INFO, "corembed"):
        embedder = Embedder.from_pretrained(folder, source=tiny_checkpoint())

    assert embedder.engine.name == "mlx"
    assert embedder.engine.reason == "passed over: coreml (Core ML runs on a Mac only, this is Linux)"
    lines = [r.getMessage() for r in caplog.records if " runs in " in r.getMessage()]
    assert lines == [f"{embedder.release.model} runs in mlx; {embedder.engine.reason}"]


def test_where_nothing_runs_every_reason_is_given(tiny_release):
    with pytest.raises(EngineError) as failure:
        Embedder.from_pretrained(tiny_release)

    message = str(failure.value)
    for part in ("coreml (Core ML runs on a Mac only", "mlx (", "sentence-transformers (", 'engine="milrun"'):
        assert part in message


def test_argument_and_environment_choose(tiny_release, monkeypatch):
    monkeypatch.setenv("COREMBED_ENGINE", "milrun")
    assert Embedder.from_pretrained(tiny_release).engine.reason == "asked for by COREMBED_ENGINE"
    monkeypatch.setenv("COREMBED_ENGINE", "mlx")
    assert Embedder.from_pretrained(tiny_release, engine="milrun").engine.reason == "asked for by argument"
    with pytest.raises(
        EngineError, match="no engine 'onnx'; there is coreml, mlx, sentence-transformers, milrun"
    ):
        Embedder.from_pretrained(tiny_release, engine="onnx")
    with pytest.raises(EngineError, match="engine coreml: Core ML runs on a Mac only"):
        Embedder.from_pretrained(tiny_release, engine="coreml")


def mac(chip="Apple M4", macos=(26, 1), architecture="arm64"):
    return Machine("Darwin", architecture, "25B78", macos, chip)


def sized(tiny_release, **layouts: list[int]) -> Release:
    """A record whose packages have these sizes in GiB."""
    record = release.read(tiny_release)
    packages, files = [], {}
    for layout, sizes in layouts.items():
        paths = tuple(f"fp16-{layout}/{i}.mlpackage" for i in range(len(sizes)))
        packages.append(Package("fp16", layout, paths, sum(sizes)))
        files |= {
            f"{p}/weight.bin": release.File(int(s * GIB), "0" * 64) for p, s in zip(paths, sizes, strict=True)
        }
    return dataclasses.replace(record, packages=tuple(packages), files=files)


@pytest.mark.parametrize(
    ("machine", "units", "layout"),
    [
        (mac(), "CPU_AND_NE", "parts"),
        (mac(), "ALL", "parts"),
        (mac(), "CPU_AND_GPU", "single"),
        (mac(), "CPU_ONLY", "single"),
        (mac("Intel(R) Core(TM) i9", architecture="x86_64"), "ALL", "single"),
    ],
)
def test_parts_where_the_neural_engine_is_asked_for(tiny_release, machine, units, layout):
    record = sized(tiny_release, single=[1.5], parts=[0.9, 0.6])

    assert coreml.choose_package(machine, record, None, None, units).layout == layout
    assert coreml.choose_package(machine, record, "fp16", "single", units).layout == "single"
    assert (
        coreml.choose_package(machine, sized(tiny_release, single=[1]), None, None, units).layout == "single"
    )


@pytest.mark.parametrize(
    ("macos", "size", "warned"),
    [((15, 5), 1.9, False), ((26, 1), 2.1, True), ((27, 0), 1.9, True), ((27, 0), 0.9, False)],
)
def test_a_package_that_leaves_the_neural_engine_is_reported(tiny_release, caplog, macos, size, warned):
    coreml.choose_package(mac(macos=macos), sized(tiny_release, parts=[size]), None, None, "CPU_AND_NE")

    assert ("will run it on the CPU" in caplog.text) == warned


@pytest.mark.parametrize(
    ("machine", "size", "units"),
    [
        (mac(), 8, "CPU_AND_NE"),
        (mac("Apple M1 Pro"), 8, "CPU_AND_GPU"),
        (mac("Apple M1"), 3, "CPU_AND_NE"),
        (mac("Intel(R) Core(TM) i9", architecture="x86_64"), 1, "CPU_AND_GPU"),
    ],
)
def test_compute_units_by_chip(tiny_release, machine, size, units):
    record = sized(tiny_release, single=[size])

    assert coreml.units_of(machine, record, None, None) == units
    assert coreml.units_of(machine, record, None, "CPU_ONLY") == "CPU_ONLY"
    with pytest.raises(EngineError, match="compute_units='NPU'"):
        coreml.units_of(machine, record, None, "NPU")


def test_an_old_macos_is_passed_over(tiny_release):
    request = engines.Request(
        release.read(tiny_release), mac(macos=(14, 7)), None, None, None, lambda _: [], minilm
    )

    assert coreml.passed_over(request) == "the release needs macOS 15 (iOS18), this is 14.7"
    assert coreml.passed_over(dataclasses.replace(request, machine=mac())) is None
