"""What mode=estimate shows of every text: its first document as tokens, and about how much there is of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from transact.config.inputs import TextConfig
from transact.config.run import RunConfig
from transact.data.chat_template import chat_template_of
from transact.data.document_marks import document_marks
from transact.data.local_files import is_streamed, kind_of, open_parquet
from transact.data.remote_files import DataFile, for_each
from transact.data.row_reader import reader_of
from transact.data.rows import NoText, row_of_line
from transact.data.stdlib_text import stdlib_identity
from transact.data.text import check_text, documents, text_files
from transact.data.tokenised_files import token_files
from transact.estimate.storage import wanted_sequences
from transact.models.folder import is_at_hand, is_hub_reachable
from transact.models.stock import load_tokenizer
from transact.stages.text_checks import check_adaptive, check_apart, open_tokens

SAMPLED_DOCUMENTS, SAMPLED_LINES, SAMPLED_BYTES = 32, 200, 262_144  # the last: read at once
SHOWN_TOKENS, SHOWN_CHARACTERS = 12, 60


def text_samples(config: RunConfig, sequence_length: int, trained: int) -> dict[str, Any]:
    """Return what is found of every text, and what is wrong, a line for each problem.

    A text that is not here, as files of the cluster are not on a laptop, is a problem in words and no error.

    Args:
        sequence_length: in tokens, where the setting leaves it to the model.
        trained: tokens of recovery.
    """
    config = replace(config, data=replace(config.data, sequence_length=sequence_length))
    tokenizer, problems = None, list[str]()
    found: dict[str, dict[str, Any]] = {}
    if is_at_hand(config.model):
        try:
            tokenizer = load_tokenizer(Path(config.model.path or ""))
        except ValueError as error:
            problems.append(str(error))
    wanted = wanted_sequences(config, trained)
    # How often a text is used does not follow from what is tokenised of it where others may stand in for it.
    sources, is_adaptive = config.data.train.sources.values(), config.data.train.adaptive
    is_fixed = not is_adaptive and all(source.at_end == "repeat" for source in sources)
    apart = {**config.data.training_texts(), "data.evaluation": config.data.evaluation}
    for setting, text in config.texts().items():
        try:
            sample = _sample(text, setting, tokenizer, config)
            for other in [name for name in found if name in apart and setting in apart]:
                check_apart(apart[other], other, text, setting)
        except ValueError as error:
            problems.append(str(error))
        else:
            amount = {"wanted_tokens": wanted[setting] * sequence_length, "repeats_if_short": is_fixed}
            found[setting] = sample | amount
    try:
        check_adaptive(config)
    except ValueError as error:
        problems.append(str(error))
    return {"texts": found, "problems": problems}


def _sample(text: TextConfig, setting: str, tokenizer: Any, config: RunConfig) -> dict[str, Any]:
    """Return how the first document begins, in words and in tokens, and about how many tokens there are.

    None: not known, as without a tokenizer.
    """
    from huggingface_hub import is_offline_mode

    if text.source == "hub" and (is_offline_mode() or not is_hub_reachable()):
        raise ValueError(f"{setting}: the Hub is not reachable, so nothing of {text.hub_id!r} was read")
    check_text(text, setting)
    if text.source == "tokens":
        return _sample_of_tokens(text, setting, tokenizer, config)
    sample = list(itertools.islice(documents(text, setting), SAMPLED_DOCUMENTS))
    if not sample:
        raise ValueError(f"{setting} has no document with text")
    if tokenizer is None:
        return {"first": sample[0][:SHOWN_CHARACTERS], "first_tokens": None, "tokens": None}
    size, encoded = _text_bytes(text, setting), _encode(text, setting, sample, tokenizer, config.data.document_marks)
    count, read = sum(map(len, encoded)), sum(len(each.encode()) for each in sample)
    return {
        "first": sample[0][:SHOWN_CHARACTERS],
        "first_tokens": tokenizer.convert_ids_to_tokens(encoded[0][:SHOWN_TOKENS]),
        "tokens": None if size is None else round(size * count / read),
    }


def _sample_of_tokens(text: TextConfig, setting: str, tokenizer: Any, config: RunConfig) -> dict[str, Any]:
    """Return what `_sample` does, of a text that is tokenised already: its first document by what its tokens mean."""
    if tokenizer is None:
        files = token_files(text, setting)
        first = f"tokens {' '.join(map(str, files[0].tokens[:SHOWN_TOKENS]))}"
        return {"first": first, "first_tokens": None, "tokens": sum(len(each.tokens) for each in files)}
    whole = open_tokens(text, setting, tokenizer, config.data.document_marks, config.model.path)
    sample, _ = whole.read(itertools.islice(whole.documents(), SAMPLED_DOCUMENTS))
    if not sample:
        raise ValueError(f"{setting} has no document with text")
    return {
        "first": sample[0].text[:SHOWN_CHARACTERS],
        "first_tokens": tokenizer.convert_ids_to_tokens(sample[0].tokens[:SHOWN_TOKENS]),
        "tokens": whole.num_tokens,
    }


def _encode(text: TextConfig, setting: str, sample: list[str], tokenizer: Any, marks: str) -> list[list[int]]:
    """Return the tokens of some documents. marks: data.document_marks."""
    chat = chat_template_of(text, setting, tokenizer, document_marks(tokenizer, marks))
    if chat is not None:
        return [each.tokens for each in chat.encode(sample)]
    return [each.ids for each in tokenizer.backend_tokenizer.encode_batch_fast(sample, add_special_tokens=False)]


def _text_bytes(text: TextConfig, setting: str) -> float | None:
    """Return about how many bytes of text there are; None where no size tells it."""
    if text.source == "hub":
        return None
    if text.source == "python_stdlib":
        return float(sum(int(str(size)) for _, size in stdlib_identity())) if text.part == "train" else None
    sizes = for_each(partial(_bytes_of_file, text), text_files(text, setting))
    return None if None in sizes else float(sum(size or 0.0 for size in sizes))


def _bytes_of_file(text: TextConfig, path: DataFile) -> float | None:
    if kind_of(path) == "parquet":
        return None if text.messages_field is not None else _bytes_of_parquet(path, text.row_fields)
    if is_streamed(path):
        return None
    size = float(path.stat().st_size)
    return size * _share_of_text(path, text) if kind_of(path) == "json" else size


def _bytes_of_parquet(path: DataFile, fields: tuple[str, ...]) -> float:
    with open_parquet(path) as file:
        found = file.metadata
        groups = [found.row_group(number) for number in range(found.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    return float(sum(each.total_uncompressed_size for each in columns if each.path_in_schema in fields))


def _share_of_text(path: DataFile, config: TextConfig) -> float:
    """Return which share of the first lines' bytes are text."""

    read = reader_of(config)

    def texts() -> Iterator[tuple[int, int]]:
        with path.open("rb", SAMPLED_BYTES) as file:
            for number, line in enumerate(itertools.islice(file, SAMPLED_LINES)):
                try:
                    row = row_of_line(line, is_first=number == 0)
                    text = None if row is None else read(row)
                except NoText:
                    text = None
                yield len((text or "").encode()), len(line)

    inside, whole = (sum(sizes) for sizes in zip(*texts(), strict=True))
    return inside / whole
