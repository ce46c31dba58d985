"""What a finished run gives to its quantised variants: export, parent, calibration and held-out tokens, figures.

Everything is checked against what the run recorded; nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transact.config.compose import typed_config
from transact.config.run import RunConfig
from transact.data.token_store import TokenStore, store_damage
from transact.data.training_text import training_text
from transact.errors import one_line
from transact.files import read_json, verify_file
from transact.geometry import Geometry
from transact.models.folder import check_files, dtype_of, geometry_of
from transact.models.identity import difference, identify, identity_files
from transact.models.llama import is_stock
from transact.rounds import reserved_sequences
from transact.runs.run_record import read_config, read_record
from transact.stages.parent import recorded_parent

PARENT, PRUNED = "parent", "pruned"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A model that is quantised.

    Attributes:
        perplexity: as the run measured it.
        digest: of its weights, as the run recorded it.
    """

    folder: Path
    geometry: Geometry
    dtype: str
    perplexity: float
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedRun:
    """A run that can be quantised.

    Attributes:
        sources: by role, the pruned model first; the parent may be missing, and `parent_missing` then says why.
        calibration, evaluation: (sequences, length) tokens; the run's own.
        is_whole: whether these are all held-out tokens, so that the run's own figures are of the same.
        texts: the digests of both texts.
        dtype: that the run computes in.
    """

    folder: Path
    name: str
    sources: Mapping[str, Source]
    parent_missing: str | None
    calibration: Tensor
    evaluation: Tensor
    is_whole: bool
    texts: Mapping[str, str]
    dtype: str


def read_finished_run(folder: Path, token_store: Path | None = None, sequences: int | None = None) -> FinishedRun:
    """Read a run.

    Args:
        token_store: where its tokens are, if not where its configuration says.
        sequences: of held-out text to measure on, the first ones; None: all.

    Raises:
        ValueError: it is not finished, something of it is gone or damaged, or its layers differ.
    """
    record, settings = read_record(folder), read_config(folder)
    if record is None or settings is None:
        raise ValueError(f"{str(folder)!r} holds no run")
    if record.get("state") != "done" or "export" not in record["stages"] or not (folder / "result.json").is_file():
        raise ValueError(f"the run in {str(folder)!r} is not finished ({record.get('state')}): it has no export yet")
    config, result = typed_config(settings), read_json(folder / "result.json")
    if result["pruned"] is None:
        raise ValueError(f"the run in {str(folder)!r} has pruned nothing (mode={config.mode}): it has no parent")
    if config.data.evaluation.loss != "all":
        raise ValueError(
            f"the run in {str(folder)!r} has data.evaluation.loss={config.data.evaluation.loss!r}: its perplexities "
            "are of answers alone, and those of quantised variants would be of all tokens"
        )
    if config.data.packing != "stream":
        raise ValueError(
            f"the run in {str(folder)!r} has data.packing={config.data.packing!r}: variants are quantised and "
            "measured with tokens that attend to other documents"
        )
    pruned = _pruned(folder, record, result["pruned"]["perplexity"])
    parent, parent_missing = _parent(folder, result["dense"]["perplexity"])
    trained = {name: _store(config, record, name, token_store) for name in config.data.training_texts()}
    evaluation = _store(config, record, "data.evaluation", token_store)
    train, order = training_text(config.data, trained, reserved_sequences(config), config.seed)
    count = evaluation.num_sequences
    if sequences is not None and not 1 <= sequences <= count:
        raise ValueError(f"--sequences={sequences} is not allowed: the run has 1 to {count} sequences of held-out text")
    positions = order.reserved(config.recover.validation_sequences, config.prune.calibration_sequences)
    return FinishedRun(
        folder=folder,
        name=config.name,
        sources={PRUNED: pruned} | ({} if parent is None else {PARENT: parent}),
        parent_missing=parent_missing,
        calibration=train.sequences(positions),
        evaluation=evaluation.sequences(torch.arange(sequences or count)),
        is_whole=sequences in (None, count),
        texts={"calibration": " ".join(store.sha256 for store in trained.values()), "evaluation": evaluation.sha256},
        dtype=config.engine.dtype,
    )


def _pruned(folder: Path, record: Mapping[str, Any], perplexity: float) -> Source:
    export, files = folder / "export", record["stages"]["export"]["files"]
    for name, recorded in files.items():
        verify_file(folder / name, recorded)
    if not is_stock(read_json(export / "config.json")):
        raise ValueError(
            f"the layers of {str(export)!r} differ, and its own code builds them (prune.shapes, "
            "prune.method.pair_scope): llm-compressor is used for models of transformers' own classes alone"
        )
    weights = sorted(each["sha256"] for name, each in files.items() if name.endswith(".safetensors"))
    return _source(export, perplexity, " ".join(weights))


def _parent(folder: Path, perplexity: float) -> tuple[Source | None, str | None]:
    """Return the parent, or None and why it cannot be compared with."""
    recorded = recorded_parent(folder)
    assert recorded is not None
    path = Path(str(recorded["path"]))
    try:
        check_files(path)
        found = {name: identify(path / name, in_full=False) for name in identity_files(path)}
    except (ValueError, OSError) as error:
        return None, one_line(error)
    changed = difference(recorded["files"], found)
    if changed is not None:
        return None, f"{str(path)!r} is not the model that the run began with ({changed})"
    weights = sorted(each["sample"] for name, each in found.items() if name.endswith(".safetensors"))
    return _source(path, perplexity, " ".join(weights)), None


def _source(folder: Path, perplexity: float, digest: str) -> Source:
    return Source(
        folder=folder, geometry=geometry_of(folder), dtype=dtype_of(folder), perplexity=perplexity, digest=digest
    )


def _store(config: RunConfig, record: Mapping[str, Any], name: str, given: Path | None) -> TokenStore:
    """Return the tokens that the run recorded under a setting's name.

    Raises:
        ValueError: they are gone, damaged or others.
    """
    root, recorded = given or Path(config.data.token_store), record["texts"][name]
    folder = root / recorded["store"]
    problem = store_damage(folder) if folder.is_dir() else "is not there"
    if problem is not None:
        raise ValueError(
            f"the tokens of {name}, {str(folder)!r}: {problem}; give --token-store, or start from the folder in which "
            f"the run was started ({os.getcwd()!r} is this one)"
        )
    store = TokenStore(folder)
    if store.sha256 != recorded["sha256"]:
        raise ValueError(f"the tokens of {name} in {str(folder)!r} are not those that the run worked with")
    return store
