"""Calibration measures what transformers' own layers see; compensation makes outputs nearer than rounding does."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from test_encodings import decode
from tokenizers import Tokenizer
from transformers import AutoModel

from pipeline import compensate, encodings, params
from pipeline.assemble import assemble
from pipeline.calibrate import batches, calibrate, measure
from pipeline.calibration import ALL_PARITY, Calibration, calibration_texts
from pipeline.errors import PipelineError
from pipeline.files import read_json
from pipeline.labelled import labelled_texts
from pipeline.params import Retrieval, Scheme
from pipeline.texts import parity_texts
from pipeline.trace import open_source, trace

TOKENS = [[101, 102], [101, 7592, 102], [101, *range(2000, 2011), 102], [101, *range(3000, 3040), 102]]


@pytest.fixture(scope="module")
def traced(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration")
    trace(params.Model("tiny", "", None, None, (16,)), tiny_checkpoint(), folder / "traced")
    calibrate(tiny_checkpoint(), folder / "traced", folder / "calibration")
    return folder


def moments_of(folder, traced, tokens, lengths):
    found = {}

    def keep(prefix, moments):
        for name, same in moments.same.items():
            found[prefix + name] = moments.sums[same].numpy() / len(tokens)

    record = read_json(traced / "traced" / "trace.json")
    measure(open_source(folder), record, batches(tokens, lengths), keep)
    return found


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_moments_are_those_of_transformers_layers(tiny_checkpoint, tmp_path, kind):
    """Each text alone and unpadded through transformers, against batches that are padded."""
    folder = tiny_checkpoint("pooling_mode_lasttoken", model_type=kind)
    trace(params.Model("tiny", "", None, None, (16,)), folder, tmp_path / "traced")
    found = moments_of(folder, tmp_path, TOKENS, (16, 64))
    record = read_json(tmp_path / "traced" / "trace.json")["weights"]
    model, expected = AutoModel.from_pretrained(folder).eval(), {}

    def hook(name):
        def see(_, given):
            x = given[0][0].detach().numpy()
            expected[name] = expected.get(name, 0) + x.T @ x / len(x) / len(TOKENS)

        return see

    for name in found:
        tensor = record[name]["tensor"].removesuffix(".weight")
        model.get_submodule(tensor).register_forward_pre_hook(hook(name))
    for ids in TOKENS:
        model(input_ids=torch.tensor([ids]))

    assert len(found) == 3 * {"bert": 6, "qwen3": 7}[kind]
    for name, moment in found.items():
        np.testing.assert_allclose(moment, expected[name], atol=1e-4 * np.abs(expected[name]).max())


def test_padding_counts_nothing(tiny_checkpoint, traced):
    """Texts shorter than the bucket: the same moments in a bucket that fits and in one that is far too long."""
    short = TOKENS[:3]
    tight = moments_of(tiny_checkpoint(), traced, short, (16,))
    wide = moments_of(tiny_checkpoint(), traced, short, (64,))

    for name, moment in tight.items():
        np.testing.assert_allclose(wide[name], moment, atol=1e-5 * np.abs(moment).max())


@pytest.mark.parametrize(("tokens", "said"), [([], "no calibration texts"), ([[101], []], "has no tokens")])
def test_nothing_to_calibrate_on_is_refused(tokens, said):
    with pytest.raises(PipelineError, match=said):
        batches(tokens)


def test_calibration_texts_are_many_different_and_nothing_that_is_judged(tiny_checkpoint):
    tokenizer = Tokenizer.from_file(str(tiny_checkpoint() / "tokenizer.json"))
    texts = calibration_texts(tokenizer)

    assert len(set(texts)) == len(texts) > 500
    judged = {row["text"] for row in parity_texts(ALL_PARITY) + labelled_texts(Retrieval(), {})}
    assert not set(texts) & judged
    assert texts == calibration_texts(tokenizer)


def test_calibrating_twice_gives_the_same_bytes(tiny_checkpoint, traced, tmp_path):
    calibrate(tiny_checkpoint(), traced / "traced", tmp_path / "calibration")
    first, second = (
        json.loads((f / "calibration" / "calibration.json").read_text()) for f in (traced, tmp_path)
    )

    assert first == second
    assert {e["file"] for e in first["inputs"].values()} | {"calibration.json"} == {
        p.name for p in (tmp_path / "calibration").iterdir()
    }


def drawn(columns):
    """A heavy-tailed weight (32, columns) and correlated inputs, some never active."""
    rng = np.random.default_rng(2)
    weight = (rng.standard_t(4, size=(32, columns)) * 0.05).astype(np.float32)
    mixing = rng.normal(size=(columns, columns)) * rng.uniform(0.05, 2, size=columns)
    x = rng.normal(size=(400, columns)) @ mixing
    x[:, 5:8] = 0
    return weight, compensate.Inputs((x.T @ x / len(x)).astype(np.float32))


@pytest.fixture
def case():
    return drawn(64)


SCHEMES = [
    Scheme("linear", 8),
    Scheme("linear", 4, block=16, affine=True),
    Scheme("palette", 4, group=8),
    Scheme("palette", 4),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_outputs_are_nearer_than_with_rounding_to_nearest(case, scheme):
    weight, inputs = case
    found = {}
    for given in (None, inputs):
        made = {}
        for argument, data in encodings.make(scheme, "iOS18").stream("w", lambda _: iter([weight]), given):
            made[argument] = made.get(argument, b"") + data
        found[given is None] = compensate.error(weight, decode(scheme, made).astype(np.float32), inputs)

    assert found[False] < 0.5 * found[True]


@pytest.mark.parametrize("columns", [64, 304])
def test_descent_ends_where_no_single_change_helps(columns):
    weight, inputs = drawn(columns)
    weight = weight[:4]
    tables = np.sort(np.random.default_rng(4).normal(size=(2, 1, 8)), axis=2).astype(np.float32) * 0.05
    indices = compensate.compensate(weight, inputs, tables, 2, columns)
    before = compensate.error(weight, compensate.decoded(tables, indices, 2, columns), inputs)
    compensate.descend(weight, inputs, tables, 2, columns, indices, sweeps=100)
    least = compensate.error(weight, compensate.decoded(tables, indices, 2, columns), inputs)

    assert least < before
    for row, column, entry in itertools.product(range(4), range(0, columns, columns // 12), range(8)):
        other = indices.copy()
        other[row, column] = entry
        changed = compensate.error(weight, compensate.decoded(tables, other, 2, columns), inputs)
        assert changed >= least * (1 - 1e-5)


@pytest.mark.parametrize("columns", [64, 304])  # one tile of H, or several
def test_refitting_tables_never_hurts_and_is_a_least_squares_solution(columns):
    weight, inputs = drawn(columns)
    tables = np.linspace(-0.2, 0.2, 16, dtype=np.float32).reshape(1, 1, 16).repeat(2, 0)
    indices = compensate.compensate(weight, inputs, tables, 16, columns)
    before = compensate.error(weight, compensate.decoded(tables, indices, 16, columns), inputs)
    better, numbers = compensate.refit(weight, inputs, tables, 16, indices)
    after = compensate.error(weight, compensate.decoded(better, numbers, 16, columns), inputs)

    root = np.linalg.cholesky(inputs.h.astype(np.float64))  # e'He is the squared length of e'root
    group = numbers[:16]
    marks = np.concatenate([np.eye(16)[row].T @ root for row in group], axis=1)
    best = np.linalg.lstsq(
        marks.T, np.concatenate([w @ root for w in weight[:16].astype(np.float64)]), rcond=None
    )[0]
    used = np.unique(group)

    assert after < before
    assert (np.diff(better[:, 0]) >= 0).all()
    np.testing.assert_allclose(better[0, 0, used], best[used], atol=2e-3 * np.abs(best).max())


def test_inputs_that_are_all_zero_do_no_harm(case):
    weight = case[0]
    silent = compensate.Inputs(np.zeros((64, 64), np.float32))
    scheme = Scheme("linear", 8)
    made = dict(encodings.make(scheme, "iOS18").stream("w", lambda _: iter([weight]), silent))

    assert np.abs(decode(scheme, made) - weight).max() < 0.02 * np.abs(weight).max()


def test_a_calibrated_variant_is_built_and_without_calibration_refused(tiny_checkpoint, traced, tmp_path):
    weights = {"linear": Scheme("palette", 4, group=4, calibrated=True)}
    variant = params.Variant("aware", weights, {}, params.Gates(0.9))
    told = {"corembed.summary": "t"}
    for folder in ("one", "two"):
        assemble(
            traced / "traced", tiny_checkpoint(), variant, tmp_path / folder, told, traced / "calibration"
        )
    files = [sorted(p for p in (tmp_path / f).rglob("*") if p.is_file()) for f in ("one", "two")]

    assert [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]
    with pytest.raises(PipelineError, match=r"'aware' rounds 'layers\.0.*run the stage calibrate"):
        assemble(traced / "traced", tiny_checkpoint(), variant, tmp_path / "none", told)
    with pytest.raises(PipelineError, match=r"calibration\.json is missing"):
        assemble(traced / "traced", tiny_checkpoint(), variant, tmp_path / "none", told, tmp_path)
    assert not (tmp_path / "none").exists()
    with pytest.raises(PipelineError, match=r"'embeddings\.x' has no calibration.*calibrated: false"):
        Calibration(traced / "calibration").inputs("embeddings.x")


@pytest.mark.parametrize("harm", ["cut", "changed", "gone"])
def test_a_damaged_file_of_moments_is_refused(traced, tmp_path, harm):
    folder = Path(shutil.copytree(traced / "calibration", tmp_path / "calibration"))
    calibration = Calibration(folder)
    path = folder / calibration.record["inputs"]["layers.0.output.weight"]["file"]
    whole = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(whole[:-9] if harm == "cut" else whole[:-1] + bytes([whole[-1] ^ 1]))

    with pytest.raises(PipelineError, match=rf"{path.name} is missing, or not .*run the stage calibrate"):
        calibration.inputs("layers.0.output.weight")


def test_moments_that_are_no_numbers_are_refused():
    moment = np.eye(8, dtype=np.float32)
    moment[3, 3] = np.nan

    with pytest.raises(PipelineError, match="moments of 8 inputs hold NaN"):
        compensate.Inputs(moment)


def test_a_file_of_moments_holds_one_symmetric_matrix(traced):
    entry = Calibration(traced / "calibration").record["inputs"]["layers.0.output.weight"]
    moment = load_file(traced / "calibration" / entry["file"])["moment"]

    assert moment.shape == (64, 64)
    np.testing.assert_allclose(moment, moment.T, rtol=1e-4, atol=1e-6)
    assert np.linalg.eigvalsh(moment.astype(np.float64)).min() > -1e-3 * moment.max()
