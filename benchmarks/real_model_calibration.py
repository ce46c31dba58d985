"""One calibration for all methods that are measured on a real model, and how a row takes it over."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.trials import say
from transact.files import copy_finished, publish, read_json, temporary_name, write_json
from transact.pruning.statistics import ActivationStatistics, Statistic
from transact.rounds import Stage
from transact.runs.software import git_revision
from transact.stages.calibrate import SummedGrams, calibration_positions, collect, collect_gram_files
from transact.stages.chain import Prepared
from transact.stages.job import Job


def calibrate_once(job: Job, prepared: Prepared, needed: Sequence[Statistic], folder: Path) -> None:
    """Make statistics and Gram matrices for all methods in `folder`, unless they are there.

    As in a run the first Gram matrices are summed with the statistics; sums of gradients have a pass of their own.
    """
    texts, parent = prepared.texts, prepared.parent
    tokens = texts.train.sequences(calibration_positions(job, texts))
    names = sorted(each.name for each in needed)
    identity = {
        "revision": git_revision(),
        "parent": {name: file["size"] for name, file in prepared.record["files"].items()},
        "tokens_sha256": hashlib.sha256(tokens.numpy().tobytes()).hexdigest(),
    }
    described, statistics = folder / "calibration.json", folder / "statistics.safetensors"
    if described.is_file():
        found = read_json(described)
        if found["identity"] == identity and set(names) <= set(found["statistics"]):
            return
    shutil.rmtree(folder, ignore_errors=True)  # of other code, or what a killed attempt left
    folder.mkdir(parents=True)
    tensors: dict[str, torch.Tensor] = {}
    summed: SummedGrams | None = None
    for kind, wanted in (
        ("statistics", [each for each in needed if not each.needs_gradients]),
        ("gradients", [each for each in needed if each.needs_gradients]),
    ):
        if wanted:
            say(f"calibration: {kind} ({', '.join(each.name for each in wanted)}) of {tokens.numel():,} tokens")
            found_sums, found_grams = collect(job, texts, parent, wanted, with_grams=kind == "statistics")
            tensors, summed = tensors | found_sums.to_tensors(), summed or found_grams
    save_file(ActivationStatistics.from_tensors(tensors).to_tensors(), temporary_name(statistics))
    publish(temporary_name(statistics), statistics)
    say(f"calibration: Gram matrices of {tokens.numel():,} tokens")
    collect_gram_files(job, texts, parent, folder / "gram", summed)
    write_json(described, {"identity": identity, "statistics": names})


def take_calibration(job: Job, shared: Path) -> None:
    """Finish the stages of calibration of a row's first round by what `calibrate_once` made."""
    files = job.round(1)
    source = shared / files.statistics.name
    job.stage(Stage("calibrate", 1), files.statistics, lambda: copy_finished(source, files.statistics))
    if job.config.prune.method.needs_gram() and not job.is_finished(Stage("slice", 1)):
        job.stage(Stage("gram", 1), files.grams, lambda: copy_finished(shared / "gram", files.grams))
