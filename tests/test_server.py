"""The server, spoken to by OpenAI's own client: vectors, limits, keys, errors, a full queue, an orderly end."""

import asyncio
import base64
import contextlib
import dataclasses
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest
import stub
import uvicorn

from corembed import Embedder, release
from corembed.server import app
from corembed.server.settings import Settings, read_keys

KEY = "sk-test-0123456789"


class Gate:
    """The real engine behind a door: requests can be held while they run."""

    def __init__(self, engine):
        self.engine, self.open, self.calls = engine, threading.Event(), 0
        self.name, self.functions = engine.name, engine.functions
        self.open.set()

    def run(self, *arguments):
        self.calls += 1
        assert self.open.wait(60)
        return self.engine.run(*arguments)


@pytest.fixture(scope="module")
def embedder(tiny_release):
    made = Embedder.from_pretrained(tiny_release, engine="milrun")
    made.engine = Gate(made.engine)
    return made


@contextlib.contextmanager
def serving(embedder, **limits):
    """A server of this embedder on a free port of this machine; gives a client factory."""
    settings = Settings(names=("tiny",), **limits)
    server = uvicorn.Server(uvicorn.Config(app.create(embedder, settings), port=0, log_level="warning"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    yield lambda **options: openai.OpenAI(
        **{"base_url": f"{url}/v1", "api_key": KEY, "max_retries": 0} | options
    )
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def client(embedder, tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"another\n{KEY}\n")
    with serving(embedder, keys=read_keys(file), inputs=8, text_bytes=1000, body_bytes=4000) as make:
        yield make


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def post(client, body, **headers):
    """A raw request, for what OpenAI's client would not send; gives status and parsed body."""
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"} | headers
    answer = httpx.post(f"{client.base_url}embeddings", content=body, headers=headers)
    return answer.status_code, answer.json()


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_vectors_are_the_embedders(client, embedder, encoding):
    texts = ["one", "a longer text about the sea", "", "one"]
    answer = client().embeddings.create(model="tiny", input=texts, encoding_format=encoding)
    rows = [d.embedding for d in answer.data]
    if encoding == "base64":
        rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]

    np.testing.assert_array_equal(np.array(rows, np.float32), embedder.encode(texts))
    assert [d.index for d in answer.data] == [0, 1, 2, 3]


def test_usage_counts_what_the_model_sees(client):
    answer = client().embeddings.create(model="tiny", input=["sea", "the sea"])

    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (
        7,
        7,
    )  # [CLS] sea [SEP], [CLS] the sea [SEP]


def test_the_clients_default_call_with_one_text(client, embedder):
    answer = client().embeddings.create(model="tiny", input="one")

    np.testing.assert_array_equal(np.float32(answer.data[0].embedding), embedder.encode("one"))


def test_models_say_what_their_vectors_are(client, embedder):
    (model,) = client().models.list().data

    assert (model.id, model.embedding_space) == ("tiny", embedder.release.embedding_space)
    assert client().models.retrieve("tiny").dimension == 32
    with pytest.raises(openai.NotFoundError, match="this server has tiny"):
        client().models.retrieve("text-embedding-3-small")


@pytest.mark.parametrize(
    ("change", "error", "message", "param"),
    [
        ({"model": "other"}, openai.NotFoundError, "no model 'other'", "model"),
        ({"input": []}, openai.BadRequestError, "empty list", "input"),
        ({"input": ["a", None]}, openai.BadRequestError, r"input\[1\] is null", "input"),
        ({"input": [1, 2]}, openai.BadRequestError, "token ids", "input"),
        ({"input": [[1, 2]]}, openai.BadRequestError, "token ids", "input"),
        ({"input": ["a"] * 9}, openai.BadRequestError, "takes 8 a request", "input"),
        ({"input": "é" * 501}, openai.BadRequestError, "1002 bytes", "input"),
        ({"input": ["a", "word " * 100]}, openai.BadRequestError, r"input\[1\] has 102 tokens", "input"),
        ({"input": "a" * 5000}, openai.APIStatusError, "larger than 4000 bytes", None),
        ({"dimensions": 7}, openai.BadRequestError, "declares 32", "dimensions"),
        ({"encoding_format": "int8"}, openai.BadRequestError, "'float' or 'base64'", "encoding_format"),
        ({"extra_body": {"prompt_name": "no"}}, openai.BadRequestError, "no prompt 'no'", "prompt_name"),
        (
            {"extra_body": {"input_type": "query"}},
            openai.BadRequestError,
            "no parameter 'input_type'",
            "input_type",
        ),
    ],
)
def test_refusals_name_the_parameter(client, change, error, message, param):
    with pytest.raises(error, match=message) as caught:
        client().embeddings.create(**{"model": "tiny", "input": "a"} | change)

    assert caught.value.param == param


@pytest.mark.parametrize("body", [b"", b"{", b'{"model": "tiny", "input": "\\ud800"}', b"[]", b"\xff"])
def test_a_body_that_is_not_a_request(client, body):
    status, answer = post(client(), body)

    assert status == 400
    assert set(answer["error"]) == {"message", "type", "param", "code"}


def test_a_body_without_a_length_is_measured_as_it_comes(client):
    status, answer = post(client(), iter([b" " * 3000, b" " * 3000]))

    assert (status, answer["error"]["code"]) == (413, "request_too_large")


def test_unknown_paths_answer_in_the_same_shape(client):
    with pytest.raises(openai.NotFoundError, match="GET /v1/files: Not Found"):
        client().files.list()


@pytest.mark.parametrize("key", ["", "sk-test-0123456788", KEY + "x"])
def test_a_wrong_key_is_refused(client, key):
    with pytest.raises(openai.AuthenticationError, match="not one of this server's"):
        client(api_key=key or "none").embeddings.create(model="tiny", input="a")
    status, _ = post(client(), b"{}", Authorization=f"Basic {KEY}")
    assert status == 401


def test_a_file_without_keys_is_no_open_door(tmp_path):
    (tmp_path / "keys").write_text("\n \n")

    with pytest.raises(ValueError, match="holds no API key"):
        read_keys(tmp_path / "keys")


@pytest.fixture
def calls(embedder, monkeypatch):
    """The texts of each call of `encode`."""
    seen, encode = [], embedder.encode
    monkeypatch.setattr(
        embedder,
        "encode",
        lambda texts, *rest, **options: seen.append(list(texts)) or encode(texts, *rest, **options),
    )
    return seen


def test_waiting_requests_share_a_call_and_a_full_queue_is_429(embedder, calls):
    """While one request runs, two wait; the fourth is refused; the two then go through the model together."""
    with serving(embedder, waiting=3) as make, ThreadPoolExecutor(3) as pool:
        health = f"{make().base_url}".removesuffix("v1/") + "health"
        embedder.engine.open.clear()
        try:
            asked = []
            for text in ("first", "second", "third"):
                asked.append(pool.submit(make().embeddings.create, model="tiny", input=[text]))
                until(lambda: httpx.get(health).json()["pending"] == len(asked))
            with pytest.raises(openai.RateLimitError, match="3 requests are waiting") as caught:
                make().embeddings.create(model="tiny", input="fourth")
        finally:
            embedder.engine.open.set()
        rows = [a.result().data[0].embedding for a in asked]

    assert caught.value.response.headers["retry-after"] == "1"
    assert calls == [["first"], ["second", "third"]]
    np.testing.assert_array_equal(np.float32(rows), embedder.encode(["first", "second", "third"]))


def test_a_turn_that_does_not_come_is_503(embedder):
    with serving(embedder, wait_seconds=0.2) as make, ThreadPoolExecutor(1) as pool:
        calls = embedder.engine.calls
        embedder.engine.open.clear()
        try:
            running = pool.submit(make().embeddings.create, model="tiny", input="slow")
            until(lambda: embedder.engine.calls > calls)
            with pytest.raises(openai.InternalServerError, match=r"no turn within 0\.2 s") as caught:
                make().embeddings.create(model="tiny", input="late")
        finally:
            embedder.engine.open.set()

        assert caught.value.status_code == 503
        assert running.result().data  # what had its turn is not bound by the limit


def test_a_body_that_does_not_come_gives_its_place_back(embedder):
    """A place is taken before the body is read; a client that sends half of it holds it for a while only."""
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 50\r\n\r\n{{"
    with serving(embedder, waiting=1, wait_seconds=0.5) as make:
        url = make().base_url
        with socket.create_connection((url.host, url.port)) as slow:
            slow.sendall(head.encode())
            until(lambda: httpx.get(f"{url}".removesuffix("v1/") + "health").json()["pending"] == 1)
            with pytest.raises(openai.RateLimitError):
                make().embeddings.create(model="tiny", input="a")
            assert slow.recv(1000).startswith(b"HTTP/1.1 408")
        assert make().embeddings.create(model="tiny", input="a").data


def test_one_bad_text_fails_one_request(embedder):
    """Three requests wait; the vector of one is not a vector: the others, embedded with it, are answered."""
    run, spoiled = embedder.engine.run, embedder.tokenizer.encode(["spoiled"])[0].ids

    def poison(function, ids, mask):
        vectors = run(function, ids, mask)
        rows = [tuple(row[: len(spoiled)]) == spoiled for row in np.asarray(ids)]
        return np.where(np.array(rows)[: len(vectors), None], np.nan, vectors)

    embedder.engine.run = poison
    embedder.engine.open.clear()
    with serving(embedder) as make, ThreadPoolExecutor(4) as pool:
        asked = [
            pool.submit(make().embeddings.create, model="tiny", input=t) for t in ("a", "spoiled", "b", "c")
        ]
        time.sleep(0.5)
        embedder.engine.open.set()
        try:
            errors = [a.exception() for a in asked]
        finally:
            embedder.engine.run = run

    assert [e is None for e in errors] == [True, False, True, True]
    assert errors[1].status_code == 500
    assert "log" in errors[1].body["message"]


def test_prompts_and_dimensions_of_the_release(tiny_release, tmp_path):
    folder = shutil.copytree(tiny_release, tmp_path / "release")
    changes = {"prompts": {"query": "find: "}, "matryoshka_dimensions": (8,)}
    (folder / release.FILE).write_text(dataclasses.replace(release.read(folder), **changes).to_json())
    prompted = Embedder.from_pretrained(folder, engine="milrun")
    with serving(prompted) as make:
        answer = make().embeddings.create(
            model="tiny", input=["sea"], dimensions=8, extra_body={"prompt_name": "query"}
        )
        plain = make().embeddings.create(model="tiny", input=["sea"])

    np.testing.assert_array_equal(
        np.float32(answer.data[0].embedding), prompted.encode("find: sea", dimensions=8)
    )
    np.testing.assert_array_equal(np.float32(plain.data[0].embedding), prompted.encode("sea"))
    assert answer.usage.prompt_tokens == plain.usage.prompt_tokens + 2  # "find" and ":"


def test_a_server_told_to_truncate_cuts(embedder):
    with serving(embedder, truncate=True) as make:
        answer = make().embeddings.create(model="tiny", input="word " * 100)

    np.testing.assert_array_equal(np.float32(answer.data[0].embedding), embedder.encode("word " * 62))
    assert answer.usage.prompt_tokens == 64


def test_a_client_that_is_gone_is_not_embedded_for(embedder, calls):
    """It hangs up while it waits: its place is free at its turn, and the model never sees its text."""
    with serving(embedder) as make, ThreadPoolExecutor(2) as pool:
        seen = embedder.engine.calls
        embedder.engine.open.clear()
        try:
            first = pool.submit(make().embeddings.create, model="tiny", input="first")
            until(lambda: embedder.engine.calls > seen)
            with pytest.raises(openai.APITimeoutError):
                make(timeout=0.3).embeddings.create(model="tiny", input="gone")
            last = pool.submit(make().embeddings.create, model="tiny", input="last")
            health = f"{make().base_url}".removesuffix("v1/") + "health"
            until(lambda: httpx.get(health).json()["pending"] == 3)
        finally:
            embedder.engine.open.set()
        assert first.result().data
        assert last.result().data

    assert calls == [["first"], ["last"]]


@pytest.fixture
def process(tiny_release, tmp_path):
    """`corembed serve` as a process with its key in the environment."""
    log = tmp_path / "log"
    # Slow enough that requests wait when the signal comes, and nothing but the model is a stand-in.
    command = [
        sys.executable,
        stub.__file__,
        "--delay",
        "0.01",
        "serve",
        tiny_release,
        "--port",
        "0",
        "--grace",
        "300",
    ]
    with log.open("wb") as opened:
        running = subprocess.Popen(
            command, stdout=opened, stderr=opened, env=stub.ENVIRONMENT | {"COREMBED_API_KEY": KEY}
        )
    deadline = time.monotonic() + 300
    while not (found := re.search(r"on (http://[\d.:]+)/v1", log.read_text())):
        assert running.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    yield running, found[1], log
    running.kill()


def test_sigterm_finishes_what_was_accepted(process):
    running, url, log = process
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)

    async def ask():
        asked = [
            asyncio.ensure_future(client.embeddings.create(model="tiny", input=["some text"] * 20))
            for _ in range(16)
        ]
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        running.send_signal(signal.SIGTERM)
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = asyncio.run(ask())
    late = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)

    assert [len(a.data) for a in answers] == [20] * 16
    assert running.wait(300) == 0
    with pytest.raises(openai.APIConnectionError):
        late.models.list()
    assert KEY not in log.read_text()
