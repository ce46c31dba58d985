"""Documents of a dataset of the Hugging Face hub, streamed. Only data files are read: a script is never run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from transact.config import TextConfig
from transact.data.local_files import LeftOut, has_words

_checked: set[tuple[str | None, ...]] = set()  # the points of a sweep ask for the same
SEED = 0  # of the order of a dataset's files: the same on every machine


class HubUnavailable(ValueError):
    """The hub, or the dataset on it, cannot be had. is_absent: the hub does not answer, which says nothing of it."""

    def __init__(self, message: str, *, is_absent: bool) -> None:
        super().__init__(message)
        self.is_absent = is_absent


def hub_documents(text: TextConfig, field: str, left_out: LeftOut) -> Iterator[str]:
    """Every document once; the files of the dataset in an order of their own, each from its beginning on.

    Raises:
        HubUnavailable: there is no such dataset, configuration, split or revision, or it cannot be read.
        ValueError: a document is something else than text.
    """
    # A document of each of ten files in turn. Files alone are shuffled: a buffer would tear apart what follows on.
    dataset = _dataset(text, field).shuffle(seed=SEED, buffer_size=1)
    for number, value in enumerate(_values(dataset, text, field), start=1):
        if has_words(value):
            yield value
        else:
            left_out.add(f"document {number:,} of {text.hub_id}".__str__)


def check_hub_text(text: TextConfig, field: str) -> None:
    """Ask the hub for the dataset and read its first document: a few requests, no more than a part of one file.

    Raises:
        HubUnavailable, ValueError: as `hub_documents`; the dataset has no such field.
    """
    name = (text.hub_id, text.hub_config, text.hub_revision, text.split, text.text_field)
    if name not in _checked:
        next(_values(_dataset(text, field), text, field), None)
        _checked.add(name)


def _values(dataset: Any, text: TextConfig, field: str) -> Iterator[str | None]:
    rows = iter(dataset)
    for number in itertools.count(1):
        try:
            row = next(rows, None)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - the network, damaged files: the library fails in every way
            raise _unavailable(text, field, error, f" after {number - 1:,} documents") from None
        if row is None:
            return
        if number == 1 and text.text_field not in row:
            names = ", ".join(map(repr, row))
            raise ValueError(f"{field}.text_field={text.text_field!r} is not in {text.hub_id!r}, which has: {names}")
        value = row.get(text.text_field)
        if value is not None and not isinstance(value, str):
            kind = type(value).__name__
            raise ValueError(
                f"{field}.text_field={text.text_field!r}: document {number:,} of {text.hub_id!r} holds a {kind}, it "
                "must be text"
            )
        yield value


def _dataset(text: TextConfig, field: str) -> Any:
    import datasets

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it tells of errors besides raising them
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(
            f"hf://datasets/{text.hub_id}",  # never a folder here that is called so
            text.hub_config,
            split=text.split,
            revision=text.hub_revision,
            streaming=True,
        )
    except Exception as error:  # noqa: BLE001 - as above
        raise _unavailable(text, field, error) from None


def _unavailable(text: TextConfig, field: str, error: Exception, when: str = "") -> HubUnavailable:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
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
