"""Documents of the library of the Python that runs: its source files, and the language reference of `help()`."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

HELD_OUT_ONE_IN = 16
SKIPPED_FOLDERS = ("site-packages", "dist-packages", "__pycache__", "encodings")
OPTIONAL_FOLDERS = ("test", "tests", "idle_test")


def stdlib_folder() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def is_held_out(name: str) -> bool:
    """Return whether a document of the standard library is held out, by a hash of its name; tests never are."""
    if any(part in OPTIONAL_FOLDERS for part in Path(name).parts):
        return False
    return _digest(name) % HELD_OUT_ONE_IN == 0


def source_files() -> list[Path]:
    """Return every .py file of the library, sorted by name, without the tables of character encodings."""
    root = stdlib_folder()
    return sorted(
        path
        for path in root.rglob("*.py")
        if not any(part in SKIPPED_FOLDERS for part in path.relative_to(root).parts)
        and path.name != "topics.py"  # the documentation, which `documentation` reads
    )


def documentation() -> dict[str, str]:
    """Return topic -> text of the language reference that `help()` shows."""
    from pydoc_data.topics import topics

    return topics


def stdlib_documents(part: str) -> Iterator[str]:
    """Yield the documents of "train" or "heldout"; a held-out document that is also in "train" is left out."""
    if part == "train":
        yield from _documents(held_out=False)
        return
    trained = set(_documents(held_out=False))
    yield from (text for text in _documents(held_out=True) if text not in trained)


def _documents(*, held_out: bool) -> Iterator[str]:
    """Yield documents in an order that mixes all subjects: the beginning is a sample of the whole."""
    root = stdlib_folder()
    readers: dict[str, Callable[[], str]] = {
        path.relative_to(root).as_posix(): partial(_read, path) for path in source_files()
    }
    readers |= {f"topic:{topic}": partial(str, text) for topic, text in documentation().items()}
    for name in sorted(readers, key=_digest):
        if is_held_out(name) == held_out:
            text = readers[name]()
            if text:
                yield text


def _read(path: Path) -> str:
    """Return the text of a source file; nothing for the few test files that are not UTF-8 on purpose."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def stdlib_identity() -> list[list[object]]:
    """Return what the text depends on: file names and their sizes in bytes."""
    root = stdlib_folder()
    return [[path.relative_to(root).as_posix(), path.stat().st_size] for path in source_files()]
