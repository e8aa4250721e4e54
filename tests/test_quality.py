"""Retrieval and similarity against another implementation; labelled texts without duplicates; intervals that hold."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from pipeline import labelled, quality
from pipeline.errors import PipelineError
from pipeline.params import Retrieval

WIKI = Retrieval(queries=20, documents=50)


class Vectors:
    """A model of sentence-transformers' evaluators that knows its vectors already."""

    def __init__(self, known):
        self.known = known

    def encode(self, texts, **_):
        return torch.tensor(np.stack([self.known[text] for text in texts]))

    encode_query = encode_document = encode

    def similarity(self, a, b):
        return torch.nn.functional.normalize(a) @ torch.nn.functional.normalize(b).T


@pytest.fixture(scope="module")
def task():
    rows = [r for r in labelled.labelled_texts(WIKI, {}) if r["use"] != "similarity"]
    rng = np.random.default_rng(0)
    base = {r["id"]: rng.normal(size=16) for r in rows if r["use"] == "document"}
    vectors = np.array(
        [base[(r.get("relevant") or [r["id"]])[0]] + 0.8 * rng.normal(size=16) for r in rows], np.float32
    )
    return rows, vectors


def test_figures_are_those_of_sentence_transformers(task):
    rows, vectors = task
    figures, _ = quality.retrieval(rows, vectors, vectors)
    known = {row["text"]: vector for row, vector in zip(rows, vectors, strict=True)}
    theirs = InformationRetrievalEvaluator(
        {r["id"]: r["text"] for r in rows if r["use"] == "query"},
        {r["id"]: r["text"] for r in rows if r["use"] == "document"},
        {r["id"]: set(r["relevant"]) for r in rows if r["use"] == "query"},
        score_functions={"cosine": Vectors(known).similarity},
        write_csv=False,
    ).compute_all_metrics(Vectors(known))["cosine"]

    assert 0.1 < figures["ndcg10"] < 0.95
    assert figures["ndcg10"] == pytest.approx(theirs["ndcg@k"][10])
    assert figures["recall10"] == pytest.approx(theirs["recall@k"][10])
    assert figures["ndcg10_drop"] == 0
    assert figures["ndcg10_drop_high"] == 0


def test_similarity_is_that_of_scipy_over_all_pairs():
    rows = [r for r in labelled.labelled_texts(WIKI, {}) if r["use"] == "similarity"]
    vectors = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32)
    figures = quality.similarity(rows, vectors, vectors + 0.01)
    pairs = [(i, j) for i in range(50) for j in range(i + 1, 50)]
    cosines = [
        vectors[i] @ vectors[j] / np.linalg.norm(vectors[i]) / np.linalg.norm(vectors[j]) for i, j in pairs
    ]
    people = [max(rows[i]["scores"][j], rows[j]["scores"][i]) for i, j in pairs]

    assert len(rows) == 50
    assert max(people) > 0.8
    assert figures["spearman"] == pytest.approx(spearmanr(cosines, people).statistic)
    assert figures["spearman_drop_low"] <= figures["spearman_drop"] <= figures["spearman_drop_high"]


def test_ties_are_broken_by_id():
    documents = np.ones((3, 2), np.float32)
    ranked = quality.ranking(np.ones((1, 2), np.float32), documents, ["c", "a", "b"], 2)

    assert ranked.tolist() == [[1, 2]]


def test_a_worse_variant_has_an_interval_above_zero_and_the_paired_one_is_narrower(task):
    rows, vectors = task
    noise = np.random.default_rng(2).normal(size=vectors.shape).astype(np.float32)
    figures, worst = quality.retrieval(rows, vectors + 2.5 * noise, vectors)
    slight, _ = quality.retrieval(rows, vectors + 0.01 * noise, vectors)

    assert 0 < figures["ndcg10_drop_low"] < figures["ndcg10_drop"] < figures["ndcg10_drop_high"]
    assert slight["ndcg10_drop_high"] < 0.05
    assert worst[0]["original_ndcg10"] - worst[0]["ndcg10"] > 0
    assert {name: f["queries"] for name, f in figures["languages"].items()} == {"en": 12, "fr": 4, "es": 4}


def test_labelled_texts_are_of_three_languages_with_one_answer_each_and_no_duplicates():
    rows = labelled.labelled_texts(WIKI, {"query": "q: ", "document": ""})
    documents = [r for r in rows if r["use"] == "document"]
    queries = [r for r in rows if r["use"] == "query"]

    assert len(documents) == 50
    assert len(queries) == 20
    assert {r["prompt"] for r in queries} == {"query"}
    assert {r["prompt"] for r in documents} == {None}
    assert all({r["relevant"][0]} <= {d["id"] for d in documents} for r in queries)
    assert labelled.without_duplicates(documents) == documents
    assert rows == labelled.labelled_texts(WIKI, {"query": "q: ", "document": ""})


def test_near_duplicates_are_found():
    text = "the quick brown fox jumps over the lazy dog and then sleeps in the warm afternoon sun"
    near = text.replace("warm", "cold")
    other = "an entirely different sentence about the history of embedding models in production"
    kept = labelled.without_duplicates([{"text": t} for t in (text, other, near, text.upper())])

    assert [d["text"] for d in kept] == [text, other]


@pytest.fixture
def folder(tmp_path):
    """A data set of the form of BEIR and MTEB."""
    parts = {
        "corpus": [
            {"_id": f"d{i}", "title": f"t{i}", "text": f"document {i} of many words"} for i in range(9)
        ],
        "queries": [{"_id": f"q{i}", "text": f"where is {i}"} for i in range(4)],
        "default": [{"query-id": f"q{i}", "corpus-id": f"d{i}", "score": int(i < 3)} for i in range(4)],
    }
    heads = []
    for name, rows in parts.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        heads.append(f"- config_name: {name}\n  data_files: [{{split: test, path: {name}.jsonl}}]")
    (tmp_path / "README.md").write_text("---\nconfigs:\n" + "\n".join(heads) + "\n---\n")
    return tmp_path


def test_a_data_set_by_name(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = labelled.labelled_texts(Retrieval(f"path:{folder}", queries=10, documents=6), {})
    queries = [r for r in rows if r["use"] == "query"]
    documents = [r for r in rows if r["use"] == "document"]

    assert [(r["id"], r["relevant"]) for r in queries] == [("q0?", ["d0"]), ("q1?", ["d1"]), ("q2?", ["d2"])]
    assert len(documents) == 6
    assert documents[0]["text"] == "t0 document 0 of many words"


def test_a_data_set_of_another_form_says_what_is_expected(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n')

    with pytest.raises(PipelineError, match="expected the configurations corpus, queries and default"):
        labelled.labelled_texts(Retrieval(f"path:{tmp_path}"), {})
