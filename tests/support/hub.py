"""A stand-in for the Hugging Face hub: the part of its HTTP API that `datasets` reads a dataset with."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Datasets = Mapping[str, Mapping[str, bytes]]  # id -> file -> content


@contextmanager
def hub_of(datasets: Datasets) -> Iterator[tuple[str, list[str]]]:
    """Serve these datasets. Yields the address and the list of requests, which grows."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.answer(body)

        def answer(self, body: bytes = b"") -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            requests.append(f"{self.command} {path}")
            parts = path.split("/")
            if parts[:2] == ["api", "datasets"]:
                self.describe("/".join(parts[2:4]), parts[4:], body)
            elif parts[:1] == ["datasets"] and parts[3:4] == ["resolve"]:
                self.send_file("/".join(parts[1:3]), parts[4], "/".join(parts[5:]))
            else:
                self.send(404, b"", {"X-Error-Code": "RepoNotFound"})

        def describe(self, name: str, rest: list[str], body: bytes) -> None:
            files = datasets.get(name)
            if files is None:
                self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif rest[:1] == ["tree"]:
                self.send_json(_children(files, "/".join(rest[2:]), recursive="recursive=true" in self.path.lower()))
            elif rest[:1] == ["paths-info"]:
                asked = body.decode()
                self.send_json([_entry(path, content) for path, content in files.items() if path in unquote(asked)])
            else:
                siblings = [{"rfilename": path} for path in files]
                self.send_json({"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})

        def send_file(self, name: str, revision: str, path: str) -> None:
            content = datasets.get(name, {}).get(path)
            if name not in datasets:
                self.send(404, b"", {"X-Error-Code": "RepoNotFound"})
            elif revision not in ("main", COMMIT):
                self.send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            elif content is None:
                self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            else:
                self.send_range(content)

        def send_range(self, content: bytes) -> None:
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_digest(content)}"', "Accept-Ranges": "bytes"}
            asked = self.headers.get("Range")
            if asked is None:
                self.send(200, content, headers)
                return
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last or len(content) - 1), len(content) - 1) + 1
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            self.send(206, content[start:stop], headers)

        def send_json(self, value: Any) -> None:
            self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for key, value in ({"Content-Length": str(len(content))} | dict(headers)).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()


def _children(files: Mapping[str, bytes], folder: str, *, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{folder}/" if folder else ""
    inside = {path: content for path, content in files.items() if path.startswith(prefix)}
    if recursive:
        return [_entry(path, content) for path, content in inside.items()]
    names = {path: path.removeprefix(prefix) for path in inside}
    folders = sorted({prefix + name.partition("/")[0] for name in names.values() if "/" in name})
    return [
        *({"type": "directory", "path": each, "oid": _digest(each.encode()), "size": 0} for each in folders),
        *(_entry(path, inside[path]) for path, name in names.items() if "/" not in name),
    ]


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": _digest(content)}


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
