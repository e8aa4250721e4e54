"""Serve a release as an OpenAI-compatible API: POST /v1/embeddings, GET /v1/models, GET /health.

The API key is read from the environment variable COREMBED_API_KEY or from --api-key-file (one key a line).
Without one, only this machine may be served. SIGTERM or Ctrl-C: accepted requests are finished first.

For example: COREMBED_API_KEY=… corembed serve ORG/MODEL --variant int8 --port 8000
"""

from __future__ import annotations

import argparse
import ipaddress
from pathlib import Path

from corembed.cli import model
from corembed.cli.errors import UserError, needs
from corembed.cli.text import count, positive

HELP = "serve a release as an OpenAI-compatible API"


def add(parser: argparse.ArgumentParser) -> None:
    """Options."""
    model.add(parser)
    group = parser.add_argument_group("server")
    group.add_argument("--host", default="127.0.0.1")
    group.add_argument("--port", type=_port, default=8000, help="default: 8000")
    group.add_argument(
        "--model-name", action="append", help="name for requests; repeat for more; default: the model's own"
    )
    group.add_argument("--api-key-file", type=Path, help="file with the accepted API keys, one a line")
    group.add_argument(
        "--allow-anonymous", action="store_true", help="serve other machines without an API key"
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-inputs", type=count, default=2048, help="texts in a request; default: 2048")
    limits.add_argument(
        "--max-text-bytes", type=count, default=1 << 18, help="bytes of a text; default: 262144"
    )
    limits.add_argument(
        "--max-body-bytes", type=count, default=1 << 24, help="bytes of a request; default: 16777216"
    )
    limits.add_argument(
        "--max-waiting", type=count, default=64, help="requests in the queue, the next gets 429; default: 64"
    )
    limits.add_argument(
        "--max-wait", type=positive, default=60.0, help="seconds in the queue before 503; default: 60"
    )
    limits.add_argument(
        "--grace", type=count, default=30, help="seconds to finish requests at the end; default: 30"
    )
    limits.add_argument(
        "--truncate", action="store_true", help="cut texts beyond the model's length instead of refusing them"
    )


def run(options: argparse.Namespace) -> int:
    """Serve until told to stop."""
    with needs("serve"):
        from corembed.server.run import bound, serve  # noqa: PLC0415  # an extra's packages
        from corembed.server.settings import KEY_VARIABLE, Settings, read_keys  # noqa: PLC0415

    try:
        keys = read_keys(options.api_key_file)
    except ValueError as error:
        raise UserError(str(error)) from error
    if not keys and not options.allow_anonymous and not _loopback(options.host):
        raise UserError(
            f"--host {options.host} serves other machines: set {KEY_VARIABLE} or --api-key-file, or say --allow-anonymous"
        )
    listener = bound(options.host, options.port)  # a port in use is known before a model is loaded
    embedder = model.load(options)
    settings = Settings(
        names=tuple(options.model_name or [embedder.release.model]),
        keys=keys,
        inputs=options.max_inputs,
        text_bytes=options.max_text_bytes,
        body_bytes=options.max_body_bytes,
        waiting=options.max_waiting,
        wait_seconds=options.max_wait,
        truncate=options.truncate,
    )
    serve(embedder, settings, listener, options.grace)
    return 0


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 1 << 16:
        raise argparse.ArgumentTypeError(f"{value} is not a port")
    return value
