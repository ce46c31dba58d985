"""The texts of a run: training text with its order, held-out text and further ones, as token stores that exist."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from transact.data.token_store import TokenStore
from transact.data.training_text import JoinedStores, TrainingOrder, TrainingStore, sequences_by_text, training_text
from transact.errors import Refusal
from transact.rounds import reserved_sequences, text_sequences
from transact.runs.run_record import read_record
from transact.stages.job import Job
from transact.stages.token_stores import open_store


class UnusableText(Refusal):
    """A text that is too short for what was asked, as its tokens show; every rank finds it so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """Training text with its order, the held-out text that figures are reported on, and eval.texts by name.

    trained: the stores that the training text is made of, by the settings of their texts. overlap: which share of each
    held-out text stands in the training text too, as `measure_overlap` returns.
    """

    train: TrainingStore
    order: TrainingOrder
    trained: Mapping[str, TokenStore]
    evaluation: TokenStore
    further: Mapping[str, TokenStore] = field(default_factory=dict)
    overlap: Mapping[str, float] = field(default_factory=dict)


def prepare_texts(job: Job, model_folder: Path) -> Texts:
    """Tokenise what is not tokenised yet and open both stores (collective).

    Raises:
        ValueError: the text is shorter than the reserved part and one batch, or not the one that the run began with.
    """
    config = job.config
    reserved = reserved_sequences(config)
    trained = job.outline.tokens // config.data.sequence_length
    asked = config.data.evaluation_sequences
    evaluation = open_store(job, "data.evaluation", config.data.evaluation, model_folder, asked)
    held_out = frozenset(evaluation.documents().tolist())
    wanted = sequences_by_text(config.data, text_sequences(config, job.outline.tokens), reserved)
    stores = {
        setting: open_store(job, setting, text, model_folder, wanted[setting], held_out=held_out)
        for setting, text in config.data.training_texts().items()
    }
    needed, found = reserved + min(config.recover.batch, trained), sum(each.num_sequences for each in stores.values())
    if found < needed:
        raise UnusableText(
            f"data.train has {found} sequences of {config.data.sequence_length} tokens; at least {needed} are needed: "
            f"{reserved} for validation and calibration, one batch for recovery"
        )
    train, order = training_text(config.data, stores, reserved, config.seed)
    if config.mode != "tokenize" and evaluation.num_sequences < job.group.world_size:
        raise UnusableText(
            f"data.evaluation has {evaluation.num_sequences} sequences for {job.group.world_size} ranks: "
            "there must be at least one for each rank"
        )
    if evaluation.num_sequences < asked:
        job.say(f"data.evaluation has {evaluation.num_sequences} sequences, fewer than the {asked} that were asked for")
    for setting, used, passes in zip(stores, order.used(trained), order.passes(trained), strict=True):
        if passes > 1:
            job.say(
                f"{setting} has {used / passes * train.sequence_length:,.0f} tokens for recovery, "
                f"{used * train.sequence_length:,} are asked for: each is used {passes:.1f} times"
            )
    _tell_shared_documents(job, stores)
    texts = Texts(train=train, order=order, trained=stores, evaluation=evaluation)
    if config.mode != "tokenize":
        validation = order.reserved(0, config.recover.validation_sequences)
        if config.data.train.adaptive:
            assert isinstance(train, JoinedStores)
            for setting, own in zip(stores, train.by_store(validation), strict=True):
                check_has_targets(setting, train, own, "validation")
        check_has_targets("data.train", train, validation, "validation")
        check_has_targets("data.evaluation", evaluation, torch.arange(evaluation.num_sequences), "evaluation")
    job.group.on_main(lambda: _check_same_texts(job, texts))
    return texts


def _tell_shared_documents(job: Job, stores: Mapping[str, TokenStore]) -> None:
    """Say where texts of a mixture have documents in common: what one reserves the other may train on."""
    if not job.group.is_main:
        return
    for (one, first), (other, second) in itertools.combinations(stores.items(), 2):
        shared = trained_on(second, first)
        if shared:
            job.say(
                f"warning: {shared:,} documents of {other} stand in {one} too: what is reserved of one, for validation "
                "and calibration, may be trained on as a part of the other"
            )


def check_has_targets(setting: str, store: TrainingStore, positions: torch.Tensor, use: str) -> None:
    """Raise UnusableText where no token of these sequences counts for a loss: it would have no mean."""
    if store.num_targets(positions) == 0:
        alone = store.position_ids(positions) is not None
        wanted = "token with a loss (data.packing=documents: the first of a document has none)" if alone else "answer"
        raise UnusableText(f"{setting}: the {len(positions)} sequences of {use} hold no {wanted}: take more of them")


def _check_same_texts(job: Job, texts: Texts) -> None:
    """Raise ValueError unless the tokens are those that the run began with, wherever they are stored now.

    A variant that has none yet began with those of the run whose cut it takes over; another number of tokens of
    recovery makes another store of the same training text, which cannot be told from another text.
    """
    own, base = (read_record(folder) if folder else None for folder in (job.folder.path, job.config.variant_of))
    is_own = "texts" in (own or {})
    begun = ((own if is_own else base) or {}).get("texts", {})
    for setting, described in describe_texts(texts).items():
        before = begun.get(setting, described)
        is_as_long = before["sequences"] == described["sequences"]
        if (is_own or is_as_long or setting == "data.evaluation") and before["sha256"] != described["sha256"]:
            raise ValueError(
                f"{setting}: the text is another one than {'this run' if is_own else 'the run of the cut'} began with "
                f"(tokens of SHA-256 {described['sha256'][:12]}, it began with {before['sha256'][:12]}): bring the "
                "text back, or choose another name="
            )


def record_texts(job: Job, texts: Texts) -> None:
    """Write into run.json which tokens the run works with."""
    if job.group.is_main:
        job.folder.note(texts=describe_texts(texts), texts_trained_on=dict(texts.overlap))


def describe_texts(texts: Texts) -> dict[str, Any]:
    """Return what run.json says of the training and the held-out texts."""
    stores = {**texts.trained, "data.evaluation": texts.evaluation}
    return {
        setting: {
            "store": store.name,
            "sha256": store.sha256,
            "sequences": store.num_sequences,
            "documents": store.index["documents"],
            "documents_left_out": store.index["documents_left_out"],
        }
        for setting, store in stores.items()
    }


def mixture_figures(texts: Texts, sequences: int) -> dict[str, float]:
    """Return what of a mixture the first training sequences are: each text's share of them, and how often it was used.

    Nothing for a text by itself.
    """
    if len(texts.trained) == 1:
        return {}
    names = [setting.removeprefix("data.train.sources.") for setting in texts.trained]
    used, passes = texts.order.used(sequences), texts.order.passes(sequences)
    shares = {f"data/share/{name}": count / sequences for name, count in zip(names, used, strict=True)}
    return shares | {f"data/passes/{name}": count for name, count in zip(names, passes, strict=True)}


def tokens_made(texts: Texts) -> list[str]:
    """Return lines that say how many tokens there are of each text, and where."""
    further = {f"eval.texts.{name}": store for name, store in texts.further.items()}
    stores = {**texts.trained, "data.evaluation": texts.evaluation, **further}
    return [
        f"{name}: {store.num_sequences * store.sequence_length:,} tokens in {store.folder}"
        for name, store in stores.items()
    ]


def open_further_texts(job: Job, model_folder: Path, train: TrainingStore) -> dict[str, TokenStore]:
    """Open the texts of eval.texts by name, and tokenise those that are not tokenised yet (collective).

    Raises:
        ValueError: a text cannot be read, or is shorter than one sequence.
    """
    config = job.config.eval
    stores = {
        name: open_store(job, f"eval.texts.{name}", text, model_folder, config.text_sequences)
        for name, text in config.texts.items()
    }
    for name, store in stores.items():
        check_has_targets(f"eval.texts.{name}", store, torch.arange(store.num_sequences), "it")
        shared = trained_on(store, train)
        if shared:
            job.say(
                f"eval.texts.{name}: {shared} of its {store.index['documents']} documents are trained on (data.train): "
                "its perplexity is not one of held-out text, and comparison.json says so"
            )
    return stores


def trained_on(store: TokenStore, train: TrainingStore) -> int:
    """Return how many documents of a text are in the training text too, word for word."""
    return int(train.holds(store.documents()).sum())
