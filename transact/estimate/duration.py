"""Hours and costs: tokens and FLOPs over a throughput that was given, or over an assumed share of a peak."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from transact.config.accelerators import BY_NAME, TERA, Accelerator
from transact.config.compose import PACKAGE
from transact.config.machines import ASSUMED_MFU, MOST_SAVING
from transact.config.run import RunConfig
from transact.engine.trained import adapter_parameters
from transact.errors import one_line
from transact.estimate.storage import Traffic, stage_traffic, training_checkpoint_bytes
from transact.files import read_json
from transact.geometry import Geometry
from transact.rounds import Outline, Stage
from transact.stages.workload import num_ranks, stage_flops

SECONDS_PER_HOUR = 3600.0
GB = 1e9
RANKS_OF_A_NODE = 8
GPU_RESULTS = PACKAGE.parent / "benchmarks" / "results"  # of a clone; an installed package has none


def ranks_per_node(config: RunConfig) -> int:
    """Return the ranks that share a node's memory and its way to the file system."""
    return config.launch.ranks_per_node if config.launch.kind == "slurm" else min(num_ranks(config), RANKS_OF_A_NODE)


def storage_bytes_per_second(config: RunConfig, ranks: int) -> float:
    """Return what all nodes together read from, or write to, the file system in a second."""
    return config.estimate.node_gb_per_second * GB * math.ceil(ranks / ranks_per_node(config))


def accelerator(config: RunConfig) -> Accelerator | None:
    return None if config.estimate.accelerator is None else BY_NAME[config.estimate.accelerator]


# What one rank writes in a second, with its SHA-256 and until it is on the disk: two busy cores of a virtual machine
# did so at best (benchmarks/results/saving.json).
RANK_BYTES_PER_SECOND = 0.3e9
OF_LAYERS = ("split", "select", "slice")  # whose layers are shared out to the ranks, unless they are cut in order


def work(config: RunConfig, outline: Outline) -> dict[str, float]:
    """Return the FLOPs by kind of stage.

    Not counted are reading and writing, lm-eval tasks, the check of the export, and the measuring of latencies.
    """
    found: dict[str, float] = {}
    for stage, flops in stage_flops(config, outline).items():
        if flops and stage.kind not in ("export", "efficiency"):
            found[stage.kind] = found.get(stage.kind, 0.0) + flops
    return found


def duration(config: RunConfig, outline: Outline) -> dict[str, Any] | None:
    """Return the forecast of time and cost; None where no throughput is known.

    "hours": by kind of stage, and of "all". "input_output_hours": those of them in which files are read and written,
    "one_rank_hours": in which one rank writes and the others wait. "saves": training checkpoints. "basis": what the
    hours rest on. "not_counted": parts without a forecast. "gpu_hours": hours times ranks. "cost": None without a
    price.
    """
    rate = flops_per_second(config, outline.parent)
    if rate is None:
        return None
    speed, basis = rate
    ranks = num_ranks(config)
    computing = _computing_seconds(config, outline, ranks, speed)
    saves = _saves(config, outline, ranks, computing)
    storage = storage_bytes_per_second(config, ranks)
    both: dict[str, float] = {}
    moving: dict[str, float] = {}
    alone: dict[str, float] = {}
    traffic = stage_traffic(config, outline, ranks, saves)
    for stage in outline.stages:
        moved = traffic.get(stage, Traffic())
        by_one = moved.by_one / RANK_BYTES_PER_SECOND
        seconds = moved.read / storage + moved.written / min(storage, ranks * RANK_BYTES_PER_SECOND) + by_one
        for hours, each in ((both, computing.get(stage, 0.0) + seconds), (moving, seconds), (alone, by_one)):
            if each:
                hours[stage.kind] = hours.get(stage.kind, 0.0) + each / SECONDS_PER_HOUR
    for hours in (both, moving, alone):
        hours["all"] = sum(hours.values())
    price = config.estimate.price_per_gpu_hour
    return {
        "hours": _rounded(both),
        "input_output_hours": _rounded(moving),
        "one_rank_hours": _rounded(alone),
        "saves": round(sum(saves.values())),
        "basis": basis,
        "node_gb_per_second": config.estimate.node_gb_per_second,
        "not_counted": not_counted(config),
        "gpu_hours": round(both["all"] * ranks, 6),
        "cost": None if price is None else round(both["all"] * ranks * price, 2),
    }


def _rounded(hours: dict[str, float]) -> dict[str, float]:
    return {kind: round(each, 6) for kind, each in hours.items()}


def _computing_seconds(config: RunConfig, outline: Outline, ranks: int, speed: float) -> dict[Stage, float]:
    """Return the seconds of computing by stage.

    Layers that are shared out take as long as the rank that has the most of them.
    """
    layers = outline.parent.num_layers
    uneven = math.ceil(layers / ranks) * ranks / layers
    counted = work(config, outline)
    of_layers = OF_LAYERS[:-1] if config.prune.method.refit == "sequential" else OF_LAYERS
    return {
        stage: flops / speed * (uneven if stage.kind in of_layers else 1.0)
        for stage, flops in stage_flops(config, outline).items()
        if stage.kind in counted
    }


def _saves(config: RunConfig, outline: Outline, ranks: int, computing: dict[Stage, float]) -> dict[int, float]:
    """Return the training checkpoints of each recovery, by its round's number."""
    every, found = config.engine.checkpoint_every, {}
    storage = min(storage_bytes_per_second(config, ranks), ranks * RANK_BYTES_PER_SECOND)
    for each in outline.rounds:
        seconds = computing.get(Stage("recover", each.number), 0.0)
        save = training_checkpoint_bytes(each.geometry, config.recover) / storage
        by_time = seconds / max(60 * every.minutes, save / MOST_SAVING) if every.minutes is not None else 0.0
        by_tokens = each.tokens / every.tokens if every.tokens is not None else 0.0
        found[each.number] = float(math.floor(max(by_time, by_tokens)))
    return found


def not_counted(config: RunConfig) -> list[str]:
    """Return the parts of the run whose time is not forecast, whatever they compute."""
    parts = ["starting processes", "reading and tokenising text"]
    if config.eval.tasks:
        parts.append("eval.tasks")
    if config.eval.efficiency.measured:
        minutes = config.eval.efficiency.max_minutes
        parts.append(f"efficiency (at most {minutes:g} minute{'' if minutes == 1 else 's'})")
    if config.export.executorch != "none":
        parts.append("export.executorch")
    if config.export.hub is not None:
        parts.append("export.hub")
    return parts


def flops_per_second(config: RunConfig, parent: Geometry) -> tuple[float, str] | None:
    """Return the FLOPs per second of all ranks, and what the figure rests on; None where nothing is known."""
    ranks = num_ranks(config)
    if config.estimate.tokens_per_second is not None:
        teacher = None if config.recover.objective == "cross_entropy" else parent
        adapters = adapter_parameters(parent, config.recover)
        per_token = parent.training_flops_per_token(config.data.sequence_length, teacher, adapters=adapters)
        given = config.estimate.tokens_per_second
        return given * per_token, f"estimate.tokens_per_second={given:g} for the uncut model, and FLOPs in proportion"
    if config.estimate.throughput_file is not None:
        return _measured(Path(config.estimate.throughput_file), ranks)
    known = accelerator(config)
    if known is None:
        return None
    mfu, source = _utilisation(config, known)
    basis = f"{source}, of {known.peak_flops / TERA:g} TFLOP/s ({known.name}, dense bfloat16), {ranks} of them"
    if config.engine.dtype == "float32":
        basis += "; float32 reaches a fraction of that"
    return mfu * known.peak_flops * ranks, basis


def _utilisation(config: RunConfig, known: Accelerator) -> tuple[float, str]:
    """Return the model FLOPs utilisation to count with, and where it is from."""
    if config.estimate.mfu is not None:
        return config.estimate.mfu, f"estimate.mfu={config.estimate.mfu:g}, as given"
    for path in sorted(GPU_RESULTS.glob(f"gpu_*{known.name}.json")):  # of eight GPUs (gpu_8x_) before those of one
        with suppress(OSError, KeyError, TypeError, ValueError):  # that part of it did not run to its end
            mfu = float(read_json(path)["parts"]["fast"]["sections"]["layers"]["figures"]["best"]["mfu"])
            return mfu, f"a utilisation of {mfu:.2f}, measured by make gpu-check ({path.name})"
    return ASSUMED_MFU, f"a utilisation of {ASSUMED_MFU:g}, an assumption that nobody measured (estimate.mfu)"


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
