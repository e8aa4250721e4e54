"""A request for embeddings, as OpenAI defines it, and its answer."""

from __future__ import annotations

import base64
import json
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from corembed.server.errors import ApiError

TOKENS = (
    "input holds token ids: they are of the client's tokenizer, not of this model's, so send the text itself "
    "(LangChain's OpenAIEmbeddings does so with check_embedding_ctx_length=False)"
)


class EmbeddingRequest(BaseModel):
    """Body of `POST /v1/embeddings`; `prompt_name` is an addition: a prompt of the release, put before each text."""

    model_config = ConfigDict(extra="forbid")

    model: str
    input: list[str]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    prompt_name: str | None = None
    user: str | None = None

    @field_validator("input", mode="before")
    @classmethod
    def texts(cls, value: object) -> list[str]:
        """One text or a list of texts, as a list."""
        items: list[object] = value if isinstance(value, list) else [value]
        if not items:
            raise ValueError("input is an empty list")
        for index, item in enumerate(items):
            if isinstance(item, int | list) and not isinstance(item, bool):
                raise ValueError(TOKENS)  # noqa: TRY004  # pydantic reports ValueErrors only
            if not isinstance(item, str):
                raise ValueError(f"input[{index}] is {json.dumps(item)[:40]}, expected a string")  # noqa: TRY004
        return [str(item) for item in items]


def parse(body: bytes) -> EmbeddingRequest:
    """Read a body; the first fault is an `ApiError` that names the parameter."""
    try:
        return EmbeddingRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        param = ".".join(map(str, first["loc"])) or None
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"this server has no parameter {param!r}"
        elif param and not message.startswith(param):
            message = f"{param}: {message}"
        raise ApiError(400, message, param=param, code=first["type"]) from error


def answer(request: EmbeddingRequest, vectors: npt.NDArray[np.float32], tokens: int) -> bytes:
    """The response's JSON; base64 is of little-endian float32, as OpenAI's client decodes it."""
    rows: list[object]
    if request.encoding_format == "base64":
        rows = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
    else:
        rows = list(vectors.tolist())
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    body = {"object": "list", "data": data, "model": request.model, "usage": usage}
    return json.dumps(body, separators=(",", ":")).encode()
