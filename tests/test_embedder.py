"""The loader: order kept, lengths handled, nothing returned that is not a vector."""

import subprocess
import sys

import numpy as np
import pytest

from corembed import Embedder
from corembed.engines import EngineError


@pytest.fixture(scope="module")
def embedder(tiny_release):
    return Embedder.from_pretrained(tiny_release, engine="milrun")


def test_import_loads_nothing_heavy():
    code = "import sys, corembed; print(*[m for m in ('torch', 'transformers', 'coremltools') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == ""


def test_order_and_single_texts(embedder):
    texts = ["a much longer text " * 10, "b", "", "c d e"]
    together = embedder.encode(texts)

    np.testing.assert_array_equal(together, np.stack([embedder.encode(t) for t in texts]))
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    assert embedder.encode([]).shape == (0, 32)


def test_cut_texts_are_reported(embedder):
    with pytest.warns(UserWarning, match="1 of 2 texts were cut to 64 tokens"):
        embedder.encode(["short", "word " * 100])


def test_wrong_input_is_an_error(embedder):
    with pytest.raises(TypeError, match="text 1 is NoneType"):
        embedder.encode(["a", None])
    with pytest.raises(ValueError, match="dimensions=8"):
        embedder.encode(["a"], dimensions=8)
    with pytest.raises(ValueError, match="no prompt 'query'"):
        embedder.encode(["a"], prompt_name="query")


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_what_is_not_a_vector_is_not_returned(tiny_release, value):
    class Broken:
        name = "broken"

        def run(self, *_):
            return np.full((1, 32), value, np.float32)

    embedder = Embedder.from_pretrained(tiny_release, engine="milrun")
    embedder.engine = Broken()

    with pytest.raises(ArithmeticError, match="text 0"):
        embedder.encode(["a"])


def test_an_unknown_engine_names_those_there(tiny_release):
    with pytest.raises(EngineError, match="coreml and milrun"):
        Embedder.from_pretrained(tiny_release, engine="onnx")
