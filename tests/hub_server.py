"""As much of the Hub as reading a dataset needs, on loopback: repository info, listings, and files by range."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """One dataset `org/data` whose branches `main` and `refs/convert/parquet` are COMMIT; `org/gated` may be seen but not read."""

    files: dict[str, bytes] = field(default_factory=dict)
    url: str = ""
    requests: list[str] = field(default_factory=list)
    """METHOD path, of all that was asked."""
    sent: int = 0
    """Bytes of file content that were sent."""
    broken: bool = False


_ROUTE = re.compile(r"/(?:api/)?datasets/(?P<name>org/\w+)(?:/(?P<verb>revision|tree|resolve|paths-info)/(?P<rest>.*))?")
_REVISION = re.compile(rf"(main|refs/convert/parquet|{COMMIT})(?:/(?P<path>.*))?$")


@contextlib.contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Answer for `hub` until the block ends; its `url` is set."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            target, _, query = unquote(self.path).partition("?")
            hub.requests.append(f"{self.command} {target}")
            route = _ROUTE.fullmatch(target)
            if hub.broken:
                return self.say(503)
            if route is None or route["name"] not in ("org/data", "org/gated"):
                return self.say(404 if route is None else 401, error="RepoNotFound")
            revision = _REVISION.match(route["rest"]) if route["rest"] is not None else None
            if route["verb"] is not None and revision is None:
                return self.say(404, error="RevisionNotFound")
            if route["verb"] in (None, "revision"):
                return self.send({"_id": "1", "id": route["name"], "sha": COMMIT, "siblings": [], "private": False, "tags": []})
            assert revision is not None
            path = revision["path"] or ""
            if route["verb"] == "tree":
                return self.send(self.tree(path, "recursive=true" in query.lower()))
            if route["name"] == "org/gated":
                return self.say(403, error="GatedRepo")
            return self.content(path)

        do_HEAD = do_GET

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.do_GET()

        def tree(self, folder: str, recursive: bool) -> list[dict[str, object]]:
            prefix = f"{folder}/" if folder else ""
            below = [name for name in hub.files if name.startswith(prefix)]
            entries: dict[str, dict[str, object]] = {}
            for name in below:
                parts = name.removeprefix(prefix).split("/")
                for depth in range(1, len(parts)):
                    if recursive or depth == 1:
                        path = prefix + "/".join(parts[:depth])
                        entries[path] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}
                if recursive or len(parts) == 1:
                    entries[name] = {"type": "file", "oid": "0" * 40, "size": len(hub.files[name]), "path": name}
            return list(entries.values())

        def content(self, path: str) -> None:
            if path not in hub.files:
                return self.say(404, error="EntryNotFound")
            data, status, headers = hub.files[path], 200, {}
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
            if wanted is not None:
                start, end = int(wanted[1]), int(wanted[2] or len(data) - 1) + 1
                headers["Content-Range"] = f"bytes {start}-{min(end, len(data)) - 1}/{len(data)}"
                data, status = data[start:end], 206
            headers |= {"ETag": f'"{hashlib.sha1(hub.files[path]).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            hub.sent += len(data) * (self.command == "GET")
            self.say(status, data, headers)

        def send(self, value: object) -> None:
            self.say(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def say(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, *, error: str | None = None) -> None:
            self.send_response(status)
            for name, value in ((headers or {}) | ({"X-Error-Code": error} if error else {})).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
