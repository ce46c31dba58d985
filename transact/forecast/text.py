"""plan.txt: the forecast for a person."""

from __future__ import annotations

from typing import Any

from transact.memory import GIB

MAX_WARNINGS = 6
MAX_MOMENTS = 3


def text(plan: dict[str, Any]) -> str:
    lines = [
        *_dimension_lines(plan),
        *_split_lines(plan),
        *_shape_lines(plan["warnings"]),
        *_calibration_lines(plan["calibration"], plan["dense"]["geometry"]["num_layers"]),
        *_memory_lines(plan["memory"], plan),
        *_disk_lines(plan["disk_bytes"]),
        *_duration_lines(plan["duration"], plan),
    ]
    return "\n".join(lines) + "\n"


def _dimension_lines(plan: dict[str, Any]) -> list[str]:
    count = len(plan["rounds"])
    lines = [
        f"{plan['name']}: {plan['model']}, {count} {'round' if count == 1 else 'rounds'}",
        f"{'':9}{'heads/KV':>9}{'head_dim':>9}{'intermediate':>14}{'parameters':>16}{'removed':>9}"
        f"{'KV bytes/token':>16}{'FLOPs/token':>13}{'tokens':>16}{'steps':>9}{'peak rate':>11}",
        _row("dense", plan["dense"]),
    ]
    if not plan["is_model_at_hand"]:
        lines.insert(1, "the model is no folder here: these are the dimensions that are declared, or those of the hub")
    for each in plan["rounds"]:
        recovery = f"{each['tokens']:>16,}{each['steps']:>9,}{each['learning_rate']:>11.1e}"
        lines.append(_row(f"round {each['round']}", each) + recovery)
    lines.append(f"recovery: {plan['tokens']:,} tokens in batches of {plan['tokens_per_batch']:,}")
    return lines


def _row(name: str, model: dict[str, Any]) -> str:
    geometry = model["geometry"]
    return (
        f"{name:9}{_heads(geometry):>9}{geometry['head_dim']:>9}{geometry['intermediate_size']:>14,}{model['parameters']:>16,}"
        f"{model['removed_fraction']:>9.1%}{model['kv_bytes_per_token']:>16,}{model['flops_per_token']:>13.2e}"
    )


def _heads(geometry: dict[str, Any]) -> str:
    return f"{geometry['num_attention_heads']}/{geometry['num_key_value_heads']}"


def _split_lines(plan: dict[str, Any]) -> list[str]:
    """What the run will try before it knows the dimensions above."""
    found = plan["split_candidates"]
    if not found:
        return []
    cuts_heads = len({_heads(each) for each in found}) > 1
    names = ", ".join(
        f"{_heads(each) if cuts_heads else each['head_dim']} / {each['intermediate_size']:,}" for each in found
    )
    return [
        f"split: auto; the dimensions above are those of equal shares. The run cuts and measures {len(found)} "
        f"first ({'heads/KV' if cuts_heads else 'head_dim'} / intermediate): {names}"
    ]


def _shape_lines(warnings: list[str]) -> list[str]:
    """What the dimensions that the run may end with are bad for."""
    if not warnings:
        return []
    more = [f"and {len(warnings) - MAX_WARNINGS} more of the kind"] if len(warnings) > MAX_WARNINGS else []
    shown = [f"warning: {line}" for line in warnings[:MAX_WARNINGS]]
    return [*shown, *more, "choose other dimensions with prune/multiple=cpu, cuda or llama_cpp_q4"]


def _calibration_lines(calibration: dict[str, Any], num_layers: int) -> list[str]:
    sequences, passes = calibration["sequences"], calibration["gram_passes"]
    lines = [f"calibration: 1 pass over {sequences} sequences for the scores"]
    if passes:
        turns = "1 pass" if len(passes) == 1 else f"{len(passes)} passes"
        lines.append(
            f"gram matrices: {turns} over {sequences} sequences, at most {max(passes)} of {num_layers} layers at a "
            f"time: {_gib(calibration['gram_bytes_per_rank'])} a rank; "
            f"{_gib(calibration['gram_bytes_on_disk'])} on the disk until the round is sliced"
        )
    if "hidden_state_bytes_per_rank" in calibration:
        stream = _gib(calibration["hidden_state_bytes_per_rank"])
        lines.append(f"sequential calibration: three runs of every layer, {stream} of hidden states a rank")
    return lines


def _memory_lines(memory: dict[str, Any], plan: dict[str, Any]) -> list[str]:
    lines = [f"memory per rank on {plan['ranks']} rank(s), ZeRO stage {memory['zero_stage']}, estimated:"]
    *here, otherwise = memory["moments"]
    lines += [_moment_line(each) for each in here[:MAX_MOMENTS]]
    if len(here) > MAX_MOMENTS:
        lines.append("  later rounds need less")
    how = "with" if otherwise["activation_checkpointing"] else "without"
    lines.append(f"  {how} engine.activation_checkpointing {otherwise['stage']}: {_gib(otherwise['total_bytes'])}")
    host = ", ".join(f"{name.replace('_', ' ')} {_gib(size)}" for name, size in memory["host_bytes"].items())
    lines.append(f"  besides, in the machine's memory, a rank: {host}")
    if memory["fits"] is None:
        return [*lines, "whether it fits: say what a rank runs on, plan.accelerator=h100 or plan.memory_gib=80"]
    verdict = "fits" if memory["fits"] else "does NOT fit"
    lines.append(f"{verdict}: {memory['peak_gib']:.2f} of {memory['limit_gib']:g} GiB")
    if not memory["fits"]:
        helps = [f"  {each['change']}: {each['peak_gib']:.2f} GiB" for each in memory["would_fit_with"]]
        lines += ["what would make it fit:", *helps] if helps else ["nothing that was tried makes it fit"]
    return lines


def _moment_line(moment: dict[str, Any]) -> str:
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in moment["bytes"].items())
    return f"  {moment['stage']:19} {moment['total_bytes'] / GIB:8.2f} GiB ({parts})"


def _disk_lines(disk: dict[str, int]) -> list[str]:
    kept = ("sliced_and_recovered", "export", "gguf", "token_store", "statistics")
    parts = ", ".join(f"{name.replace('_', ' ')} {_gib(disk[name])}" for name in kept if disk[name])
    return [
        f"disk: {_gib(disk['end'])} at the end ({parts}); at most {_gib(disk['peak'])} meanwhile (training checkpoints "
        f"{_gib(disk['training_checkpoints'])}, gram matrices {_gib(disk['gram'])})"
    ]


def _duration_lines(duration: dict[str, Any] | None, plan: dict[str, Any]) -> list[str]:
    work = ", ".join(f"{kind} {flops:.2e}" for kind, flops in plan["flops"].items())
    lines = [f"work: {work} FLOPs"]
    if duration is None:
        return [*lines, "time: give plan.tokens_per_second, or plan.accelerator and plan.mfu"]
    hours = ", ".join(f"{kind} {each:.2f}" for kind, each in duration["hours"].items() if kind != "all")
    lines.append(f"time: about {duration['hours']['all']:.2f} hours ({hours}), {duration['gpu_hours']:.1f} GPU hours")
    lines.append(f"  from {duration['basis']}")
    lines.append(f"  not counted: {', '.join(duration['not_counted'])}")
    if duration["cost"] is not None:
        lines.append(f"cost: about {duration['cost']:,.2f} (plan.price_per_gpu_hour)")
    return lines


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
