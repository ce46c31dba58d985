"""Hours and costs: tokens and FLOPs over a throughput that was given, or over an assumed share of a peak."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transact.config import RunConfig
from transact.files import read_json
from transact.forecast.machines import accelerator, num_ranks
from transact.geometry import Geometry
from transact.memory import gram_passes
from transact.outline import Round

SECONDS_PER_HOUR = 3600.0


def work(config: RunConfig, parent: Geometry, rounds: list[Round]) -> dict[str, float]:
    """FLOPs by kind of stage. Gram matrices, greedy choices, slicing and writing files are not counted."""
    context = config.data.sequence_length
    teacher = None if config.recover.objective == "cross_entropy" else parent
    calibrated = config.prune.calibration_sequences * context
    evaluated = config.data.evaluation_sequences * context
    flops = {"calibrate": 0.0, "recover": 0.0, "evaluate": evaluated * float(parent.flops_per_token(context))}
    before = parent
    for each in rounds:
        # Weights are frozen: a backward is the work of one forward.
        passes = 2 if config.prune.method.needs_gradients() else 1
        if config.prune.method.needs_gram():
            passes += len(gram_passes(before, config.prune.method.gram_gib))
        flops["calibrate"] += passes * calibrated * before.flops_per_token(context)
        flops["recover"] += each.tokens * each.geometry.training_flops_per_token(context, teacher)
        flops["evaluate"] += 2 * evaluated * each.geometry.flops_per_token(context)
        before = each.geometry
    return flops


def duration(config: RunConfig, parent: Geometry, rounds: list[Round]) -> dict[str, Any] | None:
    """ "hours" by kind of stage and in all, "not_counted", "cost", and "basis", which says what they rest on; None
    without one."""
    rate = flops_per_second(config, parent)
    if rate is None:
        return None
    speed, basis = rate
    ranks = num_ranks(config)
    hours = {kind: flops / speed / SECONDS_PER_HOUR for kind, flops in work(config, parent, rounds).items()}
    hours["all"] = sum(hours.values())
    price = config.plan.price_per_gpu_hour
    return {
        "hours": {kind: round(each, 4) for kind, each in hours.items()},
        "basis": basis,
        "not_counted": not_counted(config),
        "gpu_hours": round(hours["all"] * ranks, 3),
        "cost": None if price is None else round(hours["all"] * ranks * price, 2),
    }


def not_counted(config: RunConfig) -> list[str]:
    """Parts of the run that take time which is not foretold, whatever they compute."""
    parts = ["reading", "choosing", "slicing", "writing"]
    if config.prune.split == "auto":
        parts.append("measuring splits")
    if config.prune.method.refit == "sequential":
        parts.append("sequential calibration")
    if config.eval.has_more():
        parts.append("eval.texts and eval.tasks")
    if config.eval.efficiency.measured:
        parts.append(f"efficiency (at most {config.eval.efficiency.max_minutes:g} minutes)")
    return parts


def flops_per_second(config: RunConfig, parent: Geometry) -> tuple[float, str] | None:
    """Of all ranks, and what the figure rests on."""
    ranks = num_ranks(config)
    if config.plan.tokens_per_second is not None:
        teacher = None if config.recover.objective == "cross_entropy" else parent
        per_token = parent.training_flops_per_token(config.data.sequence_length, teacher)
        given = config.plan.tokens_per_second
        return given * per_token, f"plan.tokens_per_second={given:g} for the uncut model, and FLOPs in proportion"
    if config.plan.throughput_file is not None:
        return _measured(Path(config.plan.throughput_file), ranks)
    known = accelerator(config)
    if known is None:
        return None
    basis = (
        f"plan.mfu={config.plan.mfu:g}, an assumption, of {known.peak_flops / 1e12:g} TFLOP/s ({known.name}, dense "
        f"bfloat16), {ranks} of them"
    )
    if config.engine.dtype == "float32":
        basis += "; float32 reaches a fraction of that"
    return config.plan.mfu * known.peak_flops * ranks, basis


def _measured(path: Path, ranks: int) -> tuple[float, str]:
    """From benchmarks.throughput: cross-entropy steps of an uncut model.

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
        why = f"{type(error).__name__}: {error}"
        message = f"plan.throughput_file={str(path)!r} is no results file of benchmarks.throughput ({why})"
        raise ValueError(message) from None
