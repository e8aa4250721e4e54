"""A server process that ends well."""

from __future__ import annotations

import signal
import socket
import sys

import uvicorn

from corembed.embedder import Embedder
from corembed.server import app
from corembed.server.settings import Settings


def bound(host: str, port: int) -> socket.socket:
    """A socket on this address that does not listen yet; port 0 takes a free one. Raises `OSError` with the address."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise OSError(f"cannot serve on {host} port {port}: {error.strerror or error}") from error
    return listener


class _Server(uvicorn.Server):
    """Says where it listens once it does; uvicorn is silent about a socket that it is given."""

    def __init__(self, config: uvicorn.Config, message: str) -> None:
        super().__init__(config)
        self._message = message

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(self._message, file=sys.stderr, flush=True)


def serve(embedder: Embedder, settings: Settings, listener: socket.socket, grace: int) -> None:
    """Serve until SIGINT or SIGTERM, then finish what was accepted, for at most `grace` seconds.

    uvicorn sends a caught signal again once it is done, to end the process as if it had not been caught. An
    orderly end is no failure, so the second one is ignored, and the process exits 0.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    host, port = listener.getsockname()[:2]
    config = uvicorn.Config(
        app.create(embedder, settings), timeout_graceful_shutdown=grace, server_header=False, log_level="info"
    )
    place = f"[{host}]" if ":" in host else host
    _Server(config, f"serving {embedder!r} on http://{place}:{port}/v1").run(sockets=[listener])
