"""Documents of files that are read from their beginning on: compressed ones, CSV and Arrow.

No part of such a file can be found without what stands before it, so that the whole file is one part: what mixes its
documents with others are other files.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import functools
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from transact.data.remote_files import DataFile
from transact.data.rows import BYTE_ORDER_MARK, Source, has_words, texts_of_lines
from transact.errors import LONGEST_REASON, one_line

TEXT_BYTES = 65_536  # of a document of a text file, to the next end of a line
ARROW_ROWS = 64  # turned into Python objects at once
DAMAGES = (EOFError, OSError, zlib.error, lzma.LZMAError, csv.Error, UnicodeDecodeError)


def _open_zstandard(source: Path | IO[bytes], _mode: str) -> IO[bytes]:
    import pyarrow

    file = pyarrow.OSFile(str(source)) if isinstance(source, Path) else pyarrow.PythonFile(source, mode="r")
    return io.BufferedReader(pyarrow.CompressedInputStream(file, "zstd"))


OPENERS: dict[str, Callable[[Any, str], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstandard,
}


def kind_suffix(path: DataFile) -> str:
    """Return the suffix that says what a file holds: that before the suffix of its compression, if it has one."""
    return Path(path.stem).suffix if path.suffix in OPENERS else path.suffix


def open_stream(path: DataFile, buffering: int = -1) -> IO[bytes]:
    """Open a file for reading, and decompress it where its name says that it is compressed.

    buffering: as of `Path.open`.
    """
    opener = OPENERS.get(path.suffix)
    if opener is None:
        return path.open("rb", buffering)
    return opener(path if isinstance(path, Path) else path.open("rb", buffering), "rb")  # type: ignore[no-any-return]


@contextmanager
def refused_if_damaged(refuse: Callable[[str], Any], place: Callable[[], str]) -> Iterator[None]:
    """Refuse a file whose content cannot be decompressed or decoded; place: where, as "line 5"."""
    try:
        yield
    except DAMAGES as error:
        refuse(f"cannot be read from {place()} on: {one_line(error, LONGEST_REASON)!r}")


def text_stream(source: Source) -> Iterator[str]:
    """Yield the pieces of a compressed text file, each of about `TEXT_BYTES` bytes and ending with a line."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    read = 0
    with (
        refused_if_damaged(source.refuse, lambda: f"byte {read + 1:,} (decompressed)"),
        open_stream(source.path) as file,
    ):
        while True:
            # A file may be one endless line: its pieces then end anywhere, but never within a character.
            content = file.read(TEXT_BYTES)
            content += b"" if content.endswith(b"\n") else file.readline(TEXT_BYTES)
            text = decoder.decode(content, final=not content)
            if "\0" in text:
                source.refuse("is binary, not UTF-8 text: a NUL byte in it")
            if has_words(text):
                text = text if read else text.removeprefix(BYTE_ORDER_MARK)
                yield text.replace("\r\n", "\n").replace("\r", "\n")
            if not content:
                return
            read += len(content)


def lines_stream(source: Source) -> Iterator[str]:
    """Yield the texts of the lines of a compressed JSON lines file."""
    number = 0

    def numbered(file: IO[bytes]) -> Iterator[tuple[bytes, bool, Callable[[], str]]]:
        nonlocal number
        for line in (each for lines in file for each in lines.splitlines()):
            number += 1
            yield line, number == 1, functools.partial("line {:,}".format, number)

    with refused_if_damaged(source.refuse, lambda: f"line {number + 1:,}"), open_stream(source.path) as file:
        yield from texts_of_lines(source, numbered(file))


def csv_stream(source: Source) -> Iterator[str]:
    """Yield the texts of the rows of a CSV file, whose first row names the columns."""
    csv.field_size_limit(sys.maxsize)  # a document may be longer than the 128 KiB that the module takes
    number = 0
    with refused_if_damaged(source.refuse, lambda: f"row {number + 1:,}"), open_csv(source.path) as rows:
        names = next(rows)
        columns = [(name, names.index(name)) for name in source.fields]
        for row in rows:
            number += 1
            found = {name: row[column] for name, column in columns if column < len(row)}
            if any("\0" in each for each in found.values()):
                source.refuse(f"is binary, not UTF-8 text: a NUL byte in row {number:,}")
            yield from source.texts_of_rows([found], number)


@contextmanager
def open_csv(path: DataFile, buffering: int = -1) -> Iterator[Iterator[list[str]]]:
    """Yield the rows of a CSV file, the first with the names of the columns. buffering: as of `open_stream`."""
    with io.TextIOWrapper(open_stream(path, buffering), encoding="utf-8-sig", newline="") as file:
        yield csv.reader(file, strict=True)


def arrow_stream(source: Source) -> Iterator[str]:
    """Yield the texts of an Arrow file, as `save_to_disk` of the library datasets writes them."""
    import pyarrow

    row = 0
    with open_arrow(source.path) as (_, batches):
        while True:
            try:
                batch = next(batches, None)
                rows = (
                    None
                    if batch is None
                    else batch.select([each for each in source.fields if each in batch.schema.names])
                )
            except (pyarrow.ArrowException, OSError) as error:
                source.refuse(f"cannot be read from row {row + 1:,} on: {one_line(error, LONGEST_REASON)!r}")
            if rows is None:
                return
            for first in range(0, len(rows), ARROW_ROWS):
                some = rows.slice(first, ARROW_ROWS).to_pylist()
                yield from source.texts_of_rows(some, row + 1)
                row += len(some)


@contextmanager
def open_arrow(path: DataFile, buffering: int = -1) -> Iterator[tuple[Any, Iterator[Any]]]:
    """Yield the schema and the record batches of an Arrow file, in the streaming or the random-access format.

    buffering: as of `Path.open`, of a remote file; a local one is mapped.

    Raises:
        pyarrow.ArrowException: it is neither.
    """
    import pyarrow.ipc

    is_local = isinstance(path, Path)
    with pyarrow.memory_map(str(path)) if is_local else pyarrow.PythonFile(path.open("rb", buffering)) as file:
        if file.read(6) == b"ARROW1":
            reader = pyarrow.ipc.open_file(file)
            yield reader.schema, map(reader.get_batch, range(reader.num_record_batches))
        else:
            file.seek(0)
            reader = pyarrow.ipc.open_stream(file)
            yield reader.schema, iter(reader)
