"""A small Hugging Face hub on this machine: what the real client asks for, answered the way the real hub answers."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """What one repository holds, and how it treats those who ask.

    Args:
        files: content by name.
        sizes: sizes to claim in the listing, where they are not those of the content.
        gated: whether a file needs the token `let-in`; any other token is known, but may not read.
        cut: how many bytes of each answer to send before the connection breaks, for the names given; each breaks once.
        broken: status to answer everything with.
    """

    files: dict[str, bytes]
    sizes: dict[str, int] = field(default_factory=dict)
    gated: bool = False
    cut: dict[str, int] = field(default_factory=dict)
    broken: int | None = None

    @property
    def commit(self):
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()

    def size(self, name):
        return self.sizes.get(name, len(self.files[name]))


class FakeHub:
    """The server. `repositories` may change while it runs; `sent` counts the bytes of content by file name."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.sent: Counter[str] = Counter()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.handle(self)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def handle(self, request):
        parts = unquote(urlsplit(request.path).path).strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        owner, name, *rest = parts[2:] if is_api else parts
        repository = self.repositories.get(f"{owner}/{name}")
        if repository is None:
            self.refuse(request, 401, "RepoNotFound")
        elif repository.broken:
            self.refuse(request, repository.broken, None)
        elif is_api:
            self.describe(request, f"{owner}/{name}", repository, rest)
        else:
            self.give(request, repository, "/".join(rest[2:]))  # resolve, revision, file

    def describe(self, request, name, repository, rest):
        if rest[:1] == ["tree"]:
            found = [{"type": "file", "path": path, "size": repository.size(path), "oid": etag(repository.files[path])}
                     for path in repository.files]  # fmt: skip
        else:
            siblings = [{"rfilename": path, "size": repository.size(path), "blobId": etag(repository.files[path])}
                        for path in repository.files]  # fmt: skip
            found = {"id": name, "modelId": name, "sha": repository.commit, "siblings": siblings, "tags": [], "private": False,
                     "gated": "manual" if repository.gated else False, "downloads": 0, "likes": 0}  # fmt: skip
        self.answer(request, 200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def give(self, request, repository, path):
        if path not in repository.files:
            return self.refuse(request, 404, "EntryNotFound")
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if repository.gated and token != "let-in":
            return self.refuse(request, 403 if token else 401, "GatedRepo")
        content = repository.files[path]
        headers = {"ETag": f'"{etag(content)}"', "X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
        wanted = request.headers.get("Range")
        first = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        cut = repository.cut.pop(path, None) if request.command == "GET" else None
        if request.command == "GET":
            self.sent[path] += len(content[first:][:cut])
        self.answer(request, 206 if first else 200, content[first:], headers, cut)

    def refuse(self, request, status, code):
        self.answer(request, status, b"{}", {"X-Error-Code": code, "X-Error-Message": code} if code else {})

    def answer(self, request, status, body, headers, cut=None):
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body[:cut])
        if cut is not None:
            request.close_connection = True
            request.connection.close()


def etag(content):
    return hashlib.sha1(content).hexdigest()
