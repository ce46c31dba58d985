"""The parent: checked before anything is written, and recognised as the same model at every start of a run.

It is checked by its files, by stock classes and weight by weight, and recognised by its content, wherever it lies.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from transact.config.inputs import ModelConfig
from transact.config.run import RunConfig
from transact.data.chat_template import chat_template_of, check_has_template
from transact.data.document_marks import document_marks
from transact.errors import one_line
from transact.export.gguf import check_gguf_tokenizer
from transact.files import DamagedFile, read_json
from transact.models.folder import check_files, geometry_of, hub_id, is_local
from transact.models.identity import Identity, difference, identify, identity_files, not_finite
from transact.models.model_files import CONFIG
from transact.models.stock import check_stock, load_tokenizer
from transact.models.tensor_files import ModelReader
from transact.runs.run_record import RECORD, WAY_OUT, read_record
from transact.stages.job import Job
from transact.stages.text_checks import open_tokens

Record = dict[str, Any]  # of the parent in run.json
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
PIECE_ELEMENTS = 1 << 24


def recorded_parent(run: Path) -> Record | None:
    """Return what run.json says of the parent that the run in this folder began with; None where there is none yet.

    Raises:
        ValueError: it cannot be read.
    """
    recorded = (read_record(run) or {}).get("parent")
    if recorded is None:
        return None
    files = recorded.get("files") if isinstance(recorded, dict) else None
    names = ("path", "hub_id", "revision", "commit")
    if not isinstance(files, dict) or not all(isinstance(file, dict) for file in files.values()):
        raise DamagedFile(run / RECORD, f"does not say which parent it began with; {WAY_OUT}")
    return {name: recorded.get(name) for name in names} | {"files": files}


def began_with(job: Job) -> Record | None:
    """Return the recorded parent of this run, or of the run whose cut it recovers; None where there is none yet.

    Raises:
        ValueError: it cannot be read.
    """
    base = job.config.variant_of
    own = recorded_parent(job.folder.path)
    return recorded_parent(base) if own is None and base is not None else own


def pinned(model: ModelConfig, recorded: Record | None) -> ModelConfig:
    """Return the model at the commit that the run began with, where it began with this one from the hub."""
    if recorded is None or recorded["commit"] is None or is_local(model.path or ""):
        return model
    is_same = (recorded["hub_id"], recorded["revision"]) == (model.path, model.revision)
    return replace(model, revision=recorded["commit"]) if is_same else model


def recognise(job: Job, folder: Path, commit: str | None, recorded: Record | None) -> Record:
    """Return the record of the parent for run.json, compared with what the run began with (collective).

    Args:
        commit: of a model of the hub.
        recorded: what run.json says.

    Raises:
        ValueError: on every rank, when the run began with another model.
    """
    model, in_full = job.config.model, job.config.engine.verify == "full"
    names, progress = identity_files(folder), job.group.watchdog.progress

    def identify_own() -> Identity:
        mine = names[job.group.rank :: job.group.world_size]
        return {name: identify(folder / name, in_full=in_full, on_read=progress) for name in mine}

    files: Identity = {name: found for part in job.group.everywhere(identify_own) for name, found in part.items()}
    if recorded is not None:
        changed = difference(recorded["files"], files)
        if changed is not None:
            raise ValueError(
                f"model.path={str(folder)!r} is not the model that the run in {str(job.folder.path)!r} began with "
                f"({changed}): bring that one back, or choose another name="
            )
        files = {name: recorded["files"][name] | found for name, found in files.items()}
        commit, revision = commit or recorded["commit"], recorded["revision"] if commit is None else model.revision
    else:
        revision = model.revision
    hub = hub_id(model.path or "") or (recorded or {}).get("hub_id")
    return {"path": str(folder.resolve()), "hub_id": hub, "revision": revision, "commit": commit, "files": files}


def judge_folder(config: RunConfig, folder: Path) -> None:
    """Check everything of a parent that can be checked without reading its weights.

    That includes what only the export at the end would meet.

    Raises:
        ValueError: one line that names the file, and what to do.
    """
    check_files(folder)
    try:
        check_stock(folder)
        tokenizer = load_tokenizer(folder)
        check_tokenizer(tokenizer, geometry_of(folder).vocab_size)
        check_chat_template(tokenizer)
    except ValueError as error:
        known = str(error).startswith("model.path")
        raise ValueError(str(error) if known else f"model.path={str(folder)!r}: {error}") from None
    check_gguf_tokenizer(config.export, folder)
    check_chats(config, tokenizer)
    for setting, text in config.texts().items():
        if text.source == "tokens":
            open_tokens(text, setting, tokenizer, config.data.document_marks, config.model.path)


def check_chats(config: RunConfig, tokenizer: Any) -> None:
    """Raise ValueError where a text or task is to go through the chat template, and the tokenizer's cannot be used."""
    marks = document_marks(tokenizer, config.data.document_marks)
    for setting, text in config.texts().items():
        chat_template_of(text, setting, tokenizer, marks)
    if config.eval.chat_template:
        check_has_template(tokenizer, "eval.chat_template=true")


def check_tokenizer(tokenizer: Any, vocab_size: int) -> None:
    """Check that every token that text is made of has a row in the embedding.

    Special tokens may have none: tokenizers are published with a padding token that the model never got. Where a text
    holds one all the same, the check of its token store finds it.

    Raises:
        ValueError: names the token that has none.
    """
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    special = {token for token, about in added.items() if about.special}
    vocabulary = {word: token for word, token in tokenizer.get_vocab().items() if token not in special}
    if not vocabulary:
        raise ValueError("the tokenizer's vocabulary is empty")
    token, largest = max(vocabulary.items(), key=lambda item: item[1])
    if largest >= vocab_size:
        raise ValueError(
            f"the tokenizer gives {token!r} the id {largest}, but the embedding has {vocab_size} rows (0 to "
            f"{vocab_size - 1}): remove the token, or take the tokenizer that belongs to the model"
        )


def check_chat_template(tokenizer: Any) -> None:
    """Check that the chat template parses; one that does not would be exported, and fail where the model is used.

    Raises:
        ValueError: names the place in the template.
    """
    from jinja2 import TemplateSyntaxError

    if not isinstance(tokenizer.chat_template, str):
        return
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    except TemplateSyntaxError as error:
        raise ValueError(
            f"the tokenizer's chat template does not parse (line {error.lineno}: {one_line(error)}): mend or remove it"
        ) from None
    except Exception:  # noqa: BLE001 - templates raise errors of their own, as where they want a system message
        return


def judge_weights(job: Job, folder: Path) -> None:
    """Check that all weights are finite, not all zero, and tied where config.json says so (collective).

    All weights are read once, each rank its share.

    Raises:
        ValueError: on every rank; names the tensor and its file.
    """
    with ModelReader(folder) as reader:
        names = sorted(reader.files)
        sizes = {name: torch.Size(reader.shape(name)).numel() for name in names}
        names.sort(key=lambda name: (-sizes[name], name))
        problem, only_zeros = None, True
        with job.progress("check weights", sum(sizes.values()), unit="weights") as bar:
            for first, number in enumerate(job.group.turns(len(names))):
                if number is not None and problem is None:
                    found, has_values = _look_through(job, reader, names[number])
                    only_zeros = only_zeros and not has_values
                    if found is not None:
                        problem = f"{names[number]} in {str(folder / reader.files[names[number]])!r} holds {found}"
                start = first * job.group.world_size
                bar.advance(sum(sizes[name] for name in names[start : start + job.group.world_size]))
        if job.group.is_main and problem is None:
            problem = _untied(reader, folder)
    problems, zeros = zip(*job.group.gather((problem, only_zeros)), strict=True)
    for each in problems:
        if each is not None:
            raise ValueError(f"model.path: {each}")
    if all(zeros):
        raise ValueError(f"model.path={str(folder)!r}: every weight matrix holds nothing but zeros")


def _look_through(job: Job, reader: ModelReader, name: str) -> tuple[str | None, bool]:
    """Return which values of a tensor are not finite, in words, and whether it is a matrix that is not all zeros."""
    problem, has_values = None, False
    for piece in torch.split(reader.tensor(name).flatten(), PIECE_ELEMENTS):
        problem = problem or not_finite(piece)
        has_values = has_values or (len(reader.shape(name)) > 1 and bool(piece.any()))
        job.group.watchdog.progress()
    return problem, has_values


def _untied(reader: ModelReader, folder: Path) -> str | None:
    """Return what is wrong where config.json ties the output layer but a stored one differs from the embedding.

    Versions of transformers choose differently: 4 takes the embedding, 5 the stored one.
    """
    tied = read_json(folder / CONFIG).get("tie_word_embeddings", False)
    if not tied or OUTPUT not in reader.files:
        return None
    if torch.equal(reader.tensor(OUTPUT), reader.tensor(EMBEDDING)):
        return None
    return (
        f"config.json says tie_word_embeddings=true, but {OUTPUT} in {str(folder / reader.files[OUTPUT])!r} is not the "
        "embedding: transformers 4 would ignore it and 5 would use it; say false in config.json to use it, or remove it"
    )
