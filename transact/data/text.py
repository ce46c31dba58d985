"""Documents from local files, a hub dataset or this Python's library, as a stream of strings."""

from __future__ import annotations

import codecs
import glob
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transact.config import TextConfig
from transact.data.python_stdlib import stdlib_documents, stdlib_identity

READERS = {".txt": "text", ".md": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
PARQUET_MARK = b"PAR1"
SNIFFED_BYTES = 65_536


def text_files(config: TextConfig, field: str) -> list[Path]:
    """The local files that the patterns name, sorted.

    Raises:
        ValueError: a pattern names nothing, or a file of a kind that is not read.
    """
    found: set[Path] = set()
    for pattern in config.files:
        matches = [Path(name) for name in glob.glob(pattern, recursive=True)]
        files = [path for path in matches if path.is_file()]
        if not files:
            hint = ": it is a folder; add /*.txt or the like" if Path(pattern).is_dir() else ""
            raise ValueError(f"{field}.files: {pattern!r} names no file{hint}")
        found.update(files)
    for path in found:
        if path.suffix not in READERS:
            raise ValueError(f"{field}.files: {str(path)!r} is not one of {', '.join(READERS)}")
    return sorted(found)


def check_text(config: TextConfig, field: str) -> None:
    """Look at the beginning of every file before any work starts.

    Raises:
        ValueError: a file is missing, empty, binary, or has no text field.
    """
    if config.source != "files":
        return
    for path in text_files(config, field):
        if path.stat().st_size == 0:
            raise ValueError(f"{field}.files: {str(path)!r} is empty")
        check = _check_parquet if path.suffix == ".parquet" else _check_characters
        check(path, config.text_field, field)


def _check_characters(path: Path, text_field: str, field: str) -> None:
    with path.open("rb") as file:
        head = file.read(SNIFFED_BYTES)
    try:
        # Incremental: a character may be cut off at the end of what was read.
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ValueError(f"{field}.files: {str(path)!r} is binary, not UTF-8 text")
    if not text.strip():
        raise ValueError(f"{field}.files: {str(path)!r} holds only white space")
    if READERS[path.suffix] == "json":
        _check_json(path, text_field, field)


def _check_json(path: Path, text_field: str, field: str) -> None:
    with path.open(encoding="utf-8") as file:
        first = file.readline()
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):  # numbers of thousands of digits, brackets in brackets in brackets
        raise ValueError(f"{field}.files: {str(path)!r} does not hold one JSON object a line") from None
    if not isinstance(row, dict) or not isinstance(row.get(text_field), str):
        keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"{field}.text_field={text_field!r} is no text in {str(path)!r}, which has: {keys}")


def _check_parquet(path: Path, text_field: str, field: str) -> None:
    import pyarrow.lib
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(path).names
    except (pyarrow.lib.ArrowException, OSError):
        raise ValueError(f"{field}.files: {str(path)!r} is not a complete parquet file") from None
    if text_field not in names:
        raise ValueError(f"{field}.text_field={text_field!r} is not in {str(path)!r}, which has: {', '.join(names)}")


def documents(config: TextConfig, field: str) -> Iterator[str]:
    """Every document once, in a fixed order. Rows with an empty text or none are left out.

    Raises:
        ValueError: names the file that cannot be read to its end, and why.
    """
    if config.source == "python_stdlib":
        yield from stdlib_documents(config.part)
    elif config.source == "hub":
        yield from _rows(_hub_dataset(config, field), config.text_field, f"{field}.hub_id={config.hub_id!r}")
    else:
        for path in text_files(config, field):
            text_field = "text" if READERS[path.suffix] == "text" else config.text_field
            yield from _rows(_local_dataset(path), text_field, f"{field}.files: {str(path)!r}")


def _local_dataset(path: Path) -> Any:
    import datasets

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it tells of errors besides raising them
    reader = READERS[path.suffix]
    options = {"sample_by": "document"} if reader == "text" else {}
    return datasets.load_dataset(reader, data_files=str(path), split="train", streaming=True, **options)


def _hub_dataset(config: TextConfig, field: str) -> Any:
    import datasets

    # Scripts in a dataset are never run: this version of datasets reads data files only.
    try:
        return datasets.load_dataset(
            config.hub_id, config.hub_config, split=config.split, revision=config.hub_revision, streaming=True
        )
    except Exception as error:  # noqa: BLE001 - whatever the network or the hub says, the text is not to be had
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{field}.hub_id={config.hub_id!r} is not to be had from the hub: {reason}") from None


def _rows(dataset: Any, text_field: str, where: str) -> Iterator[str]:
    rows = iter(dataset)
    for number in itertools.count(1):
        try:
            row = next(rows, None)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - damaged bytes make the readers fail in every way
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{where} cannot be read after {number - 1} documents: {reason}") from None
        if row is None:
            return
        text = row.get(text_field)
        if text is not None and not isinstance(text, str):
            kind = type(text).__name__
            raise ValueError(f"{where}: {text_field!r} of document {number} is of type {kind}, it must be text")
        if text:
            yield text


def text_identity(config: TextConfig, field: str) -> dict[str, Any]:
    """What a token store of this text depends on besides the tokenizer. Local files: name, size, time of change."""
    if config.source == "python_stdlib":
        return {"source": "python_stdlib", "part": config.part, "order": "hashed", "files": stdlib_identity()}
    if config.source == "hub":
        names = ("hub_id", "hub_config", "hub_revision", "split", "text_field")
        return {"source": "hub"} | {name: getattr(config, name) for name in names}
    files = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in text_files(config, field)]
    return {"source": "files", "text_field": config.text_field, "files": files}
