"""A hub of models on loopback, which speaks as much of the hub's API as its library uses."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ID = "org/tiny"

_LARGE = (".safetensors", ".gguf", ".bin", ".pt")


@dataclass
class Hub:
    """One model, and what was asked about it."""

    files: Mapping[str, bytes]
    address: str = ""
    problem: tuple[int, str] | None = None
    """Status and error code of every answer, if there is one."""
    stated_sizes: dict[str, int] = field(default_factory=dict)
    """Sizes that are not the files' own."""
    has_ranges: bool = True
    """Whether it sends parts of files."""
    cut_at: int | None = None
    """The bytes after which the next answer with a large file breaks off."""
    hang: bool = False
    """Whether it then waits instead of closing the connection."""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path, and range or nothing of each request."""
    tokens: set[str] = field(default_factory=set)
    released: threading.Event = field(default_factory=threading.Event)

    def downloads(self) -> list[str]:
        """The files of which bytes were sent, in order."""
        return [
            path.split(f"/{COMMIT}/")[1]
            for method, path, _ in self.requests
            if method == "GET" and "/resolve/" in path
        ]

    def ranges(self, file: str) -> list[str]:
        return [each for method, path, each in self.requests if method == "GET" and path.endswith(f"/{file}")]

    def info(self) -> dict[str, Any]:
        return {
            "id": ID,
            "modelId": ID,
            "sha": COMMIT,
            "siblings": [self._sibling(name) for name in self.files],
        }

    def _sibling(self, name: str) -> dict[str, Any]:
        data, size = self.files[name], self.stated_sizes.get(name, len(self.files[name]))
        large = (
            {"lfs": {"size": size, "sha256": etag(name, data), "pointerSize": 134}} if is_large(name) else {}
        )
        return {"rfilename": name, "size": size, "blobId": "0" * 40, **large}


def is_large(name: str) -> bool:
    return name.endswith(_LARGE)


def etag(name: str, data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if is_large(name) else hashlib.sha1(data).hexdigest()


@contextmanager
def running_hub(files: Mapping[str, bytes]) -> Iterator[Hub]:
    """Serve a model of these files. Leaving the context stops the server."""
    hub = Hub(files)

    class Handler(_Handler):
        model = hub

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.released.set()
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    model: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self._answer(sends=True)

    def do_HEAD(self) -> None:
        self._answer(sends=False)

    def _answer(self, sends: bool) -> None:
        hub, path = self.model, unquote(urlsplit(self.path).path)
        if path == "/api/agent-harnesses":
            # The library asks this of its own accord.
            self._refuse(404, "")
            return
        hub.requests.append((self.command, path, self.headers.get("Range", "")))
        hub.tokens.add(self.headers.get("Authorization", ""))
        if hub.problem:
            self._refuse(*hub.problem)
        elif path.startswith("/api/"):
            self._list(path)
        elif found := re.fullmatch(rf"/{ID}/resolve/{COMMIT}/(.+)", path):
            self._send_file(found[1], sends)
        else:
            self._refuse(404, "RepoNotFound")

    def _list(self, path: str) -> None:
        found = re.fullmatch(rf"/api/models/{ID}/revision/(.+)", path)
        if found is None:
            self._refuse(404, "RepoNotFound")
        elif found[1] not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        else:
            self._send(200, json.dumps(self.model.info()).encode(), {"Content-Type": "application/json"})

    def _send_file(self, name: str, sends: bool) -> None:
        if name not in self.model.files:
            self._refuse(404, "EntryNotFound")
            return
        data = self.model.files[name]
        headers = {"ETag": f'"{etag(name, data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        status, total = 200, len(data)
        asked = self.headers.get("Range", "") if self.model.has_ranges else ""
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", asked):
            first, last = int(found[1]), min(int(found[2] or total), total - 1)
            status, data = 206, data[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{total}"
        self._send(status, data, headers, sends, is_large(name))

    def _send(
        self, status: int, data: bytes, headers: Mapping[str, str], sends: bool = True, cuts: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        hub = self.model
        if sends and cuts and hub.cut_at is not None:
            data, hub.cut_at = data[: hub.cut_at], None
            self.close_connection = True
            self.wfile.write(data)
            if hub.hang:
                hub.released.wait(60)
        elif sends:
            self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code} if code else {}, self.command == "GET")
