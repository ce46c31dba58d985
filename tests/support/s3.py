"""A server of the S3 API on this machine: moto's, which says what was asked of it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.commands import REPOSITORY
from tests.support.optional import s3_libraries

FORBIDDEN = b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>'
SECRET = "of-this-test-alone"


@dataclass(kw_only=True)
class Store:
    """The server.

    Attributes:
        address: of it.
        libraries: the folder with those that it needs, and its clients.
        asked: method, path and range of each request.
        private: buckets that nobody may look into.
    """

    address: str
    libraries: Path
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    private: set[str] = field(default_factory=set)

    def variables(self) -> dict[str, str]:
        """The environment of a process that uses it, to be started as users do."""
        paths = os.pathsep.join(map(str, (self.libraries, REPOSITORY)))
        keys = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
        return keys | {"AWS_ENDPOINT_URL": self.address, "NO_PROXY": "127.0.0.1", "PYTHONPATH": paths}

    def bytes_asked(self, path: str) -> int:
        """How many bytes of an object were asked for by ranges."""
        ranges = [bounds.removeprefix("bytes=").split("-") for _, asked, bounds in self.asked if asked == path]
        return sum(int(bounds[1]) - int(bounds[0]) + 1 for bounds in ranges if bounds != [""])


@contextmanager
def serving() -> Iterator[Store]:
    """A server without buckets, and this process as a client, until the block ends."""
    libraries = s3_libraries()
    sys.path.append(str(libraries))  # at its end: what the environment has comes from there
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    moto = DomainDispatcherApplication(create_backend_app)

    def application(request: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = request["PATH_INFO"]
        store.asked.append((request["REQUEST_METHOD"], path, request.get("HTTP_RANGE", "")))
        if path.split("/")[1] in store.private:
            start("403 Forbidden", [("Content-Type", "application/xml"), ("Content-Length", str(len(FORBIDDEN)))])
            return [] if request["REQUEST_METHOD"] == "HEAD" else [FORBIDDEN]
        return moto(request, start)  # type: ignore[no-any-return]

    class Silent(WSGIRequestHandler):
        def log(self, *arguments: Any) -> None:
            pass

    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Silent)
    store = Store(address=f"http://127.0.0.1:{server.server_port}", libraries=libraries)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        sys.path.remove(str(libraries))
