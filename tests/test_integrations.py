"""The loader inside other people's software: the real packages, each with the prompts of its side applied."""

import asyncio
import dataclasses
import os
import shutil
import subprocess
import sys

import chromadb
import numpy as np
import pytest
import stub
from chromadb.utils.embedding_functions import known_embedding_functions
from helpers import ROOT
from langchain_core.vectorstores import InMemoryVectorStore

from corembed import Embedder, engines, release
from corembed.engines import EngineError
from corembed.integrations import papr
from corembed.integrations.chroma import (
    SPACE,
    CorembedEmbeddingFunction,
    EmbeddingSpaceError,
    open_collection,
)
from corembed.integrations.langchain import CorembedEmbeddings
from corembed.release import ReleaseError

TEXTS = ["the cat sleeps on the sofa", "stocks fell sharply today", "boil the pasta for ten minutes"]
PROMPTS = {"query": "find: ", "document": "text: "}


def variation(original, folder, **changes):
    """The same packages as another release: its record changed, its embedding space computed again."""
    shutil.copytree(original, folder)
    record = dataclasses.replace(release.read(folder), **changes)
    space = release.embedding_space(record.source, record.recipe, record.prompts, record.tokenizer.max_length)
    (folder / release.FILE).write_text(dataclasses.replace(record, embedding_space=space).to_json())
    return folder


@pytest.fixture(scope="module")
def prompted(tiny_release, tmp_path_factory):
    return variation(
        tiny_release, tmp_path_factory.mktemp("r") / "one", prompts=PROMPTS, matryoshka_dimensions=(16, 8)
    )


@pytest.fixture(scope="module")
def other(tiny_release, tmp_path_factory):
    return variation(tiny_release, tmp_path_factory.mktemp("r") / "two", prompts={"query": "seek: "})


@pytest.fixture(scope="module")
def embedder(prompted):
    return Embedder.from_pretrained(prompted, engine="milrun")


@pytest.fixture(scope="module")
def sides(embedder):
    """Vectors with the prompts written out by hand: of the texts as documents, and as queries."""
    return [embedder.encode([prompt + text for text in TEXTS]) for prompt in ("text: ", "find: ")]


@pytest.fixture(autouse=True)
def on_this_machine(monkeypatch):
    monkeypatch.setenv("COREMBED_ENGINE", "milrun")


@pytest.fixture
def client(tmp_path):
    return chromadb.PersistentClient(str(tmp_path / "chroma"))


def test_the_prompts_make_a_difference(sides):
    assert np.abs(sides[0] - sides[1]).max() > 1e-3


def test_chroma_embeds_each_side_with_its_prompt(client, prompted, sides):
    collection = open_collection(client, "texts", CorembedEmbeddingFunction(prompted))
    collection.add(ids=["0", "1", "2"], documents=TEXTS)
    found = collection.query(query_texts=[TEXTS[1]], n_results=3, include=["distances"])

    # Chroma scales rows for a cosine index once more: the last bit may differ.
    np.testing.assert_allclose(collection.get(include=["embeddings"])["embeddings"], sides[0], atol=1e-7)
    expected = dict(zip("012", 1 - sides[0] @ sides[1][1], strict=True))
    assert found["ids"][0] == sorted(expected, key=expected.get)
    np.testing.assert_allclose(found["distances"][0], sorted(expected.values()), atol=1e-6)  # cosine distance


def test_chroma_opens_a_collection_again_by_its_own_configuration(client, prompted, tmp_path, monkeypatch):
    """Another process that only imports the module gets the function back from Chroma's registry."""
    monkeypatch.setattr(engines, "choose", lambda _, request: stub.Stub(request))
    function = CorembedEmbeddingFunction(prompted, variant="int8")
    open_collection(client, "texts", function).add(ids=["0"], documents=TEXTS[:1])
    code = (
        "import sys, stub, chromadb, corembed.integrations.chroma\n"
        "from corembed import engines\n"
        "engines.choose = lambda _, request: stub.Stub(request)\n"
        "c = chromadb.PersistentClient(sys.argv[1]).get_collection('texts')\n"
        "c.add(ids=['1', '2'], documents=sys.argv[2:])\n"
        "print(c.configuration['embedding_function'].sides.embedder.variant)\n"
    )
    environment = stub.ENVIRONMENT | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", code, tmp_path / "chroma", *TEXTS[1:]]
    done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)

    assert done.stdout.split() == ["int8"]
    assert known_embedding_functions["corembed"] is CorembedEmbeddingFunction
    got = client.get_collection("texts").get(ids=["0", "1", "2"], include=["embeddings"])["embeddings"]
    np.testing.assert_allclose(got, Embedder.from_pretrained(prompted).encode_document(TEXTS), atol=1e-6)


def test_chroma_keeps_what_decides_the_vectors_and_not_the_machine(prompted, embedder):
    function = CorembedEmbeddingFunction(prompted, dimensions=8, engine="milrun", compute_units="ALL")
    config = function.get_config()

    assert config == {
        "model": str(prompted.resolve()),
        "revision": None,
        "variant": None,
        "layout": None,
        "dimensions": 8,
        "query_prompt_name": None,
        "document_prompt_name": None,
        "embedding_space": embedder.embedding_space,
    }
    assert CorembedEmbeddingFunction.build_from_config(config).get_config() == config


def test_chroma_refuses_a_collection_of_another_space_and_keeps_it(client, prompted, other):
    open_collection(client, "texts", CorembedEmbeddingFunction(prompted)).add(ids=["0"], documents=TEXTS[:1])

    with pytest.raises(EmbeddingSpaceError, match="cannot be compared") as caught:
        open_collection(client, "texts", CorembedEmbeddingFunction(other))
    with pytest.raises(EmbeddingSpaceError, match="8 dimensions"):
        open_collection(client, "texts", CorembedEmbeddingFunction(prompted, dimensions=8))

    assert release.read(prompted).embedding_space in str(caught.value)
    assert release.read(other).embedding_space in str(caught.value)
    kept = client.get_collection("texts", embedding_function=None)
    assert (kept.count(), kept.metadata[SPACE]) == (1, release.read(prompted).embedding_space)


def test_chroma_refuses_vectors_of_unknown_origin_but_takes_an_empty_collection(client, prompted):
    client.create_collection("full", embedding_function=None).add(ids=["0"], embeddings=[[0.0] * 31 + [1.0]])
    client.create_collection("empty", metadata={"owner": "me"}, embedding_function=None)

    with pytest.raises(EmbeddingSpaceError, match="holds 1 vectors of an unknown embedding space"):
        open_collection(client, "full", CorembedEmbeddingFunction(prompted))
    adopted = open_collection(client, "empty", CorembedEmbeddingFunction(prompted))
    assert adopted.metadata["owner"] == "me"
    assert adopted.metadata[SPACE] == release.read(prompted).embedding_space


def test_chroma_refuses_a_release_that_was_exchanged(client, prompted, other, tmp_path):
    """The folder in the configuration now holds another release: adding to the collection fails, nothing is added."""
    folder = shutil.copytree(prompted, tmp_path / "release")
    open_collection(client, "texts", CorembedEmbeddingFunction(folder)).add(ids=["0"], documents=TEXTS[:1])
    shutil.copy(other / release.FILE, folder / release.FILE)
    again = chromadb.PersistentClient(str(tmp_path / "chroma")).get_collection("texts")

    with pytest.raises(EmbeddingSpaceError, match="the collection's configuration"):
        again.add(ids=["1"], documents=TEXTS[1:2])
    assert again.count() == 1


def test_chroma_configurations_may_move_but_not_change_space(prompted):
    function = CorembedEmbeddingFunction(prompted)
    config = function.get_config()

    function.validate_config_update(config, config | {"model": "elsewhere", "variant": "int8"})
    with pytest.raises(EmbeddingSpaceError, match="make a new collection"):
        function.validate_config_update(config, config | {"embedding_space": "0" * 16})


def test_langchain_store_finds_with_the_prompts(embedder, sides):
    store = InMemoryVectorStore(CorembedEmbeddings(embedder))
    store.add_texts(TEXTS)
    found = store.similarity_search_with_score(TEXTS[2], k=3)
    cosines = sides[0] @ sides[1][2]

    assert [d.page_content for d, _ in found] == [TEXTS[i] for i in np.argsort(-cosines)]
    np.testing.assert_allclose([score for _, score in found], np.sort(cosines)[::-1], atol=1e-6)
    assert asyncio.run(CorembedEmbeddings(embedder).aembed_query(TEXTS[0])) == sides[1][0].tolist()


def test_langchain_loads_a_release_and_cuts_dimensions(prompted, embedder):
    short = CorembedEmbeddings(prompted, engine="milrun", dimensions=8).embed_documents(TEXTS)

    np.testing.assert_array_equal(np.float32(short), embedder.encode_document(TEXTS, dimensions=8))
    with pytest.raises(TypeError, match="variant: an embedder is loaded already"):
        CorembedEmbeddings(embedder, variant="int8")


def test_llama_index_finds_with_the_prompts(embedder, sides):
    from llama_index.core import VectorStoreIndex  # noqa: PLC0415  # imports for seconds
    from llama_index.core.schema import TextNode  # noqa: PLC0415

    from corembed.integrations.llama_index import CorembedEmbedding  # noqa: PLC0415

    model = CorembedEmbedding(embedder, embed_batch_size=2)
    index = VectorStoreIndex([TextNode(text=t) for t in TEXTS], embed_model=model)
    found = index.as_retriever(similarity_top_k=3).retrieve(TEXTS[1])
    cosines = sides[0] @ sides[1][1]

    assert [n.text for n in found] == [TEXTS[i] for i in np.argsort(-cosines)]
    np.testing.assert_allclose([n.score for n in found], np.sort(cosines)[::-1], atol=1e-6)
    rows = asyncio.run(model.aget_text_embedding_batch(TEXTS))
    np.testing.assert_array_equal(np.float32(rows), sides[0])
    assert model.model_name == embedder.release.model


def test_mteb_scores_a_release(embedder, prompted):
    """A retrieval task of mteb's own: queries get the query prompt, documents the document's; a score comes out."""
    import mteb  # noqa: PLC0415  # imports for seconds
    from mteb.mocks.mock_tasks import MockRetrievalTask, MockSTSTask  # noqa: PLC0415

    from corembed.integrations.mteb import CorembedEncoder  # noqa: PLC0415

    seen = []
    spied = Embedder.from_pretrained(prompted, engine="milrun")
    encode = spied.encode

    def spy(texts, prompt_name=None, *rest, **options):
        seen.append(prompt_name)
        return encode(texts, prompt_name, *rest, **options)

    spied.encode = spy
    result = mteb.evaluate(
        CorembedEncoder(spied), [MockRetrievalTask(), MockSTSTask()], cache=None, show_progress_bar=False
    )

    assert set(seen) == {"query", "document", None}  # similarity has no sides
    assert {r.task_name for r in result.task_results} == {"MockRetrievalTask", "MockSTSTask"}
    for task in result.task_results:
        assert np.isfinite(task.get_score())
    assert result.model_name == f"corembed/{embedder.release.model}-fp16"


def environment(folder, **more):
    on = {"PAPR_ONDEVICE_PROCESSING": "true", "PAPR_ENABLE_COREML": "true", "PAPR_COREML_MODEL": str(folder)}
    return on | {name: str(value) for name, value in more.items()}


def test_papr_variables_load_the_variant_they_name(prompted, sides):
    values = environment(prompted, PAPR_COREML_VARIANT="INT8", COREMBED_ENGINE="milrun")
    embedder = papr.from_environment(values)

    assert (embedder.package.variant, embedder.engine.name) == ("int8", "milrun")
    cosines = np.sum(embedder.encode_document(TEXTS) * sides[0], axis=1)
    assert cosines.min() > 0.99


def test_papr_variables_become_arguments(prompted):
    values = environment(prompted / "int8.mlpackage", PAPR_COREML_COMPUTE_UNITS="all", PAPR_ENABLE_MLX="1")

    assert papr.settings(values) == {
        "folder_or_repo": str(prompted),
        "variant": "int8",
        "compute_units": "ALL",
    }
    assert papr.settings(environment("org/name@v1")) == {
        "folder_or_repo": "org/name",
        "revision": "v1",
        "engine": "coreml",
    }


@pytest.mark.parametrize("change", [{"PAPR_ONDEVICE_PROCESSING": ""}, {"PAPR_ENABLE_COREML": "off"}])
def test_papr_off_is_off(prompted, change):
    assert papr.from_environment(environment(prompted) | change) is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"PAPR_COREML_MODEL": ""}, papr.SettingError, "is not set"),
        ({"PAPR_COREML_MODEL": "/no/such"}, papr.SettingError, "no such folder"),
        ({"PAPR_COREML_MODEL": os.fspath("/")}, papr.SettingError, "neither a release folder"),
        ({"PAPR_COREML_VARIANT": "int3"}, ReleaseError, "no variant 'int3'"),
        ({"PAPR_COREML_COMPUTE_UNITS": "NPU"}, papr.SettingError, "expected one of ALL"),
        ({"PAPR_ENABLE_MLX": "maybe"}, papr.SettingError, "expected true or false"),
        ({"PAPR_EMBEDDING_MODEL": "Qwen/Qwen3-Embedding-8B"}, papr.SettingError, "different spaces"),
        ({"COREMBED_ENGINE": "onnx"}, EngineError, "onnx"),
    ],
)
def test_papr_variables_that_cannot_be_followed_are_refused(prompted, change, error, message):
    with pytest.raises(error, match=message):
        papr.from_environment(environment(prompted, COREMBED_ENGINE="milrun") | change)
