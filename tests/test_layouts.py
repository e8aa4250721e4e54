"""The parts layout: few, even packages below the limit, which give what the single package gives, bit for bit."""

import coremltools as ct
import numpy as np
import pytest

from corembed import engines
from corembed.release import Function
from pipeline import params
from pipeline.assemble import assemble, package_names
from pipeline.cut import cut
from pipeline.errors import PipelineError
from pipeline.files import read_json
from pipeline.splice import Span
from pipeline.trace import functions, trace

DEPTH = {"num_hidden_layers": 5, "num_attention_heads": 4, "vocab_size": 30522}


@pytest.fixture(scope="module")
def traced(tiny_checkpoint, tmp_path_factory):
    """Two buckets and a batch of three, both layouts, traced once for all variants."""
    source = tiny_checkpoint("pooling_mode_lasttoken", model_type="qwen3", **DEPTH)
    out = tmp_path_factory.mktemp("layouts") / "traced"
    entry = params.Model("tiny", "path:x", None, None, (16, 64), ("single", "parts"), 120_000, batches=(1, 3))
    trace(entry, source, out)
    return source, out


def build(traced, variant, out):
    source, programs = traced
    plain = params.variant(variant).uncalibrated()  # what is cut and how, not how well it is rounded
    assemble(programs, source, plain, out, {"corembed.summary": "tiny"})
    counts = read_json(out / "packages.json")["layouts"]
    return {layout: [out / n for n in package_names(variant, layout, c)] for layout, c in counts.items()}


@pytest.mark.parametrize("variant", ["fp16", "int8", "palette4"])
def test_parts_give_the_bits_of_the_single_package(traced, tmp_path, variant):
    packages = build(traced, variant, tmp_path / "out")
    runs = {layout: engines.make("milrun", paths) for layout, paths in packages.items()}
    rng = np.random.default_rng(0)
    for function in functions((16, 64), (1, 3)):
        ids = rng.integers(0, 30522, (function.batch, function.length), dtype=np.int32)
        mask = np.ones_like(ids)
        mask[-1, 9:] = 0
        single, parts = (runs[layout].run(function, ids, mask) for layout in ("single", "parts"))
        np.testing.assert_array_equal(single, parts)
        assert np.linalg.norm(single, axis=1) == pytest.approx(1, abs=2e-3)


def test_three_buckets_cost_on_disk_what_one_costs(tiny_checkpoint, tmp_path):
    """The weights stand once; a bucket adds its program and its small tables: at most 2 % for three, in both layouts."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "vocab_size": 30522}
    source = tiny_checkpoint("pooling_mode_lasttoken", model_type="qwen3", **sizes)
    bytes_of = {}
    for lengths in ((16,), (16, 32, 64)):
        entry = params.Model("tiny", "path:x", None, None, lengths, ("single", "parts"))
        out = tmp_path / f"{len(lengths)}"
        trace(entry, source, out / "traced")
        for layout, paths in build((source, out / "traced"), "fp16", out / "packages").items():
            files = [file for path in paths for file in path.rglob("*") if file.is_file()]
            bytes_of[layout, len(lengths)] = sum(file.stat().st_size for file in files)

    assert max(bytes_of[layout, 3] / bytes_of[layout, 1] for layout in ("single", "parts")) <= 1.02


def test_quantized_parts_are_fewer_and_all_fit(traced, tmp_path):
    """Cut by what the variant stores; the first holds the embedding table alone."""
    counts = {}
    for variant in ("fp16", "int8"):
        table, *others = build(traced, variant, tmp_path / variant)["parts"]
        counts[variant] = len(others)
        sizes = [sum(f.stat().st_size for f in p.rglob("weight.bin")) for p in others]
        assert max(sizes) <= 120_000
        inputs = ct.utils.load_spec(str(table)).description.functions[0].input
        assert [i.name for i in inputs] == ["input_ids", "attention_mask"]

    assert counts["int8"] < counts["fp16"]


def test_a_batch_gives_each_text_its_own_vector(traced, tmp_path):
    packages = build(traced, "fp16", tmp_path / "out")["single"]
    engine = engines.make("milrun", packages)
    ids = np.random.default_rng(1).integers(0, 30522, (3, 16), dtype=np.int32)
    mask = np.ones_like(ids)
    mask[1, 4:], mask[2, :9] = 0, 0  # padding on the right, then on the left
    together = engine.run(Function("length_16_batch_3", 3, 16), ids, mask)
    alone = [engine.run(Function("length_16", 1, 16), ids[i : i + 1], mask[i : i + 1])[0] for i in range(3)]

    np.testing.assert_allclose(together, np.stack(alone), atol=2e-3)
    assert np.abs(together[0] - together[1]).max() > 0.05


def test_cuts_are_few_and_even():
    """The 4B's layers in MB below 1 GiB: eight packages of four or five layers, not seven of five and one of one."""
    spans = cut([202] * 36, head=0, tables=4, size_limit=1074)

    assert spans[0] == Span(0, 0, table=True)
    assert [s.stop - s.start for s in spans[1:]] == [4, 4, 4, 4, 5, 5, 5, 5]
    assert [s.start for s in spans[1:]] == [0, *(s.stop for s in spans[1:-1])]
    assert [s.head for s in spans[1:]] == [False] * 7 + [True]


def test_the_last_layers_stay_with_a_head_that_averages_them():
    spans = cut([10] * 6, head=1, tables=0, size_limit=34, depth=3)

    assert [(s.start, s.stop) for s in spans[1:]] == [(0, 3), (3, 6)]


@pytest.mark.parametrize(("depth", "limit"), [(1, 10), (3, 30)])
def test_a_limit_that_no_layer_fits_is_refused(depth, limit):
    with pytest.raises(
        PipelineError, match=r"layer \d with what belongs to it takes \d+ bytes, more than the"
    ):
        cut([10] * 6, head=1, tables=0, size_limit=limit, depth=depth)
