"""Ids are those of transformers: in every language, cut, padded on either side, with the special tokens of the checkpoint."""

import ast
import json

import numpy as np
import pytest
from helpers import minilm
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from benchmarks.make_checkpoint import GEOMETRIES, write_tokenizer
from corembed.errors import TextError
from corembed.release import Function, Tokenizer
from corembed.tokenizer import TextTokenizer
from pipeline.texts import EDGE_CASES, articles, data_file, news

END = 151643  # <|endoftext|>: what Qwen3-Embedding appends, and pads with
MAX_LENGTH = 32


def sentences():
    """Every example sentence that spaCy has, in 68 languages."""
    for path in sorted(data_file("spacy", "spacy/lang").glob("*/examples.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and node.targets[0].id == "sentences":
                yield from ast.literal_eval(node.value)


@pytest.fixture(scope="module")
def sample():
    """About 2,000 texts, from one character to a newspaper article."""
    texts = [*EDGE_CASES, *sentences(), *news()]
    for language in ("en", "fr", "es"):
        texts += [article["extract"] for article in articles(language)[::20]]
    return texts


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A WordPiece and a byte-level BPE: the real ones of MiniLM and of Qwen3-Embedding-4B."""
    folder = tmp_path_factory.mktemp("qwen")
    write_tokenizer(folder, GEOMETRIES["4b"].rows, GEOMETRIES["4b"].tokenizer)
    return {"minilm": minilm(), "qwen": folder}


@pytest.fixture(scope="module")
def pairs(folders):
    """For each checkpoint: ours, and transformers'."""
    pad = {"minilm": 0, "qwen": END}
    return {
        name: (
            TextTokenizer(folder / "tokenizer.json", Tokenizer(MAX_LENGTH, pad[name], "right")),
            AutoTokenizer.from_pretrained(folder, local_files_only=True),
        )
        for name, folder in folders.items()
    }


def assert_equal(pair, texts):
    ours, theirs = pair
    expected = theirs(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
    assert [list(t.ids) for t in ours.encode(texts)] == expected
    assert [list(t.ids) for t in ours.explain(texts)] == expected


@pytest.mark.parametrize("name", ["minilm", "qwen"])
def test_a_large_multilingual_sample(pairs, sample, name):
    assert len(sample) > 1900
    assert_equal(pairs[name], sample)


# Anything at all, and what tokenizers tend to treat in a way of their own.
FRAGMENTS = [
    "[CLS]",
    "[SEP]",
    "[PAD]",
    "<|endoftext|>",
    "<|im_start|>",
    "##ing",
    "\u0130",
    "\ufb01",
    "\u200b",
    "e\u0301",
    "\u1112\u1161",
    "👩‍👩‍👧",
    "\x00",
    "\x85",
    "  ",
    "\n\n",
    "'s",
    "\uff11\uff12",
]
anything = st.lists(
    st.text() | st.sampled_from(FRAGMENTS) | st.text("aB 1,.\n", max_size=80), max_size=6
).map("".join)


@pytest.mark.parametrize("name", ["minilm", "qwen"])
@settings(max_examples=200, deadline=None)
@given(texts=st.lists(anything, min_size=1, max_size=4))
def test_any_text(pairs, name, texts):
    assert_equal(pairs[name], texts)


@pytest.mark.parametrize("name", ["minilm", "qwen"])
@settings(max_examples=100, deadline=None)
@given(texts=st.lists(anything, min_size=1, max_size=4))
def test_counts_and_text_of_what_is_cut(pairs, name, texts):
    ours, theirs = pairs[name]
    whole = [len(ids) for ids in theirs(texts, truncation=False)["input_ids"]]
    for text, tokens, shown, count in zip(texts, ours.encode(texts), ours.explain(texts), whole, strict=True):
        assert len(tokens.ids) + tokens.cut == count
        assert shown.cut == tokens.cut
        assert text.endswith(shown.cut_text)
        assert bool(shown.cut_text) <= bool(tokens.cut)


def test_the_end_token_of_qwen_survives_the_cut(pairs):
    ours, _ = pairs["qwen"]
    empty, long = ours.encode(["", "many words " * 100])

    assert empty.ids == (END,)
    assert len(long.ids) == MAX_LENGTH
    assert long.ids[-1] == END
    assert END not in long.ids[:-1]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["minilm", "qwen"])
def test_padding_on_either_side(folders, sample, name, side):
    theirs = AutoTokenizer.from_pretrained(folders[name], padding_side=side, local_files_only=True)
    ours = TextTokenizer(folders[name] / "tokenizer.json", Tokenizer(MAX_LENGTH, theirs.pad_token_id, side))
    texts = sample[:64]
    expected = theirs(texts, truncation=True, max_length=MAX_LENGTH, padding="max_length")
    ids, mask = ours.pad(ours.encode(texts), Function("length_32_batch_64", 64, MAX_LENGTH))

    np.testing.assert_array_equal(ids, expected["input_ids"])
    np.testing.assert_array_equal(mask, expected["attention_mask"])
    assert ids.dtype == mask.dtype == np.int32


def test_missing_rows_of_a_batch_repeat_the_first(pairs):
    ours, _ = pairs["minilm"]
    ids, mask = ours.pad(ours.encode(["one", "two words"]), Function("length_8_batch_4", 4, 8))

    np.testing.assert_array_equal(ids[2:], ids[[0, 0]])
    np.testing.assert_array_equal(mask[2:], mask[[0, 0]])


def test_texts_are_cut_on_the_side_that_the_checkpoint_says(folders):
    theirs = AutoTokenizer.from_pretrained(folders["minilm"], truncation_side="left", local_files_only=True)
    ours = TextTokenizer(folders["minilm"] / "tokenizer.json", Tokenizer(8, 0, "right", truncation="left"))
    text = "one two three four five six seven eight nine ten"
    (shown,) = ours.explain([text])

    assert list(shown.ids) == theirs(text, truncation=True, max_length=8)["input_ids"]
    assert shown.cut_text == "one two three four "


def test_lower_case_is_that_of_sentence_transformers(folders, tmp_path):
    """`do_lower_case` with a tokenizer that keeps case: the letters as Rust lowers them, before its own normalizer."""
    from sentence_transformers.sentence_transformer.modules import Transformer  # noqa: PLC0415
    from transformers import AutoConfig, AutoModel  # noqa: PLC0415

    made = json.loads((folders["minilm"] / "tokenizer.json").read_text())
    made["normalizer"]["lowercase"] = False
    AutoModel.from_config(
        AutoConfig.for_model(
            "bert", vocab_size=30522, hidden_size=4, num_hidden_layers=1, num_attention_heads=1
        )
    ).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(made))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}'
    )
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 32, "do_lower_case": true}')
    texts = ["The CAPITAL", "\u0130STANBUL", "ΑΣΣ", "École"]
    theirs = Transformer.load(str(tmp_path)).preprocess(texts)["input_ids"]
    ours = TextTokenizer(tmp_path / "tokenizer.json", Tokenizer(32, 0, "right", lowercase=True))

    assert [list(t.ids) for t in ours.encode(texts)] == [[i for i in row if i] for row in theirs.tolist()]


def test_a_lone_surrogate_is_named(pairs):
    with pytest.raises(TextError, match=r"text 2 is not valid Unicode .* at character 1") as failure:
        pairs["minilm"][0].encode(["a", "b", "c\udc80"])
    assert failure.value.index == 2
