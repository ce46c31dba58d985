"""Documents of a data set of the Hugging Face Hub, read from there as they are needed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from transact.config.inputs import TextConfig
from transact.data.row_reader import check_fields, reader_of
from transact.data.rows import LeftOut, NoText, has_words
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
    name = (text.hub_id, text.hub_config, text.hub_revision, text.split, *text.row_setting)
    if name not in _checked:
        next(_values(_dataset(text, field), text, field), None)
        _checked.add(name)


def _values(dataset: Any, text: TextConfig, field: str) -> Iterator[str | None]:
    rows, read = iter(dataset), reader_of(text)
    for number in itertools.count(1):
        try:
            row = next(rows, None)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - network, damaged files: the library raises errors of every kind
            raise _unavailable(text, field, error, f" after {number - 1:,} documents") from None
        if row is None:
            return
        if number == 1:
            check_fields(text, field, text.hub_id or "", [*row])
        try:
            value = read(row)
        except NoText as error:
            raise ValueError(f"{field}.{text.row_setting[0]}: document {number:,} of {text.hub_id!r} {error}") from None
        yield value


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
