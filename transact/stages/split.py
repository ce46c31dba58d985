"""Split: how the cut is shared between attention and MLP, by measuring every way that meets the budget.

Each candidate pair of dimensions is cut out of the parent in one go, by the run's own method, and its loss on the
validation part of the training text decides. Held-out text is not looked at.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transact.engine.engine import open_engine
from transact.files import read_json, remove_flat, temporary_name, write_json
from transact.models.folder import geometry_of
from transact.pruning.selection import Selection
from transact.rounds import split_candidates
from transact.stages.evaluate import perplexity_of
from transact.stages.job import Job
from transact.stages.recover.loop import validation_loss
from transact.stages.select import collect_evidence, decide, greedy_channels
from transact.stages.slice import cut_checkpoint
from transact.stages.texts import Texts
from transact.stages.workload import elimination_share


def trial_folder(output: Path) -> Path:
    """Where each candidate is written in turn, to be measured."""
    return temporary_name(output.with_name("split_candidate"))


def choose_split(job: Job, texts: Texts, parent: Path, statistics: Path, grams: Path, output: Path) -> None:
    """Write split.json: the candidates with their losses, the chosen dimensions, and the selection that leads there."""
    settings, whole = job.config.prune, geometry_of(parent)
    candidates = split_candidates(settings, whole)
    evidence = collect_evidence(job, parent, statistics)
    widths = {target.intermediate_size for target in candidates}
    begun = elimination_share(job.config, whole)
    channels = greedy_channels(job, parent, grams, widths, share=(0.0, begun))
    trial = trial_folder(output)
    rows: list[dict[str, Any]] = []
    best, least = None, math.inf
    with job.progress("measure splits", len(candidates), unit="candidates", share=(begun, 1.0)) as bar:
        for target in candidates:
            if job.group.is_main:
                remove_flat(trial)
            selection = decide(
                job.config.prune, evidence, target, channels, parent=whole, asked=job.config.prune.remove_fraction
            )
            loss = _loss_after(job, texts, parent, selection, trial, grams)
            if best is None or loss < least:
                best, least = selection, math.inf if math.isnan(loss) else loss
            rows.append({"geometry": target.to_dict(), "parameters": target.parameters(), "loss": loss})
            job.say(
                f"split: head_dim {target.head_dim}, {target.num_attention_heads} heads, intermediate_size "
                f"{target.intermediate_size}: perplexity {perplexity_of(loss):.2f} on validation text"
            )
            bar.advance(1, perplexity=perplexity_of(loss))
    assert best is not None
    if job.group.is_main:
        remove_flat(trial)
        write_json(output, {"candidates": rows, "chosen": best.target.to_dict(), "selection": best.to_json()})


def _loss_after(job: Job, texts: Texts, parent: Path, selection: Selection, trial: Path, grams: Path) -> float:
    """Validation loss of the parent cut by a selection, in nats per token; the cut model stays in `trial`."""
    cut_checkpoint(job, texts, parent, selection, trial, grams)
    with open_engine(trial, job.config.engine, job.group) as engine:
        return validation_loss(job, texts, engine)


def read_split(path: Path) -> Selection:
    """The selection of the candidate that was chosen."""
    return Selection.from_json(read_json(path)["selection"])
