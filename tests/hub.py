"""A model hub on loopback: what the real client's uploads and downloads ask for, with faults on demand.

The real `HfApi`, `snapshot_download` and every program with `HF_ENDPOINT` set talk to it: create, preupload, LFS
batch and PUT (in parts above `part_bytes`), commit, tags, branches, pull requests, tree (in pages), resolve with
ranges, the error codes that the client turns into exceptions, tokens. `python tests/hub.py FOLDER` serves until it
is interrupted.

A `Fault` strikes the requests of one route: `drop` closes the connection before anything is done, `lost` does the
work and closes it instead of answering, `slow` sends the body in pieces, `truncate` sends half of it, `expired` is
an upload address that is no longer valid, and a number is that HTTP status.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import dataclasses
import hashlib
import json
import re
import socket
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hub_store import Blob, Refused, Repository, Store, is_large

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_" + "loopbackTokenNeverToBePrinted"  # what the tests search every output for

REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES = [
    ("whoami", "GET", r"/api/whoami-v2"),
    ("yaml", "POST", r"/api/validate-yaml"),
    ("create", "POST", r"/api/repos/create"),
    ("preupload", "POST", rf"/api/models/{REPO}/preupload/(?P<rev>[^/]+)"),
    ("commit", "POST", rf"/api/models/{REPO}/commit/(?P<rev>[^/]+)"),
    ("tag", "POST", rf"/api/models/{REPO}/tag/(?P<rev>[^/]+)"),
    ("branch", "POST", rf"/api/models/{REPO}/branch/(?P<rev>[^/]+)"),
    ("refs", "GET", rf"/api/models/{REPO}/refs"),
    ("commits", "GET", rf"/api/models/{REPO}/commits/(?P<rev>[^/]+)"),
    ("tree", "GET", rf"/api/models/{REPO}/tree/(?P<rev>[^/]+)"),
    ("merge", "POST", rf"/api/models/{REPO}/discussions/(?P<number>\d+)/merge"),
    ("status", "POST", rf"/api/models/{REPO}/discussions/(?P<number>\d+)/status"),
    ("discussion", "GET", rf"/api/models/{REPO}/discussions/(?P<number>\d+)"),
    ("discussions", "GET", rf"/api/models/{REPO}/discussions"),
    ("propose", "POST", rf"/api/models/{REPO}/discussions"),
    ("info", "GET", rf"/api/models/{REPO}(/revision/(?P<rev>[^/]+))?"),
    ("batch", "POST", rf"/{REPO}\.git/info/lfs/objects/batch"),
    ("verify", "POST", rf"/{REPO}\.git/info/lfs/objects/verify"),
    ("put", "PUT", r"/upload/(?P<oid>[0-9a-f]{64})(/(?P<part>\d+))?"),
    ("complete", "POST", r"/upload/(?P<oid>[0-9a-f]{64})"),
    ("resolve", "GET", rf"/{REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)"),
]
WRITES = {"create", "preupload", "commit", "tag", "branch", "merge", "status", "propose", "batch", "verify"}


@dataclasses.dataclass
class Fault:
    """A mishap for `times` requests of a route, after `skip` that go well; `at` is the share of a body that is sent."""

    route: str
    kind: str | int
    skip: int = 0
    times: int = 1
    at: float = 0.5


class Hub(ThreadingHTTPServer):
    """The server; `store` is what it knows, `requests` and `received` (bytes of each content) what was asked of it."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, root: Path, drop_after: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.store = Store(root)
        self.faults: list[Fault] = []
        self.struck: list[Fault] = []
        self.requests: list[str] = []
        self.received: collections.Counter[str] = collections.Counter()
        self.token: str | None = None
        self.part_bytes = 5 << 20
        self.page = 1000
        self.drop_after, self.dropped, self.sent = drop_after, set[str](), 0
        self.parts: dict[str, dict[int, bytes]] = collections.defaultdict(dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, home: Path) -> dict[str, str]:
        """What a program needs in its environment to talk to this hub and to no other."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def fault(self, route: str) -> Fault | None:
        """The mishap that this request meets."""
        with self.store.lock:
            for fault in self.faults:
                if fault.route == route and fault.times:
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    self.struck.append(fault)
                    return fault
        return None

    def handle_error(self, *_: object) -> None:
        """A client that was killed is no news."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(*_)  # type: ignore[arg-type]


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        url = urllib.parse.urlsplit(self.path)
        self.query, self.extra = dict(urllib.parse.parse_qsl(url.query)), {}
        found = ((r, re.fullmatch(pattern, url.path)) for r, verb, pattern in ROUTES if verb == method)
        route, match = next(((r, m) for r, m in found if m), ("", None))
        if match is None:
            self._read()
            return self._json(404, {"error": "not found"})
        given = {k: urllib.parse.unquote(v) for k, v in match.groupdict().items() if v is not None}
        self.server.requests.append(route)
        fault = self.server.fault(route)
        if fault and fault.kind == "drop":
            return self._close()
        body = self._read()
        if body is None:  # the client died while it sent
            return self._close()
        try:
            self._allow(route, fault)
            with contextlib.nullcontext() if route == "resolve" else self.server.store.lock:
                answer = getattr(self, f"_{route}")(body, **given)
        except Refused as refused:
            headers = {"X-Error-Code": refused.code} if refused.code else {}
            return self._json(refused.status, {"error": refused.message} | self.extra, fault=fault, **headers)
        if isinstance(answer, tuple):
            return self._file(*answer, fault=fault)
        return self._json(200, answer, fault=fault, **self.extra)

    def _allow(self, route: str, fault: Fault | None) -> None:
        if fault and isinstance(fault.kind, int):
            raise Refused(fault.kind, f"fault {fault.kind}")
        if fault and fault.kind == "expired":
            raise Refused(403, "Request has expired")
        if route in WRITES:
            given = self.headers.get("Authorization", "")
            if not given:
                raise Refused(401, "Invalid username or password.")
            if self.server.token and given != f"Bearer {self.server.token}":
                raise Refused(403, "You don't have the rights to write here")

    def _read(self) -> bytes | None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            pieces = []
            while size := int(self.rfile.readline() or b"0", 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        size = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(size)
        return body if len(body) == size else None

    def _close(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _json(self, status: int, value: object, fault: Fault | None = None, **headers: str) -> None:
        body = json.dumps(value).encode()
        self._send(status, body, {"Content-Type": "application/json"} | headers, fault)

    def _send(self, status: int, body: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        if fault and fault.kind == "lost":
            return self._close()
        self.send_response(status)
        for name, text in ({"Content-Length": str(len(body)), "X-Request-Id": "loopback"} | headers).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command == "HEAD":
            return None
        cut = int(len(body) * fault.at) if fault and fault.kind == "truncate" else len(body)
        step = max(1, cut // 8) if fault and fault.kind == "slow" else max(1, cut)
        for start in range(0, cut, step):
            self.wfile.write(body[start : min(start + step, cut)])
            self.wfile.flush()
            if step < cut:
                time.sleep(0.05)
        return self._close() if cut < len(body) else None

    # Answers: a JSON value, or the arguments of `_file`.

    def _whoami(self, _: bytes) -> Any:
        self._allow("create", None)
        return {"type": "user", "name": "corembed", "orgs": [], "auth": {"type": "access_token"}}

    def _yaml(self, _: bytes) -> Any:
        return {"errors": [], "warnings": []}

    def _create(self, body: bytes) -> Any:
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'corembed'}/{asked['name']}"
        url = f"{self.server.url}/{name}"
        self.extra = {"url": url}  # the client wants it in the refusal too
        self.server.store.create(name)
        self.extra = {}
        return {"url": url, "name": name, "id": name}

    def _info(self, _: bytes, repo: str, rev: str = "main") -> Any:
        commit = self.server.store.of(repo).at(rev)
        siblings = [
            {"rfilename": path, "size": blob.size, "blobId": blob.oid}
            | ({"lfs": {"sha256": blob.sha256, "size": blob.size, "pointerSize": 130}} if blob.lfs else {})
            for path, blob in sorted(commit.files.items())
        ]
        return {
            "id": repo,
            "modelId": repo,
            "sha": commit.oid,
            "siblings": siblings,
            "private": False,
            "tags": [],
        }

    def _preupload(self, body: bytes, repo: str, rev: str) -> Any:
        there = self.server.store.of(repo).at(rev).files
        answers = []
        for file in json.loads(body)["files"]:
            path, old = file["path"], there.get(file["path"])
            large = old.lfs if old else is_large(path, file["size"], base64.b64decode(file["sample"]))
            oid = None if old is None else old.sha256 if old.lfs else old.oid
            answers.append(
                {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}
            )
        return {"files": answers}

    def _batch(self, body: bytes, repo: str) -> Any:
        self.server.store.of(repo)
        return {"transfer": "basic", "objects": [self._object(repo, o) for o in json.loads(body)["objects"]]}

    def _object(self, repo: str, asked: dict[str, Any]) -> dict[str, Any]:
        oid, size = asked["oid"], asked["size"]
        if self.server.store.path(oid).exists():
            return {"oid": oid, "size": size}  # no action: it is already here
        href = f"{self.server.url}/upload/{oid}"
        verify = {"href": f"{self.server.url}/{repo}.git/info/lfs/objects/verify"}
        upload: dict[str, Any] = {"href": f"{href}?X-Amz-Signature=s{time.time_ns()}"}
        if size > self.server.part_bytes:
            upload_id = f"uploadId={time.time_ns()}"  # as with S3: a new upload starts afresh
            count = -(-size // self.server.part_bytes)
            numbered = {str(n): f"{href}/{n}?{upload_id}" for n in range(1, count + 1)}
            upload = {
                "href": f"{href}?{upload_id}",
                "header": {"chunk_size": str(self.server.part_bytes)} | numbered,
            }
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}

    def _put(self, body: bytes, oid: str, part: str | None = None) -> Any:
        self.server.received[oid] += len(body)
        self.extra = {"ETag": f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'}
        if part is None:
            self._keep(oid, body)
        else:
            self.server.parts[self.query["uploadId"]][int(part)] = body
        return {}

    def _complete(self, body: bytes, oid: str) -> Any:
        parts = self.server.parts.pop(self.query["uploadId"], {})
        if [p["partNumber"] for p in json.loads(body)["parts"]] != sorted(parts):
            raise Refused(400, "some parts did not arrive")
        self._keep(oid, b"".join(parts[n] for n in sorted(parts)))
        return {}

    def _keep(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, "XAmzContentSHA256Mismatch")
        self.server.store.path(oid).write_bytes(body)

    def _verify(self, body: bytes, repo: str) -> Any:
        self.server.store.of(repo)
        if not self.server.store.path(json.loads(body)["oid"]).exists():
            raise Refused(404, "object not found")
        return {}

    def _commit(self, body: bytes, repo: str, rev: str) -> Any:
        repository = self.server.store.of(repo)
        header, *actions = [json.loads(line) for line in body.splitlines()]
        pull = None
        ref = repository.ref(rev)
        head, parent = repository.refs[ref], header["value"].get("parentCommit")
        if parent is not None and parent != head:
            raise Refused(412, "The branch has moved: parentCommit is not its head")
        files = self.server.store.apply(repository.commits[head].files, actions)
        if self.query.get("create_pr"):
            pull = repository.propose(header["value"]["summary"], "open")
            ref = f"refs/pr/{pull.number}"
        elif not ref.startswith(("refs/heads/", "refs/pr/")):
            raise Refused(400, "commits go to branches and pull requests")
        commit = repository.write(ref, files, header["value"]["summary"])
        url = f"{self.server.url}/{repo}"
        found = {"success": True, "commitOid": commit.oid, "commitUrl": f"{url}/commit/{commit.oid}"}
        return found | ({"pullRequestUrl": f"{url}/discussions/{pull.number}"} if pull else {})

    def _tag(self, body: bytes, repo: str, rev: str) -> Any:
        self.server.store.of(repo).tag(json.loads(body)["tag"], rev)
        return {}

    def _branch(self, body: bytes, repo: str, rev: str) -> Any:
        self.server.store.of(repo).branch(rev, json.loads(body or b"{}").get("startingPoint"))
        return {}

    def _refs(self, _: bytes, repo: str) -> Any:
        refs = self.server.store.of(repo).refs.items()

        def of(kind: str) -> list[dict[str, str]]:
            return [
                {"name": ref.removeprefix(kind), "ref": ref, "targetCommit": oid}
                for ref, oid in refs
                if ref.startswith(kind)
            ]

        found: dict[str, Any] = {"branches": of("refs/heads/"), "tags": of("refs/tags/"), "converts": []}
        return found | ({"pullRequests": of("refs/pr/")} if self.query.get("include_prs") else {})

    def _commits(self, _: bytes, repo: str, rev: str) -> Any:
        return [
            {"id": c.oid, "title": c.title, "message": "", "date": "2026-01-01T00:00:00.000Z", "authors": []}
            for c in self.server.store.of(repo).history(rev)
        ]

    def _tree(self, _: bytes, repo: str, rev: str) -> Any:
        files = sorted(self.server.store.of(repo).at(rev).files.items())
        start = int(self.query.get("cursor", 0))
        if start + self.server.page < len(files):
            query = urllib.parse.urlencode(self.query | {"cursor": start + self.server.page})
            path = urllib.parse.urlsplit(self.path).path
            self.extra = {"Link": f'<{self.server.url}{path}?{query}>; rel="next"'}
        return [
            {"type": "file", "path": path, "size": blob.size, "oid": blob.oid}
            | ({"lfs": {"oid": blob.sha256, "size": blob.size, "pointerSize": 130}} if blob.lfs else {})
            for path, blob in files[start : start + self.server.page]
        ]

    def _propose(self, body: bytes, repo: str) -> Any:
        return {"num": self.server.store.of(repo).propose(json.loads(body)["title"]).number}

    def _pull(self, repository: Repository, number: int) -> dict[str, Any]:
        pull = repository.pulls.get(number)
        if pull is None:
            raise Refused(404, "no such discussion", "EntryNotFound")
        return {
            "num": number,
            "title": pull.title,
            "status": pull.status,
            "author": {"name": "corembed"},
            "createdAt": "2026-01-01T00:00:00.000Z",
            "repo": {"name": repository.name, "type": "model"},
            "isPullRequest": True,
            "changes": {"base": "refs/heads/main", "mergeCommitId": pull.merged},
            "filesWithConflicts": [],
            "events": [],
        }

    def _discussion(self, _: bytes, repo: str, number: str) -> Any:
        return self._pull(self.server.store.of(repo), int(number))

    def _discussions(self, _: bytes, repo: str) -> Any:
        repository = self.server.store.of(repo)
        found = [self._pull(repository, n) for n in repository.pulls]
        wanted = self.query.get("status")
        found = [
            p
            for p in found
            if wanted in {None, "all"} or (p["status"] in {"open", "draft"}) == (wanted == "open")
        ]
        return {"discussions": found, "count": len(found), "start": 0}

    def _status(self, body: bytes, repo: str, number: str) -> Any:
        self.server.store.of(repo).pulls[int(number)].status = json.loads(body)["status"]
        event = {"id": "1", "type": "status-change", "createdAt": "2026-01-01T00:00:00.000Z"}
        return {
            "newStatus": event
            | {"author": {"name": "corembed"}, "data": {"status": json.loads(body)["status"]}}
        }

    def _merge(self, _: bytes, repo: str, number: str) -> Any:
        self.server.store.of(repo).merge(int(number))
        return {}

    def _resolve(self, _: bytes, repo: str, rev: str, path: str) -> Any:
        commit = self.server.store.of(repo).at(rev)
        if path not in commit.files:
            raise Refused(404, f"{path} does not exist", "EntryNotFound")
        return commit.oid, path, commit.files[path]

    def _file(self, commit: str, path: str, blob: Blob, fault: Fault | None) -> None:
        data = self.server.store.data(blob)
        start, end = 0, len(data)
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(asked[1]), min(int(asked[2] or len(data) - 1) + 1, len(data))
        headers = {
            "ETag": f'"{blob.sha256 if blob.lfs else blob.oid}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        status = 206 if asked else 200
        if asked:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        limit = self.server.drop_after
        body = data[start:end]
        if self.command != "HEAD":
            if limit is not None and len(data) > limit and path not in self.server.dropped:
                self.server.dropped.add(path)
                fault = Fault("resolve", "truncate", at=limit / max(1, len(body)))
            self.server.sent += int(len(body) * fault.at) if fault and fault.kind == "truncate" else len(body)
        self._send(status, body, headers, fault)


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a folder, to put into a repository."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@contextlib.contextmanager
def running(folder: Path | None = None, drop_after: int | None = None) -> Iterator[Hub]:
    """The server, for as long as the block runs; `folder` stands in it as `org/model` at `COMMIT`.

    After `drop_after` bytes it drops the connection of the first request for each larger file, as a bad network does.
    """
    with tempfile.TemporaryDirectory() as root:
        hub = Hub(Path(root), drop_after)
        if folder is not None:
            hub.store.create("org/model", files_of(folder), COMMIT)
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            hub.server_close()


if __name__ == "__main__":
    with running(Path(sys.argv[1]) if len(sys.argv) > 1 else None) as served:
        print(f"HF_ENDPOINT={served.url} HF_HUB_DISABLE_XET=1", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
