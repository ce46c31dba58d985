"""A stand-in of the Hugging Face hub: the part of its HTTP interface that downloads a model, on this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse


class Hub:
    """One repository: commits with a folder each, and a branch that may move.

    Attributes:
        commits: commit -> the folder with its files.
        main: the commit that the branch points to.
        asked: the paths that were asked for.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.commits: dict[str, Path] = {}
        self.main = ""
        self.asked: list[str] = []
        self.url = ""

    def add(self, folder: Path) -> str:
        """A new commit, which the branch points to. Returns its name."""
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())]
        self.main = hashlib.sha1("".join(digests).encode()).hexdigest()
        self.commits[self.main] = folder
        return self.main

    def variables(self, cache: Path) -> dict[str, str]:
        """The environment of a command that uses this hub."""
        settings = {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        return settings | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, content) of a request."""
        api, files = f"/api/models/{self.name}/", f"/{self.name}/resolve/"
        if path.startswith(api):
            kind, _, revision = path.removeprefix(api).partition("/")
            commit = self._commit(revision)
            if commit is None or kind not in ("revision", "tree"):
                return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
            described = {"id": self.name, "sha": commit, "siblings": []}
            return 200, {}, json.dumps(described if kind == "revision" else self._tree(commit)).encode()
        if path.startswith(files):
            revision, _, name = path.removeprefix(files).partition("/")
            commit = self._commit(revision)
            if commit is not None and (file := self.commits[commit] / name).is_file():
                content = file.read_bytes()
                return 200, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit}, content
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"

    def _commit(self, revision: str) -> str | None:
        commit = self.main if revision == "main" else revision
        return commit if commit in self.commits else None

    def _tree(self, commit: str) -> list[dict[str, object]]:
        return [
            {
                "type": "file",
                "path": path.name,
                "size": path.stat().st_size,
                "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
            }
            for path in sorted(self.commits[commit].iterdir())
        ]


@contextmanager
def serving(name: str) -> Iterator[Hub]:
    """The hub, until the block ends."""
    hub = Hub(name)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlparse(self.path).path)
            hub.asked.append(path)
            status, headers, content = hub.answer(path)
            self.send_response(status)
            for each in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(*each)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, format: str, *arguments: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
