"""Documents to train and evaluate on: from local files, a data set of the Hub, or Python's standard library."""

from __future__ import annotations

import codecs
import glob
import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transact.config.inputs import TextConfig
from transact.data.conversations import TOOLS_FIELD, conversation_of
from transact.data.filters import filter_identity, kept
from transact.data.local_files import READERS, kind_of, shuffled_documents
from transact.data.rows import LeftOut, NoText, Source, has_words, row_of_line, text_of_row
from transact.data.stdlib_text import stdlib_documents, stdlib_identity
from transact.data.streamed_files import DAMAGES, OPENERS, open_arrow, open_csv, open_stream
from transact.data.tokenised_files import token_files
from transact.errors import LONGEST_REASON, Refusal, one_line

_checked: set[tuple[str | None, ...]] = set()  # found on the Hub before: the points of a sweep ask for the same
SEED = 0  # of the shuffled order of a dataset's files, the same on every machine


class HubUnavailable(Refusal):
    """A dataset cannot be read from the Hub.

    is_absent: the Hub does not answer, which says nothing about the dataset.
    """

    def __init__(self, message: str, *, is_absent: bool) -> None:
        super().__init__(message)
        self.is_absent = is_absent


def hub_documents(text: TextConfig, field: str, left_out: LeftOut) -> Iterator[str]:
    """Yield every document of a Hub dataset once: its files in shuffled order, each from its beginning on.

    Raises:
        HubUnavailable: there is no such dataset, configuration, split or revision, or it cannot be read.
        ValueError: a document is something other than text.
    """
    # One document from each of ten files in turn. Only files are shuffled: a buffer would break up their order.
    dataset = _dataset(text, field).shuffle(seed=SEED, buffer_size=1)
    for number, value in enumerate(_values(dataset, text, field), start=1):
        if has_words(value):
            yield value
        else:
            left_out.add(f"document {number:,} of {text.hub_id}".__str__)


def check_hub_text(text: TextConfig, field: str) -> None:
    """Ask the Hub for the dataset and read its first document: a few requests, no more than a part of one file.

    Raises:
        HubUnavailable, ValueError: as `hub_documents`; ValueError also where the dataset has no such field.
    """
    name = (text.hub_id, text.hub_config, text.hub_revision, text.split, *text.row_field)
    if name not in _checked:
        next(_values(_dataset(text, field), text, field), None)
        _checked.add(name)


def _values(dataset: Any, text: TextConfig, field: str) -> Iterator[str | None]:
    rows, (setting, name), read = iter(dataset), text.row_field, reader_of(text)
    for number in itertools.count(1):
        try:
            row = next(rows, None)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - network, damaged files: the library raises errors of every kind
            raise _unavailable(text, field, error, f" after {number - 1:,} documents") from None
        if row is None:
            return
        if number == 1 and name not in row:
            names = ", ".join(map(repr, row))
            raise ValueError(f"{field}.{setting}={name!r} is not in {text.hub_id!r}, which has: {names}")
        try:
            value = read(row)
        except NoText as error:
            raise ValueError(f"{field}.{setting}: document {number:,} of {text.hub_id!r} {error}") from None
        yield value


def reader_of(config: TextConfig) -> Callable[[Mapping[str, Any]], str | None]:
    """Return what reads the text of a row."""
    if config.messages_field is None:
        return partial(text_of_row, text_field=config.text_field)
    return partial(conversation_of, messages_field=config.messages_field)


def _dataset(text: TextConfig, field: str) -> Any:
    import datasets

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs errors besides raising them
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(
            f"hf://datasets/{text.hub_id}",  # never a local folder of that name
            text.hub_config,
            split=text.split,
            revision=text.hub_revision,
            streaming=True,
        )
    except Exception as error:  # noqa: BLE001 - as above
        raise _unavailable(text, field, error) from None


def _unavailable(text: TextConfig, field: str, error: Exception, when: str = "") -> HubUnavailable:
    reason = one_line(error, LONGEST_REASON)
    if "scripts are no longer supported" in reason:
        reason = "it is a script, and scripts are not run: choose a dataset of parquet, JSON or text files"
    described = f"{field}.hub_id={text.hub_id!r}"
    if text.hub_config is not None:
        described += f" (hub_config={text.hub_config!r})"
    absent = isinstance(error, ConnectionError) or type(error).__name__ in (
        "OfflineModeIsEnabled",
        "LocalEntryNotFoundError",
    )
    return HubUnavailable(f"{described} cannot be read from the hub{when}: {reason}", is_absent=absent)


SNIFFED_BYTES = 65_536
SHOWN_FIELDS = 20
TEXT_TYPES = ("string", "large_string", "string_view")


def text_files(config: TextConfig, field: str) -> list[Path]:
    """Return the local files of text, or of tokens, that the patterns name, sorted.

    A file of that very name comes before a pattern.

    Raises:
        ValueError: a pattern names no file, or a file of a kind that is not supported.
    """
    if config.source == "tokens":
        return [each.path for each in token_files(config, field)]
    found: set[Path] = set()
    for pattern in config.files:
        files = [path for path in _matches(pattern) if path.is_file()]
        if not files:
            hint = ": it is a folder; add /*.txt or the like" if Path(pattern).is_dir() else ""
            raise ValueError(f"{field}.files: {pattern!r} names no file{hint}")
        found.update(files)
    for path in found:
        if kind_of(path) is None:
            kinds = f"{', '.join(READERS)}, and but for the last two each also with {', '.join(OPENERS)}"
            raise ValueError(f"{field}.files: {str(path)!r} is not one of {kinds}")
    return sorted(found)


def _matches(pattern: str) -> list[Path]:
    if "\0" in pattern:
        return []
    literal = Path(pattern)
    return [literal] if literal.is_file() else [Path(name) for name in glob.glob(pattern, recursive=True)]


def is_same_content(one: Path, other: Path) -> bool:
    """Return whether two files of the same size are one, or alike at the beginning, in the middle and at the end."""
    if one.samefile(other):
        return True
    size = one.stat().st_size
    with one.open("rb") as first, other.open("rb") as second:
        for place in (0, size // 2, max(0, size - SNIFFED_BYTES)):
            first.seek(place)
            second.seek(place)
            if first.read(SNIFFED_BYTES) != second.read(SNIFFED_BYTES):
                return False
    return True


def check_text(config: TextConfig, field: str) -> None:
    """Check the beginning of every local file before any work starts.

    Raises:
        ValueError: a file is missing, empty, binary, or has no field with text or with conversations.
    """
    if config.source == "tokens":
        token_files(config, field)
    if config.source != "files":
        return
    for path in text_files(config, field):
        if path.stat().st_size == 0:
            raise ValueError(f"{field}.files: {str(path)!r} is empty")
        is_chat, kind = config.messages_field is not None, kind_of(path) or ""
        if is_chat and kind in ("text", "csv"):
            name = f"{field}.messages_field={config.messages_field!r}"
            kinds = "jsonl, json, parquet and arrow files can"
            raise ValueError(f"{name} is not allowed: {str(path)!r} cannot hold conversations; {kinds}")
        try:
            _CHECKS[kind](path, config, field)
            if is_chat:  # its columns may have any type: the first row tells
                next(shuffled_documents([_source(path, config, field, LeftOut())]), None)
        except DAMAGES as error:
            reason = one_line(error, LONGEST_REASON)
            raise ValueError(f"{field}.files: {str(path)!r} cannot be read: {reason!r}") from None


def _check_characters(path: Path, config: TextConfig, field: str) -> None:
    with open_stream(path) as file:
        head = file.read(SNIFFED_BYTES)
    try:
        # Incremental: a character may be cut off at the end of what was read.
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ValueError(f"{field}.files: {str(path)!r} is binary, not UTF-8 text")
    if not has_words(text.lstrip("\ufeff")):
        raise ValueError(f"{field}.files: {str(path)!r} holds only white space")


def _check_json(path: Path, config: TextConfig, field: str) -> None:
    """Raise ValueError unless the first line has the text field."""
    _check_characters(path, config, field)
    with open_stream(path) as file:
        line = file.readline()
    first = line.removeprefix(codecs.BOM_UTF8).splitlines()[:1] or [b""]
    try:
        row = row_of_line(first[0])
        text = None if row is None else reader_of(config)(row)
    except NoText as error:
        raise ValueError(f"{field}.files: {str(path)!r} {error}, in line 1") from None
    if text is None and config.row_field[1] not in (row or ()):  # a row without words is counted when it is read
        raise _no_such_field(path, config, field, [*(row or ())])


def _check_csv(path: Path, config: TextConfig, field: str) -> None:
    """Raise ValueError unless the first row names the text field, once."""
    _check_characters(path, config, field)
    with open_csv(path) as rows:
        names = next(rows, [])
    if names.count(config.text_field) != 1:
        raise _no_such_field(path, config, field, names)


def _no_such_field(path: Path, config: TextConfig, field: str, names: list[str]) -> ValueError:
    (setting, name), shown = config.row_field, ", ".join(map(repr, names[:SHOWN_FIELDS])) or "nothing"
    return ValueError(f"{field}.{setting}={name!r} is not in {str(path)!r}, which has: {shown}")


def _check_parquet(path: Path, config: TextConfig, field: str) -> None:
    import pyarrow.lib
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (pyarrow.lib.ArrowException, OSError, ValueError):
        raise ValueError(f"{field}.files: {str(path)!r} is not a complete parquet file") from None
    if rows == 0:
        raise ValueError(f"{field}.files: {str(path)!r} is empty: it has no rows")
    _check_schema(schema, path, config, field)


def _check_arrow(path: Path, config: TextConfig, field: str) -> None:
    import pyarrow.lib

    try:
        with open_arrow(path) as (schema, _):
            pass
    except (pyarrow.lib.ArrowException, OSError):
        raise ValueError(f"{field}.files: {str(path)!r} is not a complete Arrow file") from None
    _check_schema(schema, path, config, field)


def _check_schema(schema: Any, path: Path, config: TextConfig, field: str) -> None:
    setting, name = config.row_field
    if schema.names.count(name) != 1:
        raise _no_such_field(path, config, field, schema.names)
    kind = schema.field(name).type
    is_text = str(getattr(kind, "value_type", kind)) in TEXT_TYPES and not str(kind).startswith("list")
    if not is_text and config.messages_field is None:
        raise ValueError(f"{field}.{setting}={name!r} is of type {str(kind)!r} in {str(path)!r}, it must be text")


_CHECKS: dict[str, Callable[[Path, TextConfig, str], None]] = {
    "text": _check_characters,
    "json": _check_json,
    "csv": _check_csv,
    "parquet": _check_parquet,
    "arrow": _check_arrow,
}


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


def _source(path: Path, config: TextConfig, field: str, left_out: LeftOut) -> Source:
    _, name = config.row_field
    fields = (name,) if config.messages_field is None else (name, TOOLS_FIELD)
    return Source(path=path, fields=fields, read=reader_of(config), setting=f"{field}.files", left_out=left_out)


def text_identity(config: TextConfig, field: str) -> dict[str, Any]:
    """Return what a token store of this text depends on besides the tokenizer.

    Local files count by path, size and time of change.
    """
    filtered = {} if config.filter is None else {"filter": filter_identity(config.filter)}
    whole = {"source": config.source, "order": "hashed"} | filtered
    if config.source == "python_stdlib":
        return whole | {"part": config.part, "files": stdlib_identity()}
    if config.source == "tokens":
        described = [path for each in token_files(config, field) for path in (each.path, each.index) if path]
        return whole | {"files": _identities(described)}
    setting, name = config.row_field
    read = {setting: name} | ({} if config.messages_field is None else {"loss": config.loss})
    if config.source == "hub":
        names = ("hub_id", "hub_config", "hub_revision", "split")
        return whole | {name: getattr(config, name) for name in names} | read
    return whole | {"files": _identities(text_files(config, field))} | read


def _identities(files: list[Path]) -> list[list[object]]:
    return [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
