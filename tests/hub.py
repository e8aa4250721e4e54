"""A model hub on loopback, as far as a download needs it: model info, and files with ranges.

The real client talks to it through `HF_ENDPOINT`. `drop_after` bytes it drops the connection of the first request
for each large file, as a bad network does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves one folder as the repository `org/model` at `COMMIT`."""

    def __init__(self, folder: Path, drop_after: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.drop_after = folder, drop_after
        self.dropped: set[str] = set()
        self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Answers the requests that huggingface_hub 2.4 makes for a download."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def _json(self, status: int, value: object, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **headers,
        }.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if match := re.fullmatch(r"/api/models/org/model/revision/(\w+)(\?.*)?", self.path):
            self._info(match[1])
        elif match := re.fullmatch(r"/org/model/resolve/(\w+)/(.+)", self.path):
            self._file(match[2])
        else:
            self._json(404, {"error": "not found"}, **{"X-Error-Code": "RepoNotFound"})

    def _info(self, revision: str) -> None:
        if revision != COMMIT:
            self._json(404, {"error": "no such revision"}, **{"X-Error-Code": "RevisionNotFound"})
            return
        siblings = []
        for path in sorted(p for p in self.server.folder.rglob("*") if p.is_file()):
            data = path.read_bytes()
            entry = {
                "rfilename": path.relative_to(self.server.folder).as_posix(),
                "size": len(data),
                "blobId": "0",
            }
            if path.suffix == ".safetensors":
                entry["lfs"] = {
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "size": len(data),
                    "pointerSize": 1,
                }
            siblings.append(entry)
        self._json(200, {"id": "org/model", "sha": COMMIT, "siblings": siblings})

    def _file(self, name: str) -> None:
        path = self.server.folder / name
        if not path.is_file():
            self._json(404, {"error": "no such file"}, **{"X-Error-Code": "EntryNotFound"})
            return
        data = path.read_bytes()
        etag = hashlib.sha256(data).hexdigest()
        start = 0
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(asked[1])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = self.server.drop_after
        if limit is not None and len(data) > limit and name not in self.server.dropped:
            self.server.dropped.add(name)
            self.server.sent += limit
            self.wfile.write(data[start : start + limit])
            self.wfile.flush()
            self.connection.close()
            return
        self.server.sent += len(data) - start
        self.wfile.write(data[start:])


@contextlib.contextmanager
def running(folder: Path, drop_after: int | None = None) -> Iterator[Hub]:
    """The server, for as long as the block runs."""
    hub = Hub(folder, drop_after)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
