"""Documents to train and evaluate on: from local files, a data set of the Hub, or Python's standard library."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from transact.config.inputs import TextConfig, is_url
from transact.data.file_checks import CHECKS, SNIFFED_BYTES
from transact.data.filters import filter_identity, kept
from transact.data.hub_text import hub_documents
from transact.data.local_files import READERS, kind_of, shuffled_documents
from transact.data.remote_files import DataFile, for_each, remote_files
from transact.data.row_reader import read_fields, reader_of
from transact.data.rows import LeftOut, Source
from transact.data.stdlib_text import stdlib_documents, stdlib_identity
from transact.data.streamed_files import DAMAGES, OPENERS
from transact.data.tokenised_files import token_files
from transact.distributed.environment import environment_rank
from transact.errors import LONGEST_REASON, one_line


def text_files(config: TextConfig, field: str) -> list[DataFile]:
    """Return the files of text, or of tokens, that the patterns name, sorted.

    A file of that very name comes before a pattern.

    Raises:
        ValueError: a pattern names no file, or a file of a kind that is not supported; a remote one cannot be read.
    """
    if config.source == "tokens":
        return [each.path for each in token_files(config, field)]
    found: set[DataFile] = set()
    for pattern in config.files:
        files = remote_files(pattern, f"{field}.files") if is_url(pattern) else _local_files(pattern)
        if not files:
            hint = ": it is a folder; add /*.txt or the like" if Path(pattern).is_dir() else ""
            raise ValueError(f"{field}.files: {pattern!r} names no file{hint}")
        found.update(files)
    for path in found:
        if kind_of(path) is None:
            kinds = f"{', '.join(READERS)}, and but for the last two each also with {', '.join(OPENERS)}"
            raise ValueError(f"{field}.files: {str(path)!r} is not one of {kinds}")
    return sorted(found, key=lambda each: PurePath(str(each)))  # folder by folder, remote ones too


def _local_files(pattern: str) -> list[DataFile]:
    if "\0" in pattern:
        return []
    literal = Path(pattern)
    if literal.is_file():
        return [literal]
    return [path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file()]


def shared_file(ones: list[DataFile], others: list[DataFile]) -> tuple[DataFile, DataFile] | None:
    """Return a file of each that are one, or of one size and alike at the beginning, in the middle and at the end.

    A file is read once, and only where the others have one of its size; a remote one on rank 0 alone.
    """
    sizes = {path.stat().st_size for path in ones} & {path.stat().st_size for path in others}
    one_sized, other_sized = ([each for each in paths if each.stat().st_size in sizes] for paths in (ones, others))
    for key_of in (_place, _sample):
        known = dict(zip(for_each(key_of, one_sized), one_sized, strict=True))
        for key, other in zip(for_each(key_of, other_sized), other_sized, strict=True):
            if key in known:
                return known[key], other
    return None


def _place(path: DataFile) -> object:
    """Return what two names of one file share."""
    return (path.stat().st_dev, path.stat().st_ino) if isinstance(path, Path) else path.url


def _sample(path: DataFile) -> object:
    if not isinstance(path, Path) and environment_rank() != 0:
        return _place(path)
    size = path.stat().st_size
    sample = hashlib.sha256(b"%d " % size)
    with path.open("rb", SNIFFED_BYTES) as file:
        for place in (0, size // 2, max(0, size - SNIFFED_BYTES)):
            file.seek(place)
            sample.update(file.read(SNIFFED_BYTES))
    return sample.digest()


def check_text(config: TextConfig, field: str) -> None:
    """Check the beginning of every file before any work starts: of local ones on each rank, of remote ones on rank 0.

    Raises:
        ValueError: a file is missing, empty, binary, or has no field with text or with conversations; or a remote file
            cannot be read.
    """
    if config.source == "tokens":
        token_files(config, field)
    if config.source == "files":
        paths, looks = text_files(config, field), environment_rank() == 0
        for_each(partial(_check_file, config, field), [path for path in paths if looks or isinstance(path, Path)])


def _check_file(config: TextConfig, field: str, path: DataFile) -> None:
    if path.stat().st_size == 0:
        raise ValueError(f"{field}.files: {str(path)!r} is empty")
    is_chat, kind = config.messages_field is not None, kind_of(path) or ""
    if is_chat and kind in ("text", "csv"):
        name = f"{field}.messages_field={config.messages_field!r}"
        kinds = "jsonl, json, parquet and arrow files can"
        raise ValueError(f"{name} is not allowed: {str(path)!r} cannot hold conversations; {kinds}")
    try:
        CHECKS[kind](path, config, field)
        if is_chat:  # its columns may have any type: the first row tells
            next(shuffled_documents([_source(path, config, field, LeftOut())]), None)
    except DAMAGES as error:
        reason = one_line(error, LONGEST_REASON)
        raise ValueError(f"{field}.files: {str(path)!r} cannot be read: {reason!r}") from None


def documents(config: TextConfig, field: str, left_out: LeftOut | None = None) -> Iterator[str]:
    """Yield every document once, in a fixed order that mixes all files and places, without the rows that have no text.

    left_out: counts those rows, and what a filter leaves out.

    Raises:
        ValueError: a row cannot be read; the message names the file, the row and the reason.
    """
    left_out = left_out or LeftOut()
    found = _all_documents(config, field, left_out)
    return found if config.filter is None else kept(found, config.filter, field, left_out.add_filtered)


def _all_documents(config: TextConfig, field: str, left_out: LeftOut) -> Iterator[str]:
    if config.source == "python_stdlib":
        return stdlib_documents(config.part)
    if config.source == "hub":
        return hub_documents(config, field, left_out)
    return shuffled_documents([_source(path, config, field, left_out) for path in text_files(config, field)])


def _source(path: DataFile, config: TextConfig, field: str, left_out: LeftOut) -> Source:
    fields, read = read_fields(config), reader_of(config)
    return Source(path=path, fields=fields, read=read, setting=f"{field}.files", left_out=left_out)


def text_identity(config: TextConfig, field: str) -> dict[str, Any]:
    """Return what a token store of this text depends on besides the tokenizer.

    Local files count by path, size and time of change, remote ones by URL, size and version.
    """
    filtered = {} if config.filter is None else {"filter": filter_identity(config.filter)}
    whole = {"source": config.source, "order": "hashed"} | filtered
    if config.source == "python_stdlib":
        return whole | {"part": config.part, "files": stdlib_identity()}
    if config.source == "tokens":
        described = [path for each in token_files(config, field) for path in (each.path, each.index) if path]
        return whole | {"files": [_file_identity(path) for path in described]}
    setting, value = config.row_setting
    read = {setting: value} | ({} if config.messages_field is None else {"loss": config.loss})
    if config.source == "hub":
        names = ("hub_id", "hub_config", "hub_revision", "split")
        return whole | {name: getattr(config, name) for name in names} | read
    return whole | {"files": [_file_identity(path) for path in text_files(config, field)]} | read


def _file_identity(path: DataFile) -> list[object]:
    if isinstance(path, Path):
        return [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns]
    return [path.url, path.size, path.version]
