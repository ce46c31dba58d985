"""Files of text that is tokenised already: Megatron-LM's indexed datasets, arrays of numpy, token stores of ours.

Each is one row of tokens, mapped into memory, so that a file of any size costs none.
"""

from __future__ import annotations

import glob
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy

from transact.config.inputs import TextConfig, is_url
from transact.data.token_store import COUNTED_NAME, INDEX_NAME, STARTS_NAME, TOKENS_NAME, read_index
from transact.errors import LONGEST_REASON, Refusal, one_line

# Of Megatron-LM's .idx, little-endian: magic, version, type of the tokens, sequences, entries of the document index.
# Behind it: the length of each sequence in tokens (int32), its place in the .bin in bytes (int64), and the number of
# each document's first sequence, then that of all sequences (int64).
HEADER = struct.Struct("<9sQBQQ")
MAGIC, VERSION = b"MMIDIDX\0\0", 1
CODES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # 6 and 7 are floating point
CHECKED_AT_ONCE = 1 << 20  # entries of an index
BIN, IDX, ARRAY = ".bin", ".idx", ".npy"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenFile:
    """A file of tokens.

    Attributes:
        path: of the tokens.
        tokens: (tokens,) integers, mapped into memory.
        ends: returns (documents,) int64, the position behind each document, where the file tells it. Only reading asks
            for it: it takes memory, which checks of names and sizes need not.
        row_length: tokens of a row of an array that has rows.
        index: the file that describes it, where that is another.
        tokenizer: digest of the one that made it, where the file tells.
    """

    path: Path
    tokens: Any
    ends: Callable[[], Any] | None = None
    row_length: int | None = None
    index: Path | None = None
    tokenizer: str | None = None

    @property
    def store(self) -> Path | None:
        """The folder of the token store that it is of, if it is of one."""
        return self.path.parent if self.index is not None and self.index.name == INDEX_NAME else None


def token_files(config: TextConfig, setting: str) -> list[TokenFile]:
    """Open the files that the patterns of a text name, sorted.

    Raises:
        ValueError: a pattern names none, or one cannot be used; the message names it and the reason.
    """
    found: dict[Path, TokenFile] = {}
    try:
        for pattern in config.files:
            if is_url(pattern):
                raise Refusal(f"{pattern!r} is remote; tokens are mapped into memory from local files")
            is_there = any(os.path.exists(f"{pattern}{suffix}") for suffix in ("", BIN, IDX))
            names = [pattern] if is_there else glob.glob(pattern, recursive=True)
            if not names:
                raise Refusal(f"{pattern!r} names no file")
            for name in sorted(names):
                opened = _open(Path(name))
                found[opened.path] = opened
    except (ValueError, OSError) as error:
        raise Refusal(f"{setting}.files: {one_line(error)}") from None
    files = [found[path] for path in sorted(found)]
    unknown = next((each.path for each in files if each.tokenizer is None), None)
    if unknown is not None and config.tokenizer is None:
        raise Refusal(
            f"{setting}.tokenizer=null is not allowed: {str(unknown)!r} does not say which tokenizer made it; name its "
            "folder or hub id"
        )
    return files


def _open(path: Path) -> TokenFile:
    if path.is_dir():
        return _token_store(path)
    if path.suffix == ARRAY and path.is_file():
        return _array(path)
    if path.suffix in (BIN, IDX):
        return _indexed_dataset(path.with_suffix(""))
    if not path.is_file():
        return _indexed_dataset(path)
    raise Refusal(f"{str(path)!r} is no .bin with its .idx, no .npy and no token store")


def _token_store(folder: Path) -> TokenFile:
    """Open a finished store of this program."""
    try:
        index = read_index(folder)
    except (ValueError, OSError) as error:
        raise Refusal(f"{str(folder)!r} is no finished token store: {one_line(error, LONGEST_REASON)}") from None
    if index.get("is_chat") or COUNTED_NAME in index["files"]:
        raise Refusal(f"{str(folder)!r} is a token store of conversations; name the files that it was made of")
    if "tokenizer" not in index:
        raise Refusal(
            f"{str(folder)!r} is of an earlier version and does not say which tokenizer made it: make it anew"
        )
    path, count = folder / TOKENS_NAME, index["num_sequences"] * index["sequence_length"]
    tokens, told = _mapped(path, index["dtype"], count), {"index": folder / INDEX_NAME, "tokenizer": index["tokenizer"]}
    if STARTS_NAME not in index["files"]:
        return TokenFile(path=path, tokens=tokens, **told)
    starts = _mapped(folder / STARTS_NAME, "u1", count)
    return TokenFile(
        path=path, tokens=tokens, ends=lambda: numpy.append(numpy.flatnonzero(starts[1:]) + 1, count), **told
    )


def _array(path: Path) -> TokenFile:
    """Open an array of one dimension, or of two, whose rows are read one behind the other."""
    try:
        array = numpy.load(path, mmap_mode="r", allow_pickle=False)
        shape, dtype = array.shape, array.dtype
    except (ValueError, EOFError, OSError, OverflowError, AttributeError) as error:  # the last: an archive of arrays
        raise Refusal(f"{str(path)!r} is no array that can be read: {one_line(error, LONGEST_REASON)}") from None
    if dtype.kind not in "iu":
        raise Refusal(f"{str(path)!r} holds {dtype}, not integers")
    if len(shape) not in (1, 2):
        raise Refusal(f"{str(path)!r} has {len(shape)} dimensions, allowed are 1 and 2")
    if array.size == 0:
        raise Refusal(f"{str(path)!r} is empty")
    if not array.flags.c_contiguous:
        raise Refusal(f"{str(path)!r} is stored by columns (fortran_order); store it by rows")
    row_length = shape[1] if len(shape) == 2 else None
    return TokenFile(path=path, tokens=numpy.asarray(array).reshape(-1), row_length=row_length)


def _indexed_dataset(prefix: Path) -> TokenFile:
    """Open an indexed dataset of Megatron-LM."""
    data, index = Path(f"{prefix}{BIN}"), Path(f"{prefix}{IDX}")
    for path in (data, index):
        if not path.is_file():
            raise Refusal(f"there is no {str(path)!r}: Megatron-LM writes X{BIN} and X{IDX}")
    with index.open("rb") as file:
        head = file.read(HEADER.size)
    if not head.startswith(MAGIC) or len(head) < HEADER.size:
        raise Refusal(f"{str(index)!r} is no index of Megatron-LM: it does not begin with {MAGIC!r} and a header")
    _, version, code, sequences, entries = HEADER.unpack(head)
    if version != VERSION:
        raise Refusal(f"{str(index)!r} is of version {version}, supported: {VERSION}")
    if code not in CODES:
        raise Refusal(f"{str(index)!r}: its tokens are of type {code}, which is none of integers (1 to 5, or 8)")
    size = HEADER.size + sequences * (4 + 8) + entries * 8
    if index.stat().st_size != size:
        raise Refusal(f"{str(index)!r} has {index.stat().st_size:,} bytes, by its header {size:,}")
    if sequences == 0 or entries < 2:
        raise Refusal(f"{str(index)!r} is empty: it has no documents")
    lengths = _mapped(index, "<i4", sequences, HEADER.size)
    places = _mapped(index, "<i8", sequences, HEADER.size + 4 * sequences)
    firsts = _mapped(index, "<i8", entries, HEADER.size + 12 * sequences)
    item = numpy.dtype(CODES[code]).itemsize
    if not _is_sound(lengths, places, firsts, item):
        raise Refusal(f"{str(index)!r} is damaged: its sequences and documents do not stand one behind the other")
    tokens = (int(places[-1]) + int(lengths[-1]) * item) // item
    if data.stat().st_size != tokens * item:
        raise Refusal(f"{str(data)!r} has {data.stat().st_size:,} bytes, by its {IDX} {tokens * item:,}")
    if tokens == 0:
        raise Refusal(f"{str(data)!r} is empty")
    ends = partial(_ends, places, firsts[1:], item, tokens)
    return TokenFile(path=data, tokens=_mapped(data, CODES[code], tokens), ends=ends, index=index)


def _ends(places: Any, begins: Any, item: int, tokens: int) -> Any:
    """Return where documents end. begins: of those behind them, in sequences; behind the last is no sequence."""
    last = len(places) - 1
    return numpy.where(begins <= last, places[numpy.minimum(begins, last)] // item, tokens)


def _is_sound(lengths: Any, places: Any, firsts: Any, item: int) -> bool:
    """Return whether sequences, and documents of them, follow each other without gaps from the first to the last."""
    if places[0] != 0 or firsts[0] != 0 or firsts[-1] != len(lengths):
        return False
    for start in range(0, max(len(lengths), len(firsts)), CHECKED_AT_ONCE):
        stop = start + CHECKED_AT_ONCE
        own, at = lengths[start:stop].astype(numpy.int64), places[start : stop + 1]
        if (own < 0).any() or (numpy.diff(at) != own[: max(len(at) - 1, 0)] * item).any():
            return False
        if (numpy.diff(firsts[start : stop + 1]) < 0).any():
            return False
    return True


def _mapped(path: Path, dtype: str, count: int, offset: int = 0) -> Any:
    """Return the numbers in a part of a file: (count,), mapped into memory."""
    return numpy.asarray(numpy.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(count,)))
