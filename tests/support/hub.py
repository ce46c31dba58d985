"""A stand-in for the Hugging Face hub: the part of its HTTP API that models and datasets are read with."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Files = Mapping[str, bytes]  # path -> content
Answer = tuple[int, dict[str, str], bytes]  # status, headers, content


class Hub:
    """Repositories of "models" and "datasets", with commits and a branch main, which may move.

    Attributes:
        address: of the server.
        asked: methods and paths of all requests.
    """

    def __init__(self) -> None:
        self.address = ""
        self.asked: list[str] = []
        self._commits: dict[tuple[str, str], dict[str, Files]] = {}  # kind, name -> commit -> files; main is the last

    def add(self, kind: str, name: str, files: Files | Path) -> str:
        """A new commit, which the branch points to. Returns its name."""
        if isinstance(files, Path):
            files = {path.name: path.read_bytes() for path in files.iterdir()}
        commit = _digest("".join(path + _digest(files[path]) for path in sorted(files)).encode())
        self._commits.setdefault((kind, name), {})[commit] = files
        return commit

    def variables(self, cache: Path) -> dict[str, str]:
        """The environment of a command that uses this hub."""
        settings = {"HF_ENDPOINT": self.address, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        return settings | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def answer(self, path: str, asked: Mapping[str, list[str]]) -> Answer:
        """asked: the fields of query and form."""
        parts = path.split("/")
        if parts[0] == "api":
            kind, *parts = parts[1:]
        else:
            kind = parts.pop(0) if parts[0] == "datasets" else "models"
        name, (what, revision, *inner) = "/".join(parts[:2]), parts[2:] or ["revision", "main"]
        commits = self._commits.get((kind, name))
        if commits is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        commit = next(reversed(commits)) if revision == "main" else revision
        if commit not in commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        files, place = commits[commit], "/".join(inner)
        if what == "resolve":
            headers = {"X-Repo-Commit": commit}
            if place not in files:
                return 404, headers | {"X-Error-Code": "EntryNotFound"}, b""
            return 200, headers | {"ETag": f'"{_digest(files[place])}"', "Accept-Ranges": "bytes"}, files[place]
        if what == "tree":
            return _json(_children(files, place, recursive="true" in asked.get("recursive", ["false"])[0].lower()))
        if what == "paths-info":
            return _json([_entry(each, files[each]) for each in asked.get("paths", []) if each in files])
        siblings = [{"rfilename": each} for each in files]
        return _json({"id": name, "sha": commit, "siblings": siblings, "private": False, "tags": []})


def _json(value: Any) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _children(files: Files, folder: str, *, recursive: bool) -> list[dict[str, Any]]:
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


def _part(answer: Answer, asked: str | None) -> Answer:
    """The range of bytes that was asked for, if one was."""
    status, headers, content = answer
    if status != 200 or asked is None:
        return answer
    first, _, last = asked.removeprefix("bytes=").partition("-")
    start, stop = int(first), min(int(last or len(content) - 1), len(content) - 1) + 1
    return 206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}, content[start:stop]


@contextmanager
def serving() -> Iterator[Hub]:
    """An empty hub, until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            address = urlsplit(self.path)
            path = unquote(address.path).strip("/")
            hub.asked.append(f"{self.command} {path}")
            form = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            answer = hub.answer(path, parse_qs(address.query) | parse_qs(form))
            status, headers, content = _part(answer, self.headers.get("Range"))
            self.send_response(status)
            for each in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(*each)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_HEAD = do_POST = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
