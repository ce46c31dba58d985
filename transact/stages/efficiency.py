"""Efficiency: what the exported model costs to run, measured beside its parent."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from transact.config.outputs import EfficiencyConfig
from transact.engine.free_memory import free_bytes
from transact.evaluation.efficiency.command import draft_words
from transact.evaluation.efficiency.draft import PROMPTS
from transact.evaluation.efficiency.latency_table import machine_name
from transact.evaluation.efficiency.measure import PARENT, describe, measure, tokens_to_make
from transact.files import file_digest, write_json
from transact.models.folder import dtype_of, geometry_of
from transact.stages.job import Job
from transact.stages.texts import Texts

PRUNED = "pruned"
MEMORY_MARGIN = 1.5  # times the weights of both models, which leaves room for generation


def record_latency_table(job: Job) -> None:
    """Record the digest of the table that a latency is limited by: preflight refuses another one from then on."""
    table = job.config.prune.budget.latency_table
    if table is not None and job.group.is_main and "latency_table" not in job.folder.record:
        job.folder.note(latency_table=file_digest(Path(table)))


def measure_efficiency(job: Job, texts: Texts, parent: Path, exported: Path, output: Path) -> None:
    """Write efficiency.json: what `measure` returns, or the reason why nothing was measured (collective)."""
    result = job.group.on_main(lambda: _measured(job, texts, {PARENT: parent, PRUNED: exported}), may_be_left=True)
    job.say(f"efficiency: {_sentence(result)}")
    if result["limit"] is not None:
        job.say(f"efficiency: {_limit_words(result['limit'])}")
    if result["draft"] is not None:
        job.say(f"efficiency: {draft_words(result['draft'])}")
    job.tracker.summary(_figures(result))
    if job.group.is_main:
        write_json(output, result)


def _measured(job: Job, texts: Texts, folders: dict[str, Path]) -> dict[str, Any]:
    begin = time.monotonic()
    config, device = job.config.eval.efficiency, job.group.device
    dtype = dtype_of(folders[PRUNED])
    models = {role: describe(folder, geometry_of(folder), dtype) for role, folder in folders.items()}
    reason = None
    needed = MEMORY_MARGIN * sum(model["parameters"] for model in models.values()) * getattr(torch, dtype).itemsize
    for place in {device.type, "cpu"}:  # models are loaded into the machine's memory first
        if needed > free_bytes(torch.device(place)):
            reason = f"both models at a time need about {needed / 2**30:.0f} GiB, which {place} has not"
    if reason is not None:
        nothing: dict[str, Any] = {"models": models, "latency": [], "left_out": [], "draft": None, "limit": None}
        return nothing | {"not_measured": reason}
    prompts = None
    if config.draft:
        held_out = texts.evaluation
        first = torch.arange(min(PROMPTS, held_out.num_sequences))
        prompts = held_out.sequences(first)[:, : config.prompt_tokens[0]]
    with job.progress("efficiency", tokens_to_make(config, len(folders))) as progress:
        found = measure(folders, config, dtype=dtype, device=device, prompts=prompts, progress=progress.advance)
    minutes_left = config.max_minutes - (time.monotonic() - begin) / 60
    return found | {"limit": _measured_limit(job, folders[PRUNED], minutes_left)}


def _measured_limit(job: Job, exported: Path, minutes: float) -> dict[str, Any] | None:
    """Return the latency that was limited, as the table foresees it and as it is here; None without such a limit.

    It is measured as the table was: its device, dtype, threads, batch and lengths. minutes: that it may take.
    """
    budget, limits = job.config.prune.budget, job.outline.limits
    if limits is None or limits.serving.latency is None:
        return None
    settings = limits.serving.latency.settings
    compared = limits.compared(geometry_of(exported))["latency_ms"]
    limit = {"phase": budget.latency_phase, "asked": compared["most"], "foreseen": compared["reached"]}
    limit |= {"settings": settings, "measured": None}
    if settings["machine"] != machine_name(job.group.device):
        return limit | {"not_measured": f"the table is of {settings['machine']}"}
    asked = EfficiencyConfig(
        batch_sizes=[settings["batch_size"]],
        prompt_tokens=[settings["prompt_tokens"]],
        new_tokens=[settings["new_tokens"]],
        threads=settings["threads"],
        turns=settings["turns"],
        max_minutes=minutes,
    )
    found = measure({PRUNED: exported}, asked, dtype=settings["dtype"], device=job.group.device)
    if not found["latency"]:
        return limit | {"not_measured": "eval.efficiency.max_minutes were over"}
    seconds = found["latency"][0]["models"][PRUNED][budget.latency_phase][f"{settings['clock']}_seconds"]
    return limit | {"measured": 1000 * seconds}


def _limit_words(limit: dict[str, Any]) -> str:
    measured = f"was not measured ({limit.get('not_measured')})"
    if limit["measured"] is not None:
        measured = f"takes {limit['measured']:.2f} ms here"
    return (
        f"{limit['phase']} {measured}, {limit['foreseen']:.2f} ms by prune.budget.latency_table, at most "
        f"{limit['asked']:.2f} asked"
    )


def _sentence(result: dict[str, Any]) -> str:
    if not result["latency"]:
        return f"not measured: {result['not_measured']}"
    row = result["latency"][0]
    phases = ", ".join(
        f"{phase} {each['speed_up']:.2f} times as fast as the parent (of {each['allowed']:.2f} that the cut allows)"
        for phase, each in row["speed_ups"][PRUNED].items()
        if "allowed" in each
    )
    shorter = f"; left out for want of time: {', '.join(result['left_out'])}" if result["left_out"] else ""
    where = f"{row['prompt_tokens']}+{row['new_tokens']} tokens, batch size {row['batch_size']}"
    return f"{phases}; {where}{shorter}"


def _figures(result: dict[str, Any]) -> dict[str, float]:
    draft, limit = result["draft"] or {}, result["limit"] or {}
    figures = {f"efficiency/draft_{name}": draft[name] for name in ("acceptance_rate", "speed_up") if name in draft}
    if limit.get("measured") is not None:
        figures |= {f"efficiency/limit_{name}_ms": limit[name] for name in ("asked", "foreseen", "measured")}
    if not result["latency"]:
        return figures
    row = result["latency"][0]  # the first setting that there was time to measure
    figures |= {f"efficiency/{phase}_speed_up": each["speed_up"] for phase, each in row["speed_ups"][PRUNED].items()}
    return figures | {f"efficiency/{role}_peak_bytes": row["models"][role]["peak_bytes"] for role in (PARENT, PRUNED)}
