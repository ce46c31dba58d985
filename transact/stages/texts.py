"""The token stores of a run: made by rank 0 if they are not there yet, then read by every rank."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transact.config import TextConfig
from transact.data.order import SequenceOrder
from transact.data.token_store import TokenStore, store_folder, tokenizer_digest, write_token_store
from transact.outline import Round, reserved_sequences
from transact.runtime.file_lock import exclusive
from transact.stages.job import Job


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """Training text with its order, the held-out text that figures are reported on, and eval.texts by name."""

    train: TokenStore
    order: SequenceOrder
    evaluation: TokenStore
    further: Mapping[str, TokenStore] = field(default_factory=dict)


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer of a model folder.

    Raises:
        ValueError: the folder has none.
    """
    from transformers import AutoTokenizer

    try:
        with _errors_only("transformers"):  # it suggests packages to install, over many lines
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - damaged files make its readers fail in every way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"model.path: no tokenizer in {str(folder)!r}: {reason}") from None
    if not tokenizer.is_fast:
        raise ValueError(f"model.path: {str(folder)!r} has no fast tokenizer (tokenizer.json)")
    # A tokenizer.json may hold what its maker trained with: documents would be cut to that, or filled up.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


@contextmanager
def _errors_only(library: str) -> Iterator[None]:
    logger = logging.getLogger(library)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def prepare_texts(job: Job, tokenizer_folder: Path, rounds: list[Round]) -> Texts:
    """Tokenise what is not tokenised yet and open both stores.

    Raises:
        ValueError: the text is shorter than the reserved part and one batch.
    """
    config = job.config
    reserved = reserved_sequences(config)
    trained = sum(each.tokens for each in rounds) // config.data.sequence_length
    train = open_store(job, "data.train", config.data.train, tokenizer_folder, reserved + trained)
    evaluation = open_store(
        job, "data.evaluation", config.data.evaluation, tokenizer_folder, config.data.evaluation_sequences
    )
    needed = reserved + min(config.recover.batch_sequences, trained)
    if train.num_sequences < needed:
        raise ValueError(
            f"data.train has {train.num_sequences} sequences of {train.sequence_length} tokens; at least {needed} are "
            f"needed: {reserved} for validation and calibration, one batch for recovery"
        )
    if evaluation.num_sequences < job.group.world_size:
        raise ValueError(
            f"data.evaluation has {evaluation.num_sequences} sequences for {job.group.world_size} ranks: "
            "there must be at least one for each rank"
        )
    order = SequenceOrder(num_sequences=train.num_sequences, num_reserved=reserved, seed=config.seed)
    asked = config.data.evaluation_sequences
    if evaluation.num_sequences < asked:
        job.say(f"data.evaluation has {evaluation.num_sequences} sequences, fewer than the {asked} that were asked for")
    if trained > order.num_trainable:
        job.say(f"data.train is used {trained / order.num_trainable:.1f} times: it has fewer tokens than asked for")
    return Texts(train=train, order=order, evaluation=evaluation)


def open_further_texts(job: Job, tokenizer_folder: Path) -> dict[str, TokenStore]:
    """The texts of eval.texts by name, tokenised if they are not yet. Collective.

    Raises:
        ValueError: a text is not to be had, or shorter than one sequence.
    """
    config = job.config.eval
    return {
        name: open_store(job, f"eval.texts.{name}", text, tokenizer_folder, config.text_sequences)
        for name, text in config.texts.items()
    }


def open_store(job: Job, setting: str, text: TextConfig, tokenizer_folder: Path, max_sequences: int) -> TokenStore:
    """A text as tokens, tokenised by rank 0 if it is not yet. Collective."""
    folder = job.group.on_main(
        lambda: _ensure_store(job, setting, text, tokenizer_folder, max_sequences), may_be_left=True
    )
    job.check_seen("data.token_store", Path(folder))
    return TokenStore(Path(folder))


def _ensure_store(job: Job, setting: str, text: TextConfig, tokenizer_folder: Path, max_sequences: int) -> str:
    from transact.data.text import documents, text_identity

    tokenizer = load_tokenizer(tokenizer_folder)
    length = job.config.data.sequence_length
    identity = {
        "text": text_identity(text, setting),
        "tokenizer": tokenizer_digest(tokenizer),
        "sequence_length": length,
        "max_sequences": max_sequences,
    }
    folder = store_folder(Path(job.config.data.token_store), identity)
    if folder.is_dir():
        return str(folder)
    # Runs that need the same text at the same time: one tokenises, the others wait for it.
    with exclusive(folder.with_suffix(".lock")):
        if not folder.is_dir():
            with job.progress(f"tokenise {setting}", length * max_sequences) as progress:
                write_token_store(
                    folder,
                    documents(text, setting),
                    tokenizer,
                    sequence_length=length,
                    max_sequences=max_sequences,
                    name=setting,
                    progress=progress.advance,
                )
    return str(folder)
