"""Mixed precision: harms are measured on the model itself, and bits go where they help most within a budget."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from test_architectures import load
from tokenizers import Tokenizer

from pipeline import allocate, calibrate, params
from pipeline.allocate import Choice
from pipeline.assemble import assemble
from pipeline.calibration import calibration_texts
from pipeline.decoded import rounded
from pipeline.errors import PipelineError
from pipeline.params import Scheme, Variant
from pipeline.sensitivity import PROBES, sensitivity
from pipeline.trace import trace

CHOICES = {
    "linear": [Scheme("palette", 4, group=4), Scheme("linear", 8, affine=True, calibrated=True)],
    "embedding": [Scheme("palette", 2, group=2), Scheme("linear", 8)],
}


def groups(seed):
    rng = np.random.default_rng(seed)
    sizes = np.sort(rng.integers(1000, 90000, size=(5, 3)))
    harms = -np.sort(-rng.uniform(0, 0.1, size=(5, 3)))
    schemes = [Scheme("palette", b) for b in (4, 6, 8)]
    return {
        f"layers.{i}": [Choice(s, int(b), float(h)) for s, b, h in zip(schemes, *row, strict=True)]
        for i, row in enumerate(zip(sizes, harms, strict=True))
    }


@pytest.mark.parametrize("seed", range(8))
def test_an_allocation_is_the_best_of_all_combinations(seed):
    found = groups(seed)
    smallest = sum(c[0].bytes for c in found.values())
    largest = sum(c[-1].bytes for c in found.values())
    budget = smallest + (largest - smallest) // (seed % 4 + 2)
    least = min(
        sum(c.harm for c in combination)
        for combination in itertools.product(*found.values())
        if sum(c.bytes for c in combination)
        <= budget - 5 * (budget // 4096 + 1)  # sizes are rounded up to grains
    )
    chosen = allocate.allocate(found, budget, "x")

    assert sum(c.bytes for c in chosen.values()) <= budget
    assert sum(c.harm for c in chosen.values()) <= least + 1e-12


def test_a_budget_below_the_smallest_size_is_refused():
    found = {
        "a": [Choice(Scheme("palette", 4), 2 << 20, 0.1)],
        "b": [Choice(Scheme("palette", 4), 1 << 20, 0.1)],
    }
    with pytest.raises(
        PipelineError, match=r"variants\.mixed: .*2\.00 MiB.*take 3\.00 MiB; raise it by 1\.00"
    ):
        allocate.allocate(found, 2 << 20, "variants.mixed")
    assert set(allocate.allocate(found, 3 << 20, "x")) == {"a", "b"}


def test_the_front_falls():
    points = allocate.front(groups(3))

    assert len(points) > 3
    assert all(b["harm"] < a["harm"] and b["bytes"] > a["bytes"] for a, b in itertools.pairwise(points))


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"budget_mib": -1}, "budget_mib -1 must be a positive number"),
        ({"budget_share": "half"}, "budget_share 'half' must be a positive number"),
        ({"budget_mib": 3, "budget_share": 0.5}, "stand alone"),
        ({"budget_mib": 3, "linear": {"scheme": "linear", "bits": 8}}, "stand alone"),
    ],
)
def test_budgets_that_mean_nothing_are_refused(weights, said):
    with pytest.raises(PipelineError, match=said):
        params.variant("odd", {"variants": {"odd": {"weights": weights, "gates": {"min_cosine": 0.9}}}})


def test_choices_for_both_kinds_are_needed():
    with pytest.raises(PipelineError, match="a list of schemes for `linear` and one for `embedding`"):
        params.choices({"choices": {"linear": [{"scheme": "linear", "bits": 8}]}})


@pytest.fixture(scope="module")
def measured(tiny_checkpoint, tmp_path_factory):
    folder, checkpoint = tmp_path_factory.mktemp("sensitivity"), tiny_checkpoint()
    trace(params.Model("tiny", "", None, None, (16,)), checkpoint, folder / "traced")
    calibrate.calibrate(checkpoint, folder / "traced", folder / "calibration")
    record = sensitivity(checkpoint, folder / "traced", folder / "calibration", CHOICES)
    return folder, checkpoint, record


def test_harm_is_the_worst_text_with_one_group_replaced(measured):
    """Against the whole encoder run on each probe text by itself, its weight replaced by hand."""
    _, checkpoint, record = measured
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(64)
    texts = calibration_texts(tokenizer)
    encoded = [e.ids for e in tokenizer.encode_batch(texts[:: len(texts) // PROBES][:PROBES])]

    def embed(encoder):
        found = []
        for ids in encoded:
            row = torch.tensor([ids + [0] * (64 - len(ids))], dtype=torch.int32)
            mask = (torch.arange(64) < len(ids)).int()[None]
            with torch.no_grad():
                found.append(encoder(row, mask)[0].double())
        return torch.stack(found)

    encoder = load(checkpoint)
    expected = embed(encoder)
    layer = encoder.layers[1].layer
    owners = {
        "embeddings.word_embeddings.weight": [encoder.table.embeddings.word_embeddings],
        "layers.1.mlp": [layer.intermediate, layer.output],
    }
    for entry in record["groups"]:
        if entry["name"] in owners:
            scheme = CHOICES["linear" if "mlp" in entry["name"] else "embedding"][0]
            kept = [owner.weight.data for owner in owners[entry["name"]]]
            for owner, weight in zip(owners[entry["name"]], kept, strict=True):
                owner.weight.data = torch.from_numpy(rounded("w", weight.numpy(), scheme, None)[0])
            worst = float((1 - (embed(encoder) * expected).sum(1)).max())
            for owner, weight in zip(owners[entry["name"]], kept, strict=True):
                owner.weight.data = weight
            assert entry["choices"][0]["harm"] == pytest.approx(worst, rel=0.02, abs=1e-6)
    assert {e["name"] for e in record["groups"]} == {owner for owner in owners if "emb" in owner} | {
        f"layers.{i}.{part}" for i in range(3) for part in ("attention", "mlp")
    }


def test_more_bits_harm_less(measured):
    for entry in measured[2]["groups"]:
        few, many = entry["choices"]
        assert many["bytes"] > few["bytes"]
        assert many["harm"] < few["harm"]
        assert all(few["sqnr_db"][name] < many["sqnr_db"][name] for name in entry["weights"])


def test_a_mixed_variant_keeps_its_budget(measured, tmp_path):
    folder, checkpoint, record = measured
    points = record["front"]
    middle = (points[len(points) // 2]["bytes"] + record["fixed_bytes"]) / allocate.MIB
    asked = Variant("mixed", {}, {}, params.Gates(0.9), budget_mib=middle)
    variant = allocate.mixed(asked, record)
    told = {"corembed.summary": "t"}
    assemble(folder / "traced", checkpoint, variant, tmp_path / "mixed", told, folder / "calibration")
    (weights,) = (tmp_path / "mixed").rglob("weight.bin")

    share = params.Variant(
        "mixed", {}, {}, asked.gates, budget_share=middle * allocate.MIB / record["fp16_bytes"]
    )
    assert allocate.mixed(share, record).layers == variant.layers
    assert asked.calibrated
    assert weights.stat().st_size <= middle * allocate.MIB
    assert len({dataclasses.astuple(s) for s in variant.layers.values()}) > 1
    with pytest.raises(PipelineError, match=r"variants\.mixed: the budget leaves"):
        allocate.mixed(dataclasses.replace(asked, budget_mib=0.1), record)
    with pytest.raises(PipelineError, match=r"none\.json is missing.*'mixed' allocates by it; run the stage"):
        allocate.resolved(asked, tmp_path / "none.json")
