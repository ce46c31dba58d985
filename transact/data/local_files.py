"""Documents of files, in an order that mixes all files and all places in them.

Files are cut into parts (byte ranges, or row groups of parquet). The parts of all files are visited in hashed order,
many at a time, one document from each in turn: the beginning of the stream is a sample of the whole. The order follows
from names and sizes, so that it is the same on every machine. No file is read twice, and none is held in memory. Files
of streamed_files.py are one part each. What holds of local files holds of remote ones (remote_files.py).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy

from transact.data.remote_files import DataFile, RemoteFile, RemoteUnavailable, for_each
from transact.data.rows import BYTE_ORDER_MARK, Source, has_words, texts_of_lines
from transact.data.streamed_files import (
    OPENERS,
    arrow_stream,
    csv_stream,
    kind_suffix,
    lines_stream,
    text_stream,
)
from transact.errors import LONGEST_REASON, one_line

READERS = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
WITHIN = ("parquet", "arrow")  # kinds that are compressed inside, and must be read at any place
LINES_BYTES = 262_144  # of JSON lines in one part
LINE_BYTES = 65_536  # behind them: the rest of a part's last line mostly
TEXT_BYTES = 65_536  # of a text file in one part; each part of a longer file is a document
OPEN_PARTS = 64
CUT_WINDOW_BYTES = 4096  # searched for the end of a line, or a space
PARQUET_ROWS = 64  # read at once
PARQUET_BUFFER_BYTES = 1 << 20
FOOTER_BYTES = 65_536  # at the end of a parquet file, with which its reader begins
COUNTED_BYTES = 1 << 31  # a damaged line of a local file up to here is named by its number, others by their byte
GOLDEN = 0x9E3779B97F4A7C15
Document = TypeVar("Document")


def shuffled_documents(sources: list[Source]) -> Iterator[str]:
    """Yield every document of all files once, in hashed order.

    Raises:
        ValueError: a row cannot be read; the message names the file, the row and the reason.
    """
    counts = for_each(_number_of_parts, [each.path for each in sources])

    def part(file: int, number: int) -> Iterator[str]:
        source = sources[file]
        kind = kind_of(source.path)
        assert kind is not None
        return _STREAMS[kind](source) if is_streamed(source.path) else _READ[kind](source, number)

    return in_hashed_order([each.path for each in sources], counts, part)


def in_hashed_order(
    paths: Sequence[DataFile], counts: list[int], part: Callable[[int, int], Iterator[Document]]
) -> Iterator[Document]:
    """Yield the documents of all parts of all files once. counts: parts of each file. part: of a file, by numbers."""
    names = [f"{each.name}:{each.stat().st_size}" for each in paths]
    hashes = [_hashes(name, count) for name, count in zip(names, counts, strict=True)]
    order = numpy.argsort(numpy.concatenate(hashes), kind="stable")
    ends = numpy.cumsum(counts)

    def part_at(position: int) -> Iterator[Document]:
        file = int(numpy.searchsorted(ends, position, side="right"))
        return part(file, int(position - ends[file] + counts[file]))

    return _in_turn(part_at(position) for position in order)


def _hashes(name: str, count: int) -> Any:
    """Return the sort key of every part of a file: (count,) uint64, by the finaliser of splitmix64."""
    key = int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")
    with numpy.errstate(over="ignore"):
        mixed = numpy.arange(1, count + 1, dtype=numpy.uint64) * numpy.uint64(GOLDEN) + numpy.uint64(key)
        mixed = (mixed ^ (mixed >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> numpy.uint64(31))


def _in_turn(parts: Iterable[Iterator[Document]]) -> Iterator[Document]:
    """Yield one document of each open part in turn; a part that ends makes room for the next."""
    waiting = iter(parts)
    active = deque(itertools.islice(waiting, OPEN_PARTS))
    while active:
        part = active.popleft()
        document = next(part, None)
        if document is None:
            active.extend(itertools.islice(waiting, 1))
            continue
        active.append(part)
        yield document


def kind_of(path: DataFile) -> str | None:
    """Return what kind of file a name says, one of the values of `READERS`; None where it is none that is read."""
    kind = READERS.get(kind_suffix(path))
    return None if kind in WITHIN and path.suffix in OPENERS else kind


def is_streamed(path: DataFile) -> bool:
    """Return whether a file is read from its beginning on, as one part."""
    return path.suffix in OPENERS or kind_of(path) in ("csv", "arrow")


def _number_of_parts(path: DataFile) -> int:
    kind = kind_of(path)
    if is_streamed(path):
        return 1
    if kind == "parquet":
        return int(open_parquet(path).metadata.num_row_groups)
    return max(1, -(-path.stat().st_size // (LINES_BYTES if kind == "json" else TEXT_BYTES)))


def _text_part(source: Source, number: int) -> Iterator[str]:
    with source.path.open("rb", TEXT_BYTES + CUT_WINDOW_BYTES + 1) as file:  # all of it in one read
        start, stop = _cut(file, number * TEXT_BYTES), _cut(file, (number + 1) * TEXT_BYTES)
        file.seek(start)
        content = file.read(stop - start)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        source.refuse(f"is binary, not UTF-8 text, in {_line_at(source.path, start + error.start)}")
    if "\0" in text:
        source.refuse(f"is binary, not UTF-8 text: a NUL byte in {_line_at(source.path, start + content.index(0))}")
    if start == 0:
        text = text.removeprefix(BYTE_ORDER_MARK)
    if has_words(text):
        yield text.replace("\r\n", "\n").replace("\r", "\n")


def _cut(file: Any, position: int) -> int:
    """Return where the part planned at a position really begins: at a line, else a word, else a character."""
    if position == 0:
        return 0
    file.seek(position)
    window = file.read(CUT_WINDOW_BYTES)
    for mark in (b"\n", b" "):
        if mark in window:
            return position + int(window.index(mark)) + 1
    continuing = next((place for place, byte in enumerate(window[:4]) if byte & 0xC0 != 0x80), len(window[:4]))
    return position + continuing if window else int(file.seek(0, 2))


def _lines_part(source: Source, number: int) -> Iterator[str]:
    """Yield the texts of the lines that begin in one range of `LINES_BYTES` bytes."""
    place, content = _whole_lines(source.path, number * LINES_BYTES, (number + 1) * LINES_BYTES)
    lines = content.splitlines(keepends=True)
    begins = itertools.accumulate(map(len, lines), initial=place)
    yield from texts_of_lines(
        source,
        (
            (line, begin == 0, functools.partial(_line_at, source.path, begin))
            for line, begin in zip(lines, begins, strict=False)
        ),
    )


def _whole_lines(path: DataFile, start: int, stop: int) -> tuple[int, bytes]:
    """Return position and content of the lines whose first byte is in [start, stop)."""
    with path.open("rb", LINES_BYTES + LINE_BYTES) as file:  # all of it in one read of the disk, or the network
        before = min(start, 1)
        file.seek(start - before)
        content = file.read(before + stop - start)
        if before:
            found = content.find(b"\n", 0, stop - start)
            if found < 0:
                return stop, b""
            start, content = start + found, content[found + 1 :]
        if not content.endswith(b"\n"):
            content += file.readline()
    return start, content


def _line_at(path: DataFile, position: int) -> str:
    if position > COUNTED_BYTES or not isinstance(path, Path):
        return f"the line at byte {position:,}"
    lines, left, before = 1, position, b""
    with path.open("rb") as file:
        while left > 0 and (content := file.read(min(left, 1 << 20))):
            left -= len(content)
            lines += content.count(b"\n") + content.count(b"\r") - (before + content).count(b"\r\n")
            before = content[-1:] if content.endswith(b"\r") else b""
    return f"line {lines:,}"


def open_parquet(path: DataFile) -> Any:
    """Open a parquet file; what a remote one holds, which stands at its end, is asked for once."""
    import pyarrow.parquet

    if isinstance(path, Path):
        return pyarrow.parquet.ParquetFile(path, buffer_size=PARQUET_BUFFER_BYTES)
    file, metadata = path.open("rb", FOOTER_BYTES), _remote_metadata(path)
    return pyarrow.parquet.ParquetFile(file, metadata=metadata, buffer_size=PARQUET_BUFFER_BYTES)


@functools.lru_cache(maxsize=256)
def _remote_metadata(path: RemoteFile) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path.open("rb", FOOTER_BYTES)).metadata


def _parquet_part(source: Source, number: int) -> Iterator[str]:
    with open_parquet(source.path) as file:
        row = sum(file.metadata.row_group(group).num_rows for group in range(number))
        batches = file.iter_batches(PARQUET_ROWS, row_groups=[number], columns=list(source.fields))
        while True:
            try:
                batch = next(batches, None)
                rows = [] if batch is None else batch.to_pylist()
            except (MemoryError, RemoteUnavailable):
                raise
            except Exception as error:  # noqa: BLE001 - damaged bytes make the reader raise errors of every kind
                source.refuse(f"cannot be read from row {row + 1:,} on: {one_line(error, LONGEST_REASON)!r}")
            if batch is None:
                return
            yield from source.texts_of_rows(rows, row + 1)
            row += len(rows)


_READ: dict[str, Callable[[Source, int], Iterator[str]]] = {
    "text": _text_part,
    "json": _lines_part,
    "parquet": _parquet_part,
}
_STREAMS: dict[str, Callable[[Source], Iterator[str]]] = {
    "text": text_stream,
    "json": lines_stream,
    "csv": csv_stream,
    "arrow": arrow_stream,
}
