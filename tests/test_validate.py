"""The judgement: what is wrong does not pass, however good its mean looks."""

import numpy as np
import pytest

from pipeline import agreement
from pipeline.params import Gates
from pipeline.validate import judge

GATES = Gates(min_cosine=0.995, min_top10_overlap=0.9, min_spearman=0.99)
GOOD = {
    "min_cosine": 0.999,
    "top10_overlap": 0.98,
    "spearman": 0.999,
    "relative_spread": 1.0,
    "bucket_min_cosine": 0.9999,
    "layout_min_cosine": None,
    "padding_min_cosine": 0.9999,
    "batch_min_cosine": 0.9999,
    "mrl_min_cosine": 0.991,  # twice the error that the whole vector may have
}


def test_good_figures_pass():
    assert judge(GOOD, GATES) == []


@pytest.mark.parametrize("name", [n for n, v in GOOD.items() if v is not None])
@pytest.mark.parametrize("value", [0.1, float("nan")])
def test_each_gate_can_fail_and_names_its_figure(name, value):
    (missed,) = judge(GOOD | {name: value}, GATES)

    assert missed.startswith(name)


def test_a_near_constant_vector_does_not_pass():
    """One direction plus a little of the truth: every cosine among such vectors is near 1, their spread is not."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(50, 64)).astype(np.float32)
    constant = np.ones((1, 64), np.float32) * 100 + truth * 0.01

    assert agreement.spread(constant) / agreement.spread(truth) < 0.5
    assert agreement.rank_correlation(np.ones_like(truth), truth) == 0.0


def test_figures_of_equal_vectors():
    vectors = np.random.default_rng(1).normal(size=(30, 8)).astype(np.float32)

    np.testing.assert_allclose(agreement.cosines(vectors, 3 * vectors), 1)
    assert agreement.top_overlap(vectors, vectors) == 1.0
    assert agreement.rank_correlation(vectors, vectors) == pytest.approx(1.0)


def test_duplicates_are_left_out():
    vectors = np.array([[1, 0], [0, 1], [1, 0], [1, 1]], np.float32)

    assert agreement.distinct(vectors).tolist() == [0, 1, 3]


def test_the_quality_gate_holds_against_the_upper_end_of_the_interval():
    gates = Gates(min_cosine=0.995, max_quality_drop=0.01)

    assert judge(GOOD | {"ndcg10_drop": 0.002, "ndcg10_drop_high": 0.009}, gates) == []
    (missed,) = judge(GOOD | {"ndcg10_drop": 0.002, "ndcg10_drop_high": 0.011}, gates)
    assert missed == "ndcg10_drop_high 0.0110, allowed at most 0.01"


def test_figures_by_language_domain_and_length():
    rows = [{"language": "en", "domain": "news"}, {"language": "fr", "domain": "news"}]
    found = agreement.groups(rows, [5, 200], np.array([0.9, 0.8]))

    assert [(g["kind"], g["group"], g["texts"], g["min"]) for g in found] == [
        ("domain", "news", 2, 0.8),
        ("language", "en", 1, 0.9),
        ("language", "fr", 1, 0.8),
        ("length", "1-8 tokens", 1, 0.9),
        ("length", "129-256 tokens", 1, 0.8),
    ]
