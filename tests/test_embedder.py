"""The loader: order kept, lengths handled, nothing returned that is not a vector."""

import asyncio
import concurrent.futures
import dataclasses
import inspect
import random
import subprocess
import sys
import tracemalloc
import warnings

import numpy as np
import pytest
from helpers import edited
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import cos_sim

from corembed import Embedder, ReleaseError, release
from corembed import embedder as module
from corembed.errors import CorembedError, TextError, TruncationError, VectorError

PROMPTS = {"query": "find: ", "passage": "text: ", "own": "mine: "}


@pytest.fixture(scope="module")
def embedder(tiny_release):
    return Embedder.from_pretrained(tiny_release, engine="milrun")


@pytest.fixture(scope="module")
def batched(batched_release):
    return Embedder.from_pretrained(batched_release, engine="milrun")


@pytest.fixture(scope="module")
def prompted(tiny_release, tmp_path_factory):
    folder = edited(
        tiny_release,
        tmp_path_factory.mktemp("prompted") / "release",
        prompts=PROMPTS,
        matryoshka_dimensions=[16, 8],
    )
    return Embedder.from_pretrained(folder, engine="milrun")


class Constant:
    """An engine whose every row is the same; `calls` counts."""

    name, functions, package = "constant", None, None

    def __init__(self, row):
        self.row, self.calls = np.asarray(row, np.float32), []

    def run(self, function, ids, _mask):
        self.calls.append(function)
        return np.tile(self.row, (len(ids), 1))


def with_engine(folder, engine):
    embedder = Embedder.from_pretrained(folder, engine="milrun")
    embedder.engine = engine
    return embedder


def mixed(count, seed=0):
    draw = random.Random(seed)  # noqa: S311
    return [
        " ".join(draw.choices(["tree", "sun", "import", "日本", "e\u0301"], k=draw.randint(0, 80)))
        for _ in range(count)
    ]


def test_import_loads_nothing_heavy():
    heavy = (
        "torch",
        "transformers",
        "coremltools",
        "mlx",
        "sentence_transformers",
        "huggingface_hub",
        "asyncio",
    )
    code = f"import sys, corembed; print(*[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == ""


def test_order_and_single_texts(embedder):
    texts = ["a much longer text " * 10, "b", "", "c d e"]
    together = embedder.encode(texts)

    np.testing.assert_array_equal(together, np.stack([embedder.encode(t) for t in texts]))
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    assert together.dtype == np.float32
    assert embedder.encode([]).shape == (0, 32)
    assert embedder.encode(iter([])).shape == (0, 32)


def test_batches_equal_the_original_and_single_texts(batched, tiny_checkpoint):
    texts = mixed(60)
    theirs = SentenceTransformer(str(tiny_checkpoint()), device="cpu").encode(texts)
    ours = batched.encode(texts, truncate="silent")
    alone = batched.encode(texts, truncate="silent", batch_size=1)

    assert (ours * theirs).sum(1).min() >= 0.9995
    assert (ours * alone).sum(1).min() >= 0.999999


def test_any_order_and_eight_threads_give_the_same_bits(batched):
    texts = [f"short {i}" for i in range(32)] + ["long " * 20 + str(i) for i in range(32)]
    expected = {size: batched.encode(texts, batch_size=size) for size in (1, 4)}

    def shuffled(seed):
        size = (1, 4)[seed % 2]
        order = random.Random(seed).sample(range(len(texts)), len(texts))  # noqa: S311
        return size, order, batched.encode([texts[i] for i in order], batch_size=size)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for size, order, vectors in pool.map(shuffled, range(16)):
            np.testing.assert_array_equal(vectors, expected[size][order])
    assert {batched.function(len(t.ids)).length for t in batched.tokenizer.encode(texts)} == {16, 64}


def test_prompts_are_put_before_texts(prompted):
    plain = {k: prompted.encode(["find: x", "text: x", "mine: x", "x"][i]) for i, k in enumerate("qpmx")}

    np.testing.assert_array_equal(prompted.encode("x", "query"), plain["q"])
    np.testing.assert_array_equal(prompted.encode_query("x"), plain["q"])
    np.testing.assert_array_equal(prompted.encode_document(["x"])[0], plain["p"])
    np.testing.assert_array_equal(prompted.encode_document("x", prompt_name="own"), plain["m"])
    np.testing.assert_array_equal(prompted.encode("x", "query", prompt="mine: "), plain["m"])
    np.testing.assert_array_equal(prompted.encode_query("x", prompt=""), plain["x"])
    assert prompted.tokenize("x", "query")[0].tokens == ("[CLS]", "find", ":", "x", "[SEP]")


def test_dimensions_are_cut_and_made_unit_again(prompted):
    whole, cut = prompted.encode(["x", "y"]), prompted.encode(["x", "y"], dimensions=8)

    np.testing.assert_allclose(
        cut, whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True), atol=1e-6
    )
    np.testing.assert_allclose(
        prompted.encode(["x", "y"], dimensions=8, normalize=False), whole[:, :8], atol=1e-3
    )
    with pytest.raises(ValueError, match=r"dimensions=4.*declares 32, 16, 8"):
        prompted.encode(["a"], dimensions=4)


def test_similarity_is_the_cosine(embedder):
    a, b = (embedder.encode(mixed(n), truncate="silent", normalize=n == 3) for n in (5, 3))

    np.testing.assert_allclose(embedder.similarity(a, b), cos_sim(a, b).numpy(), atol=1e-6)
    assert embedder.similarity(a[0], b).shape == (1, 3)
    with pytest.raises(ValueError, match="32 and 8 dimensions"):
        embedder.similarity(a, b[:, :8])


def test_cut_texts_are_reported_or_refused(embedder):
    texts = ["short", "word " * 100, "word " * 70]
    with pytest.warns(UserWarning, match="2 of 3 texts were cut to 64 tokens") as caught:
        vectors = embedder.encode(texts)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with pytest.raises(TruncationError, match=r"text 1 has 102 tokens.*sees 64") as failure:
        embedder.encode(texts, truncate="error")
    assert failure.value.index == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(embedder.encode(texts, truncate="silent"), vectors)


def test_tokenize_shows_what_was_cut(embedder):
    words = [f"w{i}" for i in range(100)]
    short, long = embedder.tokenize(["Héllo", " ".join(words)])

    assert short.tokens == ("[CLS]", "hello", "[SEP]")
    assert (short.cut, short.cut_text) == (0, "")
    assert len(long.ids) == 64
    assert long.cut > 0
    assert " ".join(words).endswith(long.cut_text)
    assert long.cut_text.split()[-1] == "w99"


def test_wrong_input_is_an_error(embedder):
    with pytest.raises(TypeError, match="text 1 is NoneType"):
        embedder.encode(["a", None])
    with pytest.raises(TypeError, match="text 2 is bytes"):
        embedder.encode(t for t in ["a", "b", b"c"])
    for wrong in (None, 5, b"bytes", {"a": 1}):
        with pytest.raises(TypeError, match=f"{type(wrong).__name__}, expected an iterable of str"):
            embedder.encode(wrong)
    with pytest.raises(TextError, match="text 1 is not valid Unicode"):
        embedder.encode(["a", "\ud800"])
    with pytest.raises(ValueError, match="no prompt 'query'"):
        embedder.encode(["a"], prompt_name="query")
    with pytest.raises(ValueError, match="truncate='cut'"):
        embedder.encode(["a"], truncate="cut")
    with pytest.raises(ValueError, match="batch_size=0"):
        embedder.encode(["a"], batch_size=0)


@pytest.mark.parametrize(
    "row", [np.zeros(32), np.full(32, np.nan), np.full(32, np.inf), np.ones(32), np.ones(31) / 31**0.5]
)
def test_what_is_not_a_vector_is_not_returned(tiny_release, row):
    embedder = with_engine(tiny_release, Constant(row))

    with pytest.raises(VectorError, match="text 0") as failure:
        embedder.encode(["a"])
    assert isinstance(failure.value, CorembedError)


def test_a_vector_that_the_cut_leaves_empty_is_not_returned(prompted):
    embedder = with_engine(prompted.folder, Constant(np.eye(32)[20]))

    assert embedder.encode(["a"], dimensions=32).sum() == 1
    with pytest.raises(VectorError, match="text 0: its first 16 dimensions"):
        embedder.encode(["a"], dimensions=16)


def test_errors_count_from_the_start_of_a_stream(tiny_release):
    embedder = with_engine(tiny_release, Constant(np.eye(32)[0]))
    many = module.WINDOW + 7

    with pytest.raises(TypeError, match=f"text {many} is int"):
        embedder.encode(itertools_chain(["a"] * many, [3]))
    with pytest.raises(TextError, match=f"text {many} is not valid Unicode"):
        embedder.encode(["a"] * many + ["\udfff"])


def itertools_chain(*parts):
    for part in parts:
        yield from part


def test_a_stream_is_read_by_windows_and_memory_stays_flat(tiny_release, monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 256)
    embedder = with_engine(tiny_release, Constant(np.eye(32)[0]))
    taken = 0

    def stream(count):
        nonlocal taken
        for i in range(count):
            taken = i + 1
            yield f"text {i} " + "x" * 1000

    blocks = embedder.encode_iter(stream(5 * module.WINDOW))
    assert taken == 0
    assert next(blocks).shape == (module.WINDOW, 32)
    assert taken == module.WINDOW

    peaks = []
    for count in (2, 8):
        tracemalloc.start()
        rows = sum(len(b) for b in embedder.encode_iter(stream(count * module.WINDOW)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert rows == count * module.WINDOW
    assert peaks[1] < 1.1 * peaks[0]


def test_async_callers_share_the_model_and_the_loop_goes_on(embedder):
    texts = mixed(20)

    async def both():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        ticker = asyncio.create_task(tick())
        vectors = await asyncio.gather(*(embedder.aencode(texts, truncate="silent") for _ in range(3)))
        ticker.cancel()
        return vectors, ticks

    vectors, ticks = asyncio.run(both())
    expected = embedder.encode(texts, truncate="silent")
    for found in vectors:
        np.testing.assert_array_equal(found, expected)
    assert ticks > 0


def test_progress_is_shown_when_asked_for(embedder, capsys):
    embedder.encode(["a", "b"])
    assert capsys.readouterr().err == ""
    embedder.encode(["a", "b"], show_progress=True)
    assert "2/2" in capsys.readouterr().err


def test_a_release_whose_texts_do_not_fit_is_refused(tiny_release, tmp_path):
    tokenizer = dataclasses.asdict(release.read(tiny_release).tokenizer) | {"max_length": 65}
    folder = edited(tiny_release, tmp_path / "release", tokenizer=tokenizer)

    with pytest.raises(ReleaseError, match="cuts texts at 65 tokens, but its longest function takes 64"):
        Embedder.from_pretrained(folder, engine="milrun")


def test_options_are_those_of_encode():
    """`Options` and the signature of `encode` are the same list."""
    parameters = set(inspect.signature(Embedder.encode).parameters) - {"self", "texts"}

    assert parameters == set(module.Options.__annotations__)
