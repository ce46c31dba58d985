"""Documents that a function of the user keeps: data.*.filter=FILE.py:FUNCTION."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from transact.errors import LONGEST_REASON, Refusal, one_line
from transact.files import file_digest

SHOWN_CHARACTERS = 60


def filter_identity(named: str) -> list[str]:
    """Return what a token store depends on of a filter: its file's content, and the function."""
    path, _, function = named.rpartition(":")
    return [file_digest(Path(path)), function]


def predicate(named: str, setting: str) -> Callable[[str], object]:
    """Import the function of a file; what it returns says whether a document stays.

    Raises:
        ValueError: there is no such file or function, or the file cannot be imported.
    """
    path, _, function = named.rpartition(":")
    if not Path(path).is_file():
        raise ValueError(f"{setting}.filter={named!r}: there is no file {path!r}; give FILE.py:FUNCTION")
    try:
        name = f"transact_filter_{file_digest(Path(path))[:20]}"
    except OSError as error:
        raise ValueError(f"{setting}.filter={named!r}: {path!r} cannot be read: {error.strerror}") from None
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{setting}.filter={named!r}: {path!r} is no file of Python (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses, pickle and type hints look for it
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # noqa: BLE001 - the user's code may fail in every way
        del sys.modules[spec.name]
        raise ValueError(f"{setting}.filter={named!r}: {one_line(error, LONGEST_REASON)}") from None
    found = getattr(module, function, None)
    if not callable(found):
        raise ValueError(f"{setting}.filter={named!r}: {path!r} has no function {function!r}")
    return found  # type: ignore[no-any-return]


def kept(texts: Iterator[str], named: str, setting: str, on_dropped: Callable[[], object]) -> Iterator[str]:
    """Yield the documents that a filter keeps. on_dropped: called for each of the others.

    Raises:
        ValueError: as `predicate`, or the function fails on a document.
    """
    keeps = predicate(named, setting)
    for text in texts:
        try:
            stays = bool(keeps(text))
        except Exception as error:  # noqa: BLE001 - as above
            reason, beginning = one_line(error, LONGEST_REASON), one_line(text, SHOWN_CHARACTERS)
            kind = type(error).__name__
            raise Refusal(f"{setting}.filter={named!r} fails ({kind}: {reason}) on {beginning!r}") from None
        if stays:
            yield text
        else:
            on_dropped()
