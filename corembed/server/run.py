"""A server process that ends well."""

from __future__ import annotations

import signal

import uvicorn

from corembed.embedder import Embedder
from corembed.server import app
from corembed.server.settings import Settings


def serve(embedder: Embedder, settings: Settings, host: str, port: int, grace: int) -> None:
    """Serve until SIGINT or SIGTERM, then finish what was accepted, for at most `grace` seconds.

    uvicorn sends a caught signal again once it is done, to end the process as if it had not been caught. An
    orderly end is no failure, so the second one is ignored, and the process exits 0.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    uvicorn.run(
        app.create(embedder, settings),
        host=host,
        port=port,
        timeout_graceful_shutdown=grace,
        server_header=False,
        log_level="info",
    )
