"""Hours and costs: tokens and FLOPs over a throughput that was given, or over an assumed share of a peak."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transact.config.accelerators import BY_NAME, TERA, Accelerator
from transact.config.run import RunConfig
from transact.distributed.environment import environment_world_size
from transact.errors import one_line
from transact.files import read_json
from transact.geometry import Geometry
from transact.rounds import Outline
from transact.stages.workload import stage_flops


def num_ranks(config: RunConfig) -> int:
    """Return estimate.num_ranks, or else the ranks of the launch settings or of torchrun's environment."""
    return config.estimate.num_ranks or max(config.launch.num_ranks, environment_world_size())


def accelerator(config: RunConfig) -> Accelerator | None:
    return None if config.estimate.accelerator is None else BY_NAME[config.estimate.accelerator]


SECONDS_PER_HOUR = 3600.0


KINDS = {
    "calibrate": ("calibrate", "gram"),
    "split": ("split",),
    "cut": ("select", "slice"),
    "recover": ("recover",),
    "evaluate": ("evaluate", "tasks"),
}  # kind of work in the estimate -> the kinds of stages that do it


def work(config: RunConfig, outline: Outline) -> dict[str, float]:
    """Return the FLOPs by kind of work.

    Not counted are reading and writing, lm-eval tasks, the check of the export, and the measuring of latencies.
    """
    stages = stage_flops(config, outline)
    found = {
        kind: sum(flops for stage, flops in stages.items() if stage.kind in members) for kind, members in KINDS.items()
    }
    return {kind: flops for kind, flops in found.items() if flops}


def duration(config: RunConfig, outline: Outline) -> dict[str, Any] | None:
    """Return the forecast of time and cost; None where no throughput is known.

    "hours": by kind of work, and of "all". "basis": what they rest on. "not_counted": parts without a forecast.
    "gpu_hours": hours times ranks. "cost": None without a price.
    """
    rate = flops_per_second(config, outline.parent)
    if rate is None:
        return None
    speed, basis = rate
    ranks = num_ranks(config)
    hours = {kind: flops / speed / SECONDS_PER_HOUR for kind, flops in work(config, outline).items()}
    hours["all"] = sum(hours.values())
    price = config.estimate.price_per_gpu_hour
    return {
        "hours": {kind: round(each, 6) for kind, each in hours.items()},
        "basis": basis,
        "not_counted": not_counted(config),
        "gpu_hours": round(hours["all"] * ranks, 6),
        "cost": None if price is None else round(hours["all"] * ranks * price, 2),
    }


def not_counted(config: RunConfig) -> list[str]:
    """Return the parts of the run whose time is not forecast, whatever they compute."""
    parts = ["reading and writing files"]
    if config.eval.tasks:
        parts.append("eval.tasks")
    if config.eval.efficiency.measured:
        minutes = config.eval.efficiency.max_minutes
        parts.append(f"efficiency (at most {minutes:g} minute{'' if minutes == 1 else 's'})")
    return parts


def flops_per_second(config: RunConfig, parent: Geometry) -> tuple[float, str] | None:
    """Return the FLOPs per second of all ranks, and what the figure rests on; None where nothing is known."""
    ranks = num_ranks(config)
    if config.estimate.tokens_per_second is not None:
        teacher = None if config.recover.objective == "cross_entropy" else parent
        per_token = parent.training_flops_per_token(config.data.sequence_length, teacher)
        given = config.estimate.tokens_per_second
        return given * per_token, f"estimate.tokens_per_second={given:g} for the uncut model, and FLOPs in proportion"
    if config.estimate.throughput_file is not None:
        return _measured(Path(config.estimate.throughput_file), ranks)
    known = accelerator(config)
    if known is None:
        return None
    basis = (
        f"estimate.mfu={config.estimate.mfu:g}, an assumption, not measured, of {known.peak_flops / TERA:g} TFLOP/s "
        f"({known.name}, dense bfloat16), {ranks} of them"
    )
    if config.engine.dtype == "float32":
        basis += "; float32 reaches a fraction of that"
    return config.estimate.mfu * known.peak_flops * ranks, basis


def _measured(path: Path, ranks: int) -> tuple[float, str]:
    """Read the speed from a results file of benchmarks.throughput: cross-entropy steps of an uncut model.

    Raises:
        ValueError: it is no such file.
    """
    try:
        found = read_json(path)
        geometry = Geometry.from_dict(found["geometry"])
        per_token = geometry.training_flops_per_token(found["sequence_length"])
        speed = found["tokens_per_s"]["ours"] * per_token / found["world_size"] * ranks
        return speed, f"{path}, measured on {found['world_size']} rank(s), in proportion to FLOPs and ranks"
    except (OSError, KeyError, TypeError, ValueError) as error:
        what = "is no results file of benchmarks.throughput"
        raise ValueError(f"estimate.throughput_file={str(path)!r} {what} ({one_line(error)})") from None
