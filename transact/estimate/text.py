"""The text of estimate.txt: the forecast in words."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Any

from transact.engine.gram_memory import GIB, passes_in_words
from transact.pruning.limits import limit_words

MAX_WARNINGS = 5
WIDTH = 110  # characters of a line that is no row of a table
HARD_SPACE = "\0"
MIB = 1024**2
SECONDS_PER_HOUR, MINUTES_PER_HOUR = 3600, 60


def text(estimate: dict[str, Any]) -> str:
    """Return the text of estimate.txt for the values that `contents.forecast` returns."""
    lines = [
        *_dimension_lines(estimate),
        *_taken_lines(estimate["taken_over"]),
        *_split_lines(estimate),
        *_shape_lines(estimate),
        *_warning_lines(estimate["warnings"]),
        *_text_lines(estimate["text"]),
        *_sample_lines(estimate.get("texts")),
        *_calibration_lines(estimate["calibration"], estimate["dense"]["geometry"]["num_layers"]),
        *([] if estimate["micro_batch"] is None else _wrapped(estimate["micro_batch"])),
        *_memory_lines(estimate["memory"], estimate),
        *_disk_lines(estimate["disk_bytes"], estimate["keep_rounds"]),
        *_duration_lines(estimate["duration"], estimate),
    ]
    return "\n".join(lines) + "\n"


def _wrapped(line: str) -> list[str]:
    """Wrap a long line, further lines indented more; a figure stays with its unit."""
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    whole = re.sub(r"(?<=\d) (?=[GMK]iB|minutes|seconds|hours|/ )|(?<= /) (?=\d)", HARD_SPACE, line)
    lines = textwrap.wrap(whole, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return [each.replace(HARD_SPACE, " ") for each in lines]


def _dimension_lines(estimate: dict[str, Any]) -> list[str]:
    rounds = estimate["rounds"]
    lines = [f"{estimate['name']}: {estimate['model']}, {len(rounds)} {'round' if len(rounds) == 1 else 'rounds'}"]
    if not estimate["is_model_at_hand"]:
        lines += _wrapped(
            "the model is no folder here: these are the dimensions that are declared, or those of the hub"
        )
    trains = estimate["tokens"] > 0
    headings = ["", "heads/KV", "head_dim", "intermediate", "parameters", "removed", "of layers", "KV bytes/token"]
    headings += ["FLOPs/token", *(["tokens", "steps", "peak rate"] if trains else [])]
    rows = [_row("dense", estimate["dense"]) + ([""] * 3 if trains else [])]
    for each in rounds:
        recovery = [f"{each['tokens']:,}", f"{each['steps']:,}", f"{each['learning_rate']:.1e}"]
        rows.append(_row(f"round {each['round']}", each) + (recovery if trains else []))
    lines += _table([headings, *rows])
    last = rounds[-1]
    lines += _wrapped(
        f"removed: {last['remove_fraction']:.1%} of all parameters, which is "
        f"{last['remove_fraction_of_layers']:.1%} of the layers' (embeddings and norms are not cut)"
    )
    lines += [line for each in estimate["budget"].items() for line in _wrapped(limit_words(*each))]
    if not trains:
        return [*lines, "recovery: none (recover.tokens=0)"]
    steps = sum(each["steps"] for each in rounds)
    counted = f"{steps:,} step{'' if steps == 1 else 's'} of {estimate['tokens_per_batch']:,}"
    adapters = estimate["adapters"]
    by = "" if adapters is None else f", {adapters['parameters']:,} parameters of adapters of rank {adapters['rank']}"
    return [*lines, *_wrapped(f"recovery: {estimate['tokens']:,} tokens, {counted}{by}")]


def _taken_lines(taken: list[str]) -> list[str]:
    if not taken:
        return []
    return _wrapped(
        f"taken over from the run whose cut this recovers, and not done again: {', '.join(taken)}; what follows is of "
        "what is left to do"
    )


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


def _row(name: str, model: dict[str, Any]) -> list[str]:
    geometry = model["geometry"]
    return [
        name,
        _heads(geometry),
        str(geometry["head_dim"]),
        f"{geometry['intermediate_size']:,}",
        f"{model['parameters']:,}",
        *(_share(model[name]) for name in ("remove_fraction", "remove_fraction_of_layers")),
        f"{model['kv_bytes_per_token']:,}",
        f"{model['flops_per_token']:.2e}",
    ]


def _share(removed: float) -> str:
    return f"{removed:.1%}" if removed else "-"


def _heads(geometry: dict[str, Any]) -> str:
    return f"{geometry['num_attention_heads']}/{geometry['num_key_value_heads']}"


def _shape_lines(estimate: dict[str, Any]) -> list[str]:
    """Return the lines on the shapes that the run may end with; none where all layers are alike."""
    found = estimate["shape_range"]
    if found is None:
        return []
    begin = "the dimensions above are those that the search begins with"
    if found["starts"] > 1:
        begin = f"the search begins with the split that measures best of {found['starts']}"
    words = {"parameters": "parameters", "kv_bytes_per_token": "KV bytes per token"}
    most = " and ".join(f"{found[name]:,} {unit}" for name, unit in words.items() if found[name] is not None)
    bounds = [f"of at most {most}" if most else "", "within prune.budget" if estimate["budget"] else ""]
    within = ", ".join(filter(None, bounds))
    return _wrapped(
        f"shapes: layers; {begin}. It ends with an MLP width for every layer, up to {found['intermediate_size']:,}, "
        f"and with 1 to {found['num_key_value_heads']} key-value heads, {within}; it measures at most "
        f"{estimate['shape_evaluations']:,} shapes"
    )


def _split_lines(estimate: dict[str, Any]) -> list[str]:
    """Return the lines on the splits that the run will measure before its dimensions are known."""
    found = estimate["split_candidates"]
    if not found:
        return []
    parts = {
        "heads/KV": [_heads(each) for each in found],
        "head_dim": [str(each["head_dim"]) for each in found],
        "intermediate": [f"{each['intermediate_size']:,}" for each in found],
    }
    shown = {name: each for name, each in parts.items() if len(set(each)) > 1 or len(found) == 1}
    names = ", ".join(map(" x ".join, zip(*shown.values(), strict=True)))
    skips = len(set(parts["heads/KV"])) > 1 and len(set(parts["head_dim"])) > 1
    count = f"{'at most ' if skips else ''}{len(found)} split{'s' if len(found) > 1 else ''}"
    return [
        *_wrapped(
            f"split: auto; the dimensions above are those of equal shares. The run measures {count} "
            "of the cut on the validation text, and takes the best:"
        ),
        *_wrapped(f"  ({' x '.join(shown)}): {names}"),
    ]


def _warning_lines(warnings: list[str]) -> list[str]:
    shown = [line for each in warnings[:MAX_WARNINGS] for line in _wrapped(f"warning: {each}")]
    more = len(warnings) - MAX_WARNINGS
    return [*shown, f"warning: {more} more of the kind, all of them in estimate.json"] if more > 0 else shown


def _text_lines(found: dict[str, Any]) -> list[str]:
    longest = found["longest_sequence"]
    limit = "" if longest is None else f" (data.sequence_length; the model takes up to {longest:,})"
    tokens = ", ".join(f"{count:,} for {what}" for what, count in found["tokens"].items() if what != "held out")
    return _wrapped(
        f"text: sequences of {found['sequence_length']:,} tokens{limit}: {tokens}; {found['tokens']['held out']:,} "
        "held-out ones for perplexity"
    )


def _sample_lines(samples: dict[str, Any] | None) -> list[str]:
    """Return a line for each text that was opened, with its first document's tokens, and one for each problem."""
    if samples is None:
        return []
    lines = []
    for setting, sample in samples["texts"].items():
        shown = sample["first_tokens"] or [sample["first"]]
        lines += _wrapped(f"  {setting}: {_amount(sample)}; begins: {' '.join(map(repr, shown))} ...")
    return lines + [line for problem in samples["problems"] for line in _wrapped(f"  problem: {problem}")]


def _amount(sample: dict[str, Any]) -> str:
    wanted, there = sample["wanted_tokens"], sample["tokens"]
    if there is None:
        return f"up to {wanted:,} tokens are wanted"
    often = (
        f", so that each is used about {wanted / there:.1f} times"
        if wanted > there and sample["repeats_if_short"]
        else ""
    )
    return f"about {there:,} tokens by its size, up to {wanted:,} are wanted{often}"


def _calibration_lines(calibration: dict[str, Any], num_layers: int) -> list[str]:
    sequences, passes = calibration["sequences"], calibration["gram_passes"]
    if not sequences:
        return []
    lines = [f"calibration: 1 pass over {sequences} sequences for the scores"]
    if passes:
        turns = passes_in_words(len(passes), begins_with_scores=calibration["gram_begins_with_scores"])
        lines += _wrapped(
            f"gram matrices: {turns}; over {sequences} sequences, at most {max(passes)} of {num_layers} layers at a "
            f"time: {_size(calibration['gram_bytes_per_rank'])} a rank; "
            f"{_size(calibration['gram_bytes_on_disk'])} on the disk until the round is sliced"
        )
    if "hidden_state_bytes_per_rank" in calibration:
        stream = _size(calibration["hidden_state_bytes_per_rank"])
        lines.append(f"sequential calibration: one run of every layer of both models, {stream} of hidden states a rank")
    return lines


def _memory_lines(memory: dict[str, Any], estimate: dict[str, Any]) -> list[str]:
    ranks = "1 rank" if estimate["ranks"] == 1 else f"{estimate['ranks']} ranks"
    lines = [f"memory per rank on {ranks}, ZeRO stage {memory['zero_stage']}, estimated:"]
    here, otherwise = memory["moments"], memory["other_checkpointing"]
    first = here[0]["stage"].split("/")[0] + "/"
    shown = [each for each in here if each["stage"].startswith(first)]
    lines += [line for each in shown for line in _moment_lines(each)]
    if len(here) > len(shown):
        lines.append("  other stages of later rounds need less")
    if otherwise is not None:
        how = "with" if otherwise["activation_checkpointing"] else "without"
        total = _size(otherwise["total_bytes"])
        lines.append(f"  {how} engine.activation_checkpointing, {otherwise['stage']}: {total}")
    host = ", ".join(f"{name.replace('_', ' ')} {_size(size)}" for name, size in memory["host_bytes"].items())
    if host:
        node = f"; a node of {memory['ranks_per_node']} ranks: {_size(memory['host_bytes_of_a_node'])}"
        lines += _wrapped(f"  besides, in the machine's memory, a rank: {host}{node if estimate['ranks'] > 1 else ''}")
    check = memory["export_check_bytes"]
    lines += _wrapped(
        f"  export, in the machine's memory of the first rank: {_size(check['by_layer'])} to compare logits a layer at "
        f"a time, {_size(check['whole'])} to compare those of the whole model, where so much is free"
    )
    if memory["fits"] is None:
        return [*lines, "whether it fits: say what a rank runs on, estimate.accelerator=h100 or estimate.memory_gib=80"]
    verdict = "fits" if memory["fits"] else "does NOT fit"
    lines.append(f"{verdict}: {memory['peak_gib']:.2f} of {memory['limit_gib']:g} GiB")
    if not memory["fits"]:
        helps = [f"  {each['change']}: {each['peak_gib']:.2f} GiB" for each in memory["would_fit_with"]]
        lines += ["what would make it fit:", *helps] if helps else ["nothing that was tried makes it fit"]
    return lines


def _moment_lines(moment: dict[str, Any]) -> list[str]:
    parts = ", ".join(f"{name} {_size(size)}" for name, size in moment["bytes"].items())
    return _wrapped(f"  {moment['stage']:19} {_size(moment['total_bytes']):>10} ({parts})")


def _disk_lines(disk: dict[str, int], keep_rounds: str) -> list[str]:
    kept = ("sliced_and_recovered", "export", "gguf", "executorch", "token_store", "statistics")
    rounds = {"sliced_and_recovered": " of the last round" if keep_rounds == "last" else " of all rounds"}
    parts = ", ".join(
        f"{name.replace('_', ' ')}{rounds.get(name, '')} {_size(disk[name])}" for name in kept if disk[name]
    )
    passing = {"training checkpoints": disk["training_checkpoints"], "gram matrices": disk["gram"]}
    passing["the round before"] = disk["round_before"]
    meanwhile = " and ".join(f"{name} {_size(size)}" for name, size in passing.items() if size)
    most = f"; at most {_size(disk['peak'])} meanwhile ({meanwhile})" if meanwhile else ""
    return _wrapped(f"disk: {_size(disk['end'])} at the end ({parts}){most}")


def _duration_lines(duration: dict[str, Any] | None, estimate: dict[str, Any]) -> list[str]:
    work = estimate["flops"]
    shares = ", ".join(f"{kind} {flops / sum(work.values()):.0%}" for kind, flops in work.items())
    lines = _wrapped(f"work: {sum(work.values()):.2e} FLOPs ({shares})")
    if duration is None:
        return [
            *lines,
            "time: not known here; give estimate.tokens_per_second, or estimate.accelerator and estimate.mfu",
        ]
    hours, moving, alone = (duration[name] for name in ("hours", "input_output_hours", "one_rank_hours"))
    unit = "GPU" if estimate["accelerator"] else "rank"
    lines += _wrapped(f"time: about {in_words(hours['all'])}, {duration['gpu_hours']:.3g} {unit} hours")
    lines += _wrapped(f"  {_by_kind(hours)}")
    saves = duration["saves"]
    saving = f"; recover with {saves} save{'' if saves == 1 else 's'}" if "recover" in moving else ""
    lines += _wrapped(
        f"  of it files {in_words(moving['all'])} ({_by_kind(moving)}{saving}), from estimate.node_gb_per_second="
        f"{duration['node_gb_per_second']:g}, an assumption"
    )
    if alone["all"]:
        lines += _wrapped(f"  and one rank alone, for which the others wait: {_by_kind(alone)}")
    lines += _wrapped(f"  from {duration['basis']}")
    if any(kind in estimate["flops"] for kind in ("split", "shapes", "select", "slice")):
        lines.append(
            "  split, shapes, select and slice: factorisations are weighted as they were measured on CPU cores"
        )
    lines += _wrapped(f"  not counted: {', '.join(duration['not_counted'])}")
    if duration["cost"] is not None:
        lines.append(f"cost: about {duration['cost']:,.2f} (estimate.price_per_gpu_hour)")
    return lines


def _by_kind(hours: dict[str, float]) -> str:
    return ", ".join(f"{kind} {in_words(each)}" for kind, each in hours.items() if kind != "all")


def in_words(hours: float) -> str:
    """Return hours in a fitting unit: 0.004 -> "14 seconds", 0.4 -> "24 minutes", 4.1 -> "4.1 hours"."""
    if hours >= 2:
        return f"{hours:,.1f} hours"
    if hours * MINUTES_PER_HOUR >= 2:
        return f"{hours * MINUTES_PER_HOUR:.0f} minutes"
    seconds = round(hours * SECONDS_PER_HOUR)
    return f"{seconds} second{'' if seconds == 1 else 's'}" if seconds else "under a second"


def _size(size: float) -> str:
    if size >= GIB:
        return f"{size / GIB:.2f} GiB"
    return f"{size / MIB:.0f} MiB" if size >= MIB else f"{max(1, round(size / 1024))} KiB"
