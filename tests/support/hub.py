"""A stand-in for the Hugging Face hub: the part of its HTTP API that models and datasets are read with, and pushed."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub import ModelCard

Files = Mapping[str, bytes]  # path -> content
Answer = tuple[int, dict[str, str], bytes]  # status, headers, content
LARGE = (".safetensors", ".gguf", ".model")  # of the hub's own .gitattributes


@dataclass(frozen=True, kw_only=True)
class Account:
    """Who is logged in with a token. role: of the token. orgs: name -> role in it. scopes: of a fine-grained token."""

    name: str
    role: str = "write"
    orgs: Mapping[str, str] = field(default_factory=dict)
    scopes: tuple[str, ...] = ()

    def may_write(self, repository: str) -> bool:
        owner = repository.partition("/")[0]
        is_member = owner == self.name or self.orgs.get(owner) in ("write", "admin")
        return is_member and (self.role == "write" or (self.role == "fineGrained" and owner in self.scopes))

    def may_read(self, repository: str) -> bool:
        return repository.partition("/")[0] in (self.name, *self.orgs)

    def described(self) -> dict[str, Any]:
        token: dict[str, Any] = {"displayName": "of a test", "role": self.role}
        if self.role == "fineGrained":
            scoped = [{"entity": {"type": "user", "name": each}, "permissions": ["repo.write"]} for each in self.scopes]
            token["fineGrained"] = {"global": [], "scoped": scoped}
        orgs = [{"name": name, "roleInOrg": role} for name, role in self.orgs.items()]
        auth = {"type": "access_token", "accessToken": token}
        return {"type": "user", "name": self.name, "orgs": orgs, "auth": auth}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked. fields: of query and form. body: unless it was a form."""

    method: str
    path: str
    fields: Mapping[str, list[str]]
    body: bytes
    token: str | None

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Hub:
    """Repositories of "models" and "datasets", with commits and a branch main, which may move.

    Attributes:
        address: of the server.
        asked: methods and paths of all requests.
        accounts: token -> who it belongs to.
        private: models that only their owners see.
        stored: large files by their SHA-256, in a repository or not yet.
        received: SHA-256 of every large file that was sent, as often as it was.
        interrupt: looks at a request first, and answers it where it returns something.
    """

    def __init__(self) -> None:
        self.address = ""
        self.asked: list[str] = []
        self.accounts: dict[str, Account] = {}
        self.private: set[str] = set()
        self.stored: dict[str, bytes] = {}
        self.received: list[str] = []
        self.interrupt: Callable[[Request], Answer | None] = lambda request: None
        self._commits: dict[tuple[str, str], dict[str, Files]] = {}  # kind, name -> commit -> files; main is the last

    def add(self, kind: str, name: str, files: Files | Path) -> str:
        """A new commit, which the branch points to. Returns its name."""
        if isinstance(files, Path):
            files = {path.name: path.read_bytes() for path in files.iterdir()}
        commits = self._commits.setdefault((kind, name), {})
        commit = _digest("".join([*commits, *(path + _digest(files[path]) for path in sorted(files))]).encode())
        commits[commit] = files
        return commit

    def files(self, name: str, kind: str = "models") -> Files:
        """What the branch of a repository holds."""
        commits = self._commits[kind, name]
        return commits[next(reversed(commits))]

    def commits(self, name: str, kind: str = "models") -> list[str]:
        return list(self._commits.get((kind, name), {}))

    def variables(self, cache: Path, token: str | None = None) -> dict[str, str]:
        """The environment of a command that uses this hub, with this token or none."""
        settings = {"HF_ENDPOINT": self.address, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        return settings | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": token or ""}

    def answer(self, request: Request) -> Answer:
        parts = request.path.split("/")
        if request.path in ("api/whoami-v2", "api/validate-yaml", "api/repos/create"):
            return self._answer_account(request)
        if parts[0] == "large":  # where this hub has large files sent to, with no token in the request
            self.received.append(hashlib.sha256(request.body).hexdigest())
            self.stored[self.received[-1]] = request.body
            return _json({}) if self.received[-1] == parts[1] else _json({"error": "another content"}, 400)
        if parts[0] == "api":
            kind, *parts = parts[1:]
        else:
            kind = parts.pop(0) if parts[0] == "datasets" else "models"
        name, (what, revision, *inner) = "/".join(parts[:2]), parts[2:] or ["revision", "main"]
        name = name.removesuffix(".git")
        commits, account = self._commits.get((kind, name)), self.accounts.get(request.token or "")
        if commits is None or (name in self.private and not (account and account.may_read(name))):
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if what in ("auth-check", "preupload", "info", "commit"):
            if account is None or not account.may_write(name):
                return _json({"error": "no right to write"}, 403)
            return self._answer_push(what, name, request)
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
            is_recursive = "true" in request.fields.get("recursive", ["false"])[0].lower()
            return _json(_children(files, place, recursive=is_recursive))
        if what == "paths-info":
            return _json([_entry(each, files[each]) for each in request.fields.get("paths", []) if each in files])
        siblings = [{"rfilename": each} for each in files]
        is_private = name in self.private
        return _json({"id": name, "sha": commit, "siblings": siblings, "private": is_private, "tags": []})

    def _answer_account(self, request: Request) -> Answer:
        if request.path == "api/validate-yaml":
            ModelCard(request.json["content"])
            return _json({"errors": [], "warnings": []})
        account = self.accounts.get(request.token or "")
        if account is None:
            return _json({"error": "Invalid credentials"}, 401)
        if request.path == "api/whoami-v2":
            return _json(account.described())
        name = f"{request.json['organization']}/{request.json['name']}"
        if not account.may_write(name):
            return _json({"error": "no right to create"}, 403)
        if ("models", name) in self._commits:
            return _json({"error": "exists", "url": f"{self.address}/{name}"}, 409)
        self.private |= {name} if request.json["visibility"] == "private" else set()
        self.add("models", name, {".gitattributes": b"*.safetensors filter=lfs\n"})
        return _json({"url": f"{self.address}/{name}"})

    def _answer_push(self, what: str, name: str, request: Request) -> Answer:
        files = self.files(name)
        if what == "preupload":
            return _json({"files": [_upload_mode(each["path"], files) for each in request.json["files"]]})
        if what == "info":
            return _json({"transfer": "basic", "objects": list(map(self._large_file, request.json["objects"]))})
        if what == "auth-check":
            return _json({})
        changed = dict(files)
        for key, value in ((line["key"], line["value"]) for line in map(json.loads, request.body.splitlines())):
            if key == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                changed[value["path"]] = self.stored[value["oid"]]
            elif key == "deletedFile":
                del changed[value["path"]]
        commit = self.add("models", name, changed)
        return _json({"commitUrl": f"{self.address}/{name}/commit/{commit}", "commitOid": commit, "success": True})

    def _large_file(self, asked: dict[str, Any]) -> dict[str, Any]:
        """How a large file is sent; what is stored is not."""
        found = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] in self.stored:
            return found
        return found | {"actions": {"upload": {"href": f"{self.address}/large/{asked['oid']}"}}}


def _upload_mode(path: str, files: Files) -> dict[str, Any]:
    """What the hub tells before a push: how a file is sent, and which content it has there."""
    is_large, there = path.endswith(LARGE), files.get(path)
    blob = b"blob %d\0" % len(there or b"") + (there or b"")  # as git hashes a file
    oid = hashlib.sha256(there or b"").hexdigest() if is_large else _digest(blob)
    known = {} if there is None else {"oid": oid}
    return {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False} | known


def _json(value: Any, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


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
            body = self._body()
            is_form = self.headers.get("Content-Type") == "application/x-www-form-urlencoded"
            request = Request(
                method=self.command,
                path=path,
                fields=parse_qs(address.query) | (parse_qs(body.decode()) if is_form else {}),
                body=body,
                token=self.headers.get("Authorization", "").removeprefix("Bearer ") or None,
            )
            answer = hub.interrupt(request) or hub.answer(request)
            status, headers, content = _part(answer, self.headers.get("Range"))
            self.send_response(status)
            for each in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(*each)
            self.end_headers()
            if self.command != "HEAD":
                with suppress(ConnectionError):  # whoever asked was killed
                    self.wfile.write(content)

        do_HEAD = do_POST = do_PUT = do_GET

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
