"""The table of docs/estimate.md: what mode=estimate says of large jobs, hours by stage."""

from __future__ import annotations

from typing import Any

from transact.config.compose import compose_config
from transact.engine.gram_memory import GIB
from transact.estimate.contents import forecast

JOBS = (("7B", "llama7b_50pct", 8), ("13B", "llama13b_50pct", 8), ("70B", "llama70b_50pct", 64))
STAGES = ("calibrate", "gram", "split", "select", "slice", "recover", "evaluate", "export")


def estimate_markdown() -> str:
    """Return a Markdown table of minutes by stage and of memory and disk, a column for each job."""
    found = [_forecast(experiment, ranks) for _, experiment, ranks in JOBS]
    hours = [each["duration"]["hours"] for each in found]
    rows = [[kind, *(_minutes(each.get(kind, 0.0)) for each in hours)] for kind in STAGES]
    rows += [
        ["all, hours", *(f"{each['all']:.1f}" for each in hours)],
        ["of it files, hours", *(f"{each['duration']['input_output_hours']['all']:.1f}" for each in found)],
        ["one rank alone", *(_minutes(each["duration"]["one_rank_hours"]["all"]) for each in found)],
        ["GPU memory of a rank, GiB", *(f"{each['memory']['peak_gib']:.0f}" for each in found)],
        ["memory of a node, GiB", *(f"{each['memory']['host_bytes_of_a_node'] / GIB:.0f}" for each in found)],
        ["disk at most, GiB", *(f"{each['disk_bytes']['peak'] / GIB:,.0f}" for each in found)],
    ]
    headings = ["minutes by stage", *(f"{size} on {ranks} H100" for size, _, ranks in JOBS)]
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _forecast(experiment: str, ranks: int) -> dict[str, Any]:
    overrides = [f"+experiment={experiment}", f"estimate.num_ranks={ranks}", "estimate.accelerator=h100"]
    return forecast(compose_config([*overrides, "mode=estimate"]))


def _minutes(hours: float) -> str:
    return f"{60 * hours:,.0f}" if hours >= 1 / 60 else f"{60 * hours:.1f}"
