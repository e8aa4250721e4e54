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
