"""Plan: which units stay. A pure function of the statistics, so every rank would decide the same."""

from __future__ import annotations

from pathlib import Path

from transact.files import read_json, write_json
from transact.geometry import Geometry
from transact.outline import Round, tokens_per_batch
from transact.prune.criteria import CRITERIA
from transact.prune.planning import PrunePlan, make_plan
from transact.stages.calibrate import read_statistics
from transact.stages.job import Job


def plan(job: Job, round_: Round, parent: Geometry, source: Geometry, statistics: Path, output: Path) -> None:
    """Write plan.json from statistics.safetensors, on rank 0."""
    if not job.group.is_main:
        return
    criterion = job.config.prune.criterion
    scores = CRITERIA[criterion](read_statistics(statistics), source)
    made = make_plan(scores, source, round_.geometry, parent=parent, asked=round_.asked, criterion=criterion)
    job.say(
        f"round {round_.number}: head_dim {source.head_dim} -> {made.target.head_dim}, intermediate_size "
        f"{source.intermediate_size} -> {made.target.intermediate_size}, {made.reached:.1%} of all parameters removed"
    )
    figures = {
        "prune/parameters": made.target.parameters(),
        "prune/removed_fraction": made.reached,
        "prune/head_dim": made.target.head_dim,
        "prune/intermediate_size": made.target.intermediate_size,
        "prune/kv_bytes_per_token": made.target.kv_bytes_per_token(),
    }
    tokens = round_.first_sequence * job.config.data.sequence_length
    job.tracker.log(figures, step=tokens // tokens_per_batch(job.config), tokens=tokens, round=round_.number)
    write_json(output, made.to_json())


def read_plan(path: Path) -> PrunePlan:
    return PrunePlan.from_json(read_json(path))
