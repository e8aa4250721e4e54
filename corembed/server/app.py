"""Routes: `POST /v1/embeddings`, `GET /v1/models`, `GET /health`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

import corembed
from corembed.embedder import Embedder
from corembed.server import errors, schema
from corembed.server.errors import ApiError
from corembed.server.queue import Job, Queue
from corembed.server.settings import Settings

BODY = {
    "required": True,
    "content": {"application/json": {"schema": schema.EmbeddingRequest.model_json_schema()}},
}


def create(embedder: Embedder, settings: Settings) -> FastAPI:
    """An application that serves one embedder within `settings`."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.queue = Queue(embedder, settings)
        async with app.state.queue.running():
            yield

    async def authorized(request: Request) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if settings.keys and not (scheme.lower() == "bearer" and settings.admits(key.strip())):
            message = "no API key, or not one of this server's: send 'Authorization: Bearer KEY'"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    app = FastAPI(title="corembed", version=corembed.__version__, lifespan=lifespan)
    errors.install(app)
    guarded = [Depends(authorized)]

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether requests are accepted, by what, and how many wait. Needs no key."""
        queue: Queue = app.state.queue
        state = {
            "status": "shutting down" if queue.closing else "ok",
            "model": embedder.release.model,
            "engine": embedder.engine.name,
            "pending": queue.pending,
        }
        return JSONResponse(state, 503 if queue.closing else 200)

    @app.get("/v1/models", dependencies=guarded)
    async def models() -> dict[str, Any]:
        """The names a request may use."""
        return {"object": "list", "data": [_model(embedder, name) for name in settings.names]}

    @app.get("/v1/models/{name:path}", dependencies=guarded)
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        return _model(embedder, _known(name, settings))

    @app.post("/v1/embeddings", dependencies=guarded, openapi_extra={"requestBody": BODY})
    async def embeddings(request: Request) -> Response:
        """Vectors of texts, in order."""
        queue: Queue = app.state.queue
        with queue.place():
            wanted = schema.parse(await _body(request, settings))
            _check(wanted, embedder, settings)
            job = Job(wanted.input, wanted.prompt_name, wanted.dimensions, request.is_disconnected)
            vectors, tokens = await queue.submit(job)
            content = await run_in_threadpool(schema.answer, wanted, vectors, tokens)
        return Response(content, media_type="application/json")

    return app


def _model(embedder: Embedder, name: str) -> dict[str, Any]:
    """OpenAI's model object, with what a client must know of the vectors."""
    record = embedder.release
    return {
        "id": name,
        "object": "model",
        "created": 0,  # a release carries no date, so that its bytes can be built again
        "owned_by": "corembed",
        "model": record.model,
        "version": record.version,
        "variant": embedder.variant,
        "dimension": record.dimension,
        "dimensions": sorted({record.dimension, *record.matryoshka_dimensions}),
        "max_tokens": record.tokenizer.max_length,
        "prompts": sorted(record.prompts),
        "embedding_space": record.embedding_space,
    }


def _known(name: str, settings: Settings) -> str:
    if name not in settings.names:
        there = ", ".join(settings.names)
        raise ApiError(
            404, f"no model {name!r}; this server has {there}", param="model", code="model_not_found"
        )
    return name


async def _body(request: Request, settings: Settings) -> bytes:
    """The body, refused as soon as it is known to be too large, or does not come."""
    limit = settings.body_bytes
    too_large = ApiError(413, f"the request is larger than {limit} bytes", code="request_too_large")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(settings.wait_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
    except TimeoutError as error:
        message = f"the body did not come within {settings.wait_seconds:g} s"
        raise ApiError(408, message, headers={"Connection": "close"}) from error
    return bytes(body)


def _check(wanted: schema.EmbeddingRequest, embedder: Embedder, settings: Settings) -> None:
    """What can be refused without the model."""
    _known(wanted.model, settings)
    if len(wanted.input) > settings.inputs:
        raise ApiError(
            400, f"{len(wanted.input)} texts, this server takes {settings.inputs} a request", param="input"
        )
    for index, text in enumerate(wanted.input):
        if (size := len(text.encode())) > settings.text_bytes:
            raise ApiError(
                400,
                f"input[{index}] has {size} bytes, this server takes {settings.text_bytes}",
                param="input",
            )
    allowed = sorted({embedder.dimension, *embedder.release.matryoshka_dimensions})
    if wanted.dimensions is not None and wanted.dimensions not in allowed:
        there = ", ".join(map(str, allowed))
        raise ApiError(
            400, f"dimensions={wanted.dimensions}: this model declares {there}", param="dimensions"
        )
