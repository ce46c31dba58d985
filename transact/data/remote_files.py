"""Files behind URLs (s3://, gs://, hf:// and whatever else fsspec reads), used like paths.

What is read is transferred, by ranges of bytes, and nothing is kept on disk. The libraries of the stores take
credentials from where they always do, and repeat what failed for a moment.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, TypeVar

from transact.errors import LONGEST_REASON, Refusal, TransactError, one_line

STREAM_BYTES = 1 << 21  # of a file that is read from its beginning on, in one request
AT_ONCE = 16  # files that are looked at together: each waits for the network
PACKAGES = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "gs": ("gcsfs", "gs"), "gcs": ("gcsfs", "gs")}
VERSIONS = ("ETag", "etag", "blob_id", "mtime", "LastModified", "Last-Modified", "created")  # as each store names it
MAGIC = re.compile(r"[*?[]")
Result = TypeVar("Result")


class RemoteUnavailable(Refusal):
    """A remote file, or the place that it should be in, cannot be read."""


class Size(NamedTuple):
    """What `Path.stat` says of a file, as far as a store says it too. st_size: in bytes."""

    st_size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """A file of a store, with what is used of a `Path`.

    Attributes:
        url: where it is.
        size: in bytes.
        version: changes with its content: a digest of the store, or a time.
        info: what the store's library says of it.
        setting: the one that names it, for messages.
    """

    url: str
    size: int
    version: str
    info: dict[str, Any] = field(compare=False, repr=False)
    setting: str = field(compare=False)

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        return PurePosixPath(self.url).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.url).suffix

    @property
    def stem(self) -> str:
        return PurePosixPath(self.url).stem

    def stat(self) -> Size:
        return Size(self.size)

    def open(self, mode: str = "rb", buffering: int = -1) -> IO[bytes]:
        """Open the file for reading.

        buffering: bytes of a request, where no more are asked for at once. -1: as for reading the whole file.
        """
        assert mode == "rb"
        return io.BufferedReader(_Ranges(self), STREAM_BYTES if buffering < 0 else buffering)


DataFile = Path | RemoteFile


class _Ranges(io.RawIOBase):
    """The bytes of a remote file: each read is a request."""

    def __init__(self, file: RemoteFile) -> None:
        import fsspec.core

        self._file = file
        with _told(file.setting, file.url):
            system, path = fsspec.core.url_to_fs(file.url)
            self._handle = system.open(path, "rb", cache_type="none", size=file.size)
            self._handle.details = file.info  # known, so that no request asks for it again

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._handle.seek(offset, whence))

    def tell(self) -> int:
        return int(self._handle.tell())

    def readinto(self, buffer: Any) -> int:
        with _told(self._file.setting, self._file.url):
            content = self._handle.read(max(0, min(len(buffer), self._file.size - self.tell())))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed and hasattr(self, "_handle"):
            self._handle.close()
        super().close()


def remote_files(pattern: str, setting: str) -> list[RemoteFile]:
    """Return the files that a URL, or a pattern of one, names; a file of that very name comes before a pattern.

    A process asks a store once: a text is what it was then.

    Raises:
        ValueError: the URL is of a folder, or its package is not installed.
        RemoteUnavailable: the store has no such place, refuses it, or does not answer.
    """
    with _told(setting, pattern):
        return [replace(each, setting=setting) for each in _found(pattern)]


@cache
def _found(pattern: str) -> tuple[RemoteFile, ...]:
    import fsspec.core

    system, path = fsspec.core.url_to_fs(pattern)
    try:
        infos = [system.info(path)]
    except FileNotFoundError as absent:  # it says whether there is such a bucket; a pattern does not
        infos = [*system.glob(path, detail=True).values()] if MAGIC.search(path) else []
        if not infos:
            raise absent
    else:
        if infos[0]["type"] != "file":
            raise RemoteUnavailable("it is a folder; add /*.jsonl or the like")
    return tuple(
        RemoteFile(
            url=system.unstrip_protocol(each["name"]),
            size=int(each["size"]),
            version=str(next((each[name] for name in VERSIONS if each.get(name)), "")),
            info=each,
            setting="",
        )
        for each in infos
        if each["type"] == "file" and not each["name"].endswith("/")
    )


@contextmanager
def _told(setting: str, url: str) -> Iterator[None]:
    """Raise what the library of a store raises, which may be of any kind, as one line with the URL."""
    try:
        yield
    except MemoryError:
        raise
    except ImportError as error:
        package, extra = PACKAGES.get(url.partition("://")[0], ("", ""))
        needed = f"needs the package {package}: pip install 'transact[{extra}]'" if package else one_line(error)
        raise RemoteUnavailable(f"{setting}: {url!r} {needed}") from None
    except Exception as error:  # noqa: BLE001 - network, rights, damaged answers
        reason = str(error) if isinstance(error, TransactError) else one_line(error, LONGEST_REASON)
        what = "names no file" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise RemoteUnavailable(f"{setting}: {url!r} {what}: {reason}") from None


def for_each(work: Callable[[DataFile], Result], files: Sequence[DataFile]) -> list[Result]:
    """Return what work returns for each file; many at once where there are remote ones."""
    if not any(isinstance(each, RemoteFile) for each in files):
        return [*map(work, files)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [*pool.map(work, files)]
