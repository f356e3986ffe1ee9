"""A small hub on loopback that answers as huggingface.co does, for what its library asks when it downloads.

    with Hub() as hub:
        hub.commit("org/name", folder)
        … HF_ENDPOINT=hub.url …
        assert hub.requests == []

Large files (`*.safetensors` and the like) are redirected to a second server, as the hub's CDN is one: it serves ranges
and must never see a token. Failures are asked for with `hub.cut` and `hub.stall`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE = {".safetensors", ".bin", ".ckpt", ".pt", ".gguf", ".model", ".onnx", ".h5"}


@dataclass
class Request:
    method: str
    path: str
    token: str | None
    range: str | None
    server: str  # "hub" or "cdn"


Lie = Callable[[str, int, dict[str, str], bytes], tuple[int, dict[str, str], bytes]]


@dataclass
class Repo:
    """Commits (hash → file → content) and what stands for which."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def resolve(self, revision: str) -> str | None:
        if revision in self.refs:
            return self.refs[revision]
        return next((commit for commit in self.commits if commit.startswith(revision) and len(revision) >= 7), None)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Hub:
    """Repositories, and the two servers that serve them.

    tokens: those that exist → the gated and private repositories each may read.
    cut: connections to the CDN that end after `cut_after` bytes; each takes one off. stall: they wait there instead,
    until it is set.
    etags: other ETags: file → ETag. lie: what becomes of any answer's status, headers and body on its way.
    slow: seconds between the bytes of the CDN.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.moved: dict[str, str] = {}
        self.tokens: dict[str, set[str]] = {}
        self.requests: list[Request] = []
        self.cut = 0
        self.cut_after = 2**20
        self.stall: threading.Event | None = None
        self.stalled = threading.Event()
        self.etags: dict[str, str] = {}
        self.lie: Lie = lambda path, status, headers, body: (status, headers, body)
        self.slow = 0.0
        self.damage: set[str] = set()
        self.blobs: dict[str, bytes] = {}
        self._servers = [self._serve(_HubHandler), self._serve(_CdnHandler)]
        self.url, self.cdn = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def _serve(self, handler: type[_Handler]) -> ThreadingHTTPServer:
        server = _Server(("127.0.0.1", 0), type(handler.__name__, (handler,), {"hub": self}))
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Nobody listens any more."""
        if self.stall is not None:
            self.stall.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def commit(
        self, name: str, content: Path | dict[str, bytes], *revisions: str, gated: bool = False, private: bool = False
    ) -> str:
        """A new commit, which becomes `revisions` (default: main); its hash."""
        if isinstance(content, Path):
            files = {p.relative_to(content).as_posix(): p.read_bytes() for p in content.rglob("*") if p.is_file()}
        else:
            files = dict(content)
        repo = self.repos.setdefault(name, Repo())
        repo.gated, repo.private = gated, private
        key = repr([(name, hashlib.sha1(data).hexdigest()) for name, data in sorted(files.items())])
        commit = hashlib.sha1(f"{name} {len(repo.commits)} {key}".encode()).hexdigest()
        repo.commits[commit] = files
        for revision in revisions or ("main",):
            repo.refs[revision] = commit
        self.blobs |= {sha256(data): data for path, data in files.items() if is_large(path)}
        return commit

    def fetched(self) -> list[str]:
        """Names of the files whose content was asked for, in order, at either server."""
        names = [re.sub(r".*/resolve/[^/]+/", "", unquote(r.path)) for r in self.requests if r.method == "GET"]
        return [name for name in names if not name.startswith(("/api/", "/cdn/"))]


def safetensors(tensors: dict[str, tuple[str, list[int]]], filler: bytes = b"\0") -> bytes:
    """A safetensors file: name → dtype and shape, every byte of data being `filler`."""
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * {"F16": 2, "BF16": 2, "F32": 4, "I64": 8}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + filler * end


def is_large(path: str) -> bool:
    return Path(path).suffix in LARGE


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    server_name: str
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def note(self) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        request = Request(self.command, self.path, token, self.headers.get("Range"), self.server_name)
        self.hub.requests.append(request)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        status, sent, body = self.hub.lie(self.path, status, sent, body)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **sent}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        raise NotImplementedError


class _HubHandler(_Handler):
    """/api/models/ID[/revision/REV], /api/models/ID/tree/REV, /api/models/ID/paths-info/REV, /ID/resolve/REV/FILE"""

    server_name = "hub"

    def do_GET(self) -> None:
        self.note()
        url = urlsplit(self.path)
        if match := re.fullmatch(r"/api/models/([^/]+(?:/[^/]+)?)(?:/(revision|tree)/([^/]+)(?:/.*)?)?", url.path):
            name, kind, revision = match[1], match[2], unquote(match[3] or "main")
            if name in self.hub.moved:
                target = self.path.replace(name, self.hub.moved[name], 1)
                return self.answer(307, Location=target)
            if (repo := self.allowed(name)) is None:
                return None
            if (commit := repo.resolve(revision)) is None:
                return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            if kind == "tree":
                return self.json([entry(path, data) for path, data in repo.commits[commit].items()])
            return self.json(info(name, repo, commit, blobs="blobs" in parse_qs(url.query)))
        if match := re.fullmatch(r"/([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)", url.path):
            return self.resolve(match[1], unquote(match[2]), unquote(match[3]))
        return self.refuse(404, "", "Sorry, we can't find the page you are looking for.")

    def do_POST(self) -> None:
        self.note()
        wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["paths"]
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/paths-info/([^/]+)", self.path)
        if match is None:
            return self.refuse(404, "", "no such page")
        if (repo := self.allowed(match[1])) is None:
            return None
        commit = repo.resolve(unquote(match[2])) or ""
        return self.json([entry(path, data) for path, data in repo.commits[commit].items() if path in wanted])

    def token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def allowed(self, name: str, *, files: bool = False) -> Repo | None:
        """The repository, or None after saying why not. Those that are gated show their listing to all."""
        token, repo = self.token(), self.hub.repos.get(name)
        if token is not None and token not in self.hub.tokens:
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif repo is None or (repo.private and name not in self.hub.tokens.get(token or "", ())):
            if token is None:
                self.refuse(401, "", "Invalid username or password.")
            else:
                self.refuse(404, "RepoNotFound", "Repository not found")
        elif files and repo.gated and name not in self.hub.tokens.get(token or "", ()):
            self.refuse(403 if token else 401, "GatedRepo", f"Access to model {name} is restricted.")
        else:
            return repo
        return None

    def resolve(self, name: str, revision: str, path: str) -> None:
        if name in self.hub.moved:
            return self.answer(307, Location=self.path.replace(name, self.hub.moved[name], 1))
        if (repo := self.allowed(name, files=True)) is None:
            return None
        if (commit := repo.resolve(revision)) is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        data = repo.commits[commit].get(path)
        if data is None:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        known = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if is_large(path):
            etag = self.hub.etags.get(path, sha256(data))
            location = f"{self.hub.cdn}/cdn/{sha256(data)}?file={quote(path)}&Signature=x"
            linked = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{etag}"'}
            return self.answer(302, b"", Location=location, **known, **linked)
        etag = self.hub.etags.get(path, git_id(data))
        return self.answer(200, data, ETag=f'"{etag}"', Content_Type="text/plain", **known)

    def json(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json; charset=utf-8")

    def refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.answer(status, json.dumps({"error": message}).encode(), Content_Type="application/json", **headers)


class _CdnHandler(_Handler):
    """/cdn/SHA256: whole or a range of it, cut or stalled when the hub says so."""

    server_name = "cdn"

    def do_GET(self) -> None:
        self.note()
        hub, url = self.hub, urlsplit(self.path)
        data = hub.blobs[url.path.removeprefix("/cdn/")]
        if parse_qs(url.query)["file"][0] in hub.damage:
            data = data[:-1] + bytes([data[-1] ^ 1])
        size, start, status = len(data), 0, 200
        headers = {"ETag": '"cdn"', "Accept-Ranges": "bytes", "Content-Type": "binary/octet-stream"}
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start, status = int(match[1]), 206
            if start >= size:
                return self.answer(416, Content_Range=f"bytes */{size}")
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        data = data[start:]
        if hub.slow:
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            for byte in data:
                self.wfile.write(bytes([byte]))
                time.sleep(hub.slow)
        if self.command == "HEAD" or not (hub.cut or hub.stall) or len(data) <= hub.cut_after:
            return self.answer(status, data, **headers)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: hub.cut_after])
        self.wfile.flush()
        if hub.stall is not None:
            hub.stalled.set()
            hub.stall.wait(30)
        hub.cut -= 1 if hub.cut else 0
        self.close_connection = True
        return None


def info(name: str, repo: Repo, commit: str, *, blobs: bool) -> dict[str, Any]:
    """What /api/models/ID says."""
    siblings: list[dict[str, Any]] = []
    for path, data in repo.commits[commit].items():
        sibling: dict[str, Any] = {"rfilename": path}
        if blobs:
            sibling |= {"size": len(data), "blobId": git_id(data)}
            if is_large(path):
                sibling["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 134}
        siblings.append(sibling)
    return {
        "_id": commit[:24],
        "id": name,
        "modelId": name,
        "author": name.split("/")[0],
        "sha": commit,
        "lastModified": "2024-02-19T10:57:45.000Z",
        "createdAt": "2022-03-02T23:29:04.000Z",
        "private": repo.private,
        "gated": "manual" if repo.gated else False,
        "disabled": False,
        "tags": ["safetensors"],
        "downloads": 1,
        "likes": 1,
        "siblings": siblings,
    }


def entry(path: str, data: bytes) -> dict[str, Any]:
    """A file as /api/models/ID/tree and paths-info list it."""
    known: dict[str, Any] = {"type": "file", "oid": git_id(data), "size": len(data), "path": path}
    if is_large(path):
        known["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 134}
    return known
