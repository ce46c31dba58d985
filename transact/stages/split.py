"""Split: how the cut is shared between attention and MLP, by measuring every way that meets the budget.

Each candidate pair of dimensions is cut out of the parent in one go, by the run's own method, and its loss on the
validation part of the training text decides. Held-out text is not looked at.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transact.files import read_json, remove_flat, temporary_name, write_json
from transact.geometry import Geometry
from transact.models.folder import geometry_of
from transact.outline import split_candidates
from transact.runtime.engine import open_engine
from transact.stages.evaluate import perplexity_of
from transact.stages.job import Job
from transact.stages.plan import collect_evidence, decide
from transact.stages.recover import validation_loss
from transact.stages.slice import cut_checkpoint
from transact.stages.texts import Texts


def trial_folder(output: Path) -> Path:
    """Where each candidate is written in turn, to be measured."""
    return temporary_name(output.with_name("split_candidate"))


def choose_split(job: Job, texts: Texts, parent: Path, statistics: Path, grams: Path, output: Path) -> None:
    """Write split.json: the candidates with their losses, and the chosen dimensions."""
    whole = geometry_of(parent)
    candidates = split_candidates(job.config.prune, whole)
    evidence = collect_evidence(job, parent, statistics)
    trial = trial_folder(output)
    rows: list[dict[str, Any]] = []
    for target in candidates:
        if job.group.is_main:
            remove_flat(trial)
        plan = decide(job, evidence, parent, grams, target, parent=whole, asked=job.config.prune.remove_fraction)
        cut_checkpoint(job, texts, parent, plan, trial, grams)
        with open_engine(trial, job.config.engine, job.group) as engine:
            loss = validation_loss(job, texts, engine)
        rows.append({"geometry": target.to_dict(), "parameters": target.parameters(), "loss": loss})
        job.say(
            f"split: head_dim {target.head_dim}, {target.num_attention_heads} heads, intermediate_size "
            f"{target.intermediate_size}: perplexity {perplexity_of(loss):.2f} on validation text"
        )
    best = min(rows, key=lambda row: row["loss"])
    if job.group.is_main:
        remove_flat(trial)
        write_json(output, {"candidates": rows, "chosen": best["geometry"]})


def read_split(path: Path) -> Geometry:
    return Geometry.from_dict(read_json(path)["chosen"])
