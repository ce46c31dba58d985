"""python -m transact efficiency FOLDER [--against PARENT]: what a model costs to run, and what its parent does.

Prints a table, or JSON with --json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from transact.config.inputs import DTYPES
from transact.config.machines import DEVICES
from transact.config.outputs import EfficiencyConfig
from transact.config.setting import check_values, require_choice
from transact.errors import DONE, Parser, fail, refuse
from transact.files import read_json, write_json
from transact.models.folder import dtype_of

# Settings of EfficiencyConfig.
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {},
    # The grid of TransAct's latency figure (arXiv 2407.05690), from 64+64 tokens to 256+768.
    "paper": {"prompt_tokens": [64, 128, 256], "new_tokens": [64, 128, 256, 512, 768]},
}


MIB = 1024**2
GIGA = 1e9
CLOCKS = {"processor": "processor time of one thread", "wall": "wall time"}


def efficiency_table(result: Mapping[str, Any]) -> str:
    """Return the tables of a result of `measure` as text."""
    settings = result["settings"]
    clock = settings["clock"]
    title = (
        f"{settings['dtype']} on {settings['device']}, {CLOCKS[clock]}, medians of {turns_text(result['latency'])}; "
        "decode: one step"
    )
    latency = result["latency"]
    counts = _counts(result["models"], settings["dtype"])
    parts = [_aligned(counts), _aligned(_work(latency)), title, _aligned(_latencies(latency, clock))]
    if any("speed_ups" in row for row in result["latency"]):
        parts.append("allowed: what the removed FLOPs (prefill) and bytes (decode) allow. reached: the share of it.")
    if result["draft"] is not None:
        parts.append(draft_words(result["draft"]))
    return "\n\n".join(parts)


def draft_words(found: Mapping[str, Any]) -> str:
    """Return a result of `measure_draft` in a sentence."""
    words = (
        f"as a draft of its parent: {_accepted(found)}, {found['speed_up']:.2f} times as "
        f"fast as the parent alone ({found['prompts']} prompts of held-out text, {found['prompt_tokens']}+"
        f"{found['new_tokens']} tokens, greedy)"
    )
    if (vllm := found.get("vllm")) is not None:
        words += (
            f"; in vLLM {vllm['version']}, {vllm['proposals']} proposals at a time: {_accepted(vllm)}, "
            f"{vllm['wall_speed_up']:.2f} times as fast"
        )
    return words


def _accepted(found: Mapping[str, Any]) -> str:
    return (
        f"{found['acceptance_rate']:.0%} of its proposals accepted, {found['tokens_per_parent_forward']:.2f} tokens a "
        "forward of the parent"
    )


def latency_text(table: Mapping[str, Any]) -> str:
    """Return a table of `measure_latencies` as text: what an MLP and the attention of one layer take."""
    settings, parts = table["settings"], []
    for phase, found in table["phases"].items():
        rows = [["", "width", f"{phase} ms"]]
        for name, curve in (("MLP", found["mlp"]), ("attention", found["attention"])):
            rows += [[name, f"{width:,}", f"{milliseconds:.3f}"] for width, milliseconds in curve]
        parts.append(_aligned([*rows, ["all but layers", "", f"{found['rest']:.3f}"]]))
    title = (
        f"{settings['dtype']} on {settings['machine']}, {CLOCKS[settings['clock']]}, {settings['prompt_tokens']}+"
        f"{settings['new_tokens']} tokens, batch size {settings['batch_size']}; of one layer"
    )
    return "\n\n".join([title, *parts])


def turns_text(latency: Sequence[Mapping[str, Any]]) -> str:
    """Return how many turns the rows of `measure` have; some may have had time for fewer than others."""
    fewest, most = (pick((row["turns"] for row in latency), default=0) for pick in (min, max))
    return f"{most} turns" if fewest == most else f"{fewest} to {most} turns"


def _work(latency: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return what dimensions alone say: FLOPs, and the weights and the cache that a decoding step reads."""
    rows = [["batch", "tokens", "", "prefill GFLOPs", "decode GFLOPs", "decode MiB read"]]
    for row in latency:
        for role, model in row["models"].items():
            prefill, decode = model["prefill"], model["decode"]
            giga = [f"{each['flops'] / GIGA:,.3f}" for each in (prefill, decode)]
            rows.append([*_setting(row), role, *giga, f"{decode['bytes'] / MIB:,.1f}"])
    return rows


def _setting(row: Mapping[str, Any]) -> list[str]:
    return [str(row["batch_size"]), f"{row['prompt_tokens']}+{row['new_tokens']}"]


def _counts(models: Mapping[str, Any], dtype: str) -> list[list[str]]:
    rows = [["", "parameters", "weight files", f"KV bytes/token in {dtype}"]]
    for role, model in models.items():
        file_size = f"{model['file_bytes'] / MIB:,.1f} MiB"
        rows.append([role, f"{model['parameters']:,}", file_size, f"{model['kv_bytes_per_token']:,}"])
    return rows


def _latencies(latency: Sequence[Mapping[str, Any]], clock: str) -> list[list[str]]:
    rows = [["batch", "tokens", "", "prefill ms", "decode ms", "whole s", "peak MiB", *_SPEED_UP_COLUMNS]]
    for row in latency:
        for role, model in row["models"].items():
            rows.append(
                [
                    *_setting(row),
                    role,
                    *(f"{1000 * model[phase][f'{clock}_seconds']:.2f}" for phase in ("prefill", "decode")),
                    f"{model['whole'][f'{clock}_seconds']:.3f}",
                    f"{model['peak_bytes'] / MIB:,.1f}",
                    *_speed_up_cells(row.get("speed_ups", {}).get(role)),
                ]
            )
    return rows


_SPEED_UP_COLUMNS = ["prefill", "allowed", "reached", "decode", "allowed", "reached", "whole"]


def _speed_up_cells(entry: Mapping[str, Any] | None) -> list[str]:
    if entry is None:
        return [""] * len(_SPEED_UP_COLUMNS)
    cells = []
    for phase in ("prefill", "decode"):
        each = entry[phase]
        cells += [f"{each['speed_up']:.2f}x", f"{each['allowed']:.2f}x", f"{each['reached']:.2f}"]
    return [*cells, f"{entry['whole']['speed_up']:.2f}x"]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as lines of columns aligned to the right; empty columns at the end are left out."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    has_content = [any(cell for cell in column) for column in zip(*rows[1:], strict=True)]
    last = max(index for index, each in enumerate(has_content) if each) + 1
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row[:last], widths[:last], strict=True)) for row in rows
    )


PATIENT_MINUTES = 1e6  # the user at the command line can end it with Ctrl-C


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="transact efficiency", description=__doc__)
    parser.add_argument("folder", type=Path, help="an exported model, or any folder of a supported family")
    parser.add_argument("--against", type=Path, metavar="PARENT", help="the model to compare it with")
    parser.add_argument(
        "--draft", type=Path, metavar="TEXT", help="also try FOLDER as PARENT's draft, after prompts of this text file"
    )
    parser.add_argument(
        "--vllm", type=Path, metavar="PYTHON", help="try the draft in vLLM too: the interpreter of its environment"
    )
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="FILE",
        help="measure instead what each width of FOLDER's layers costs here, "
        "for prune.budget.latency_ms, and write the table there",
    )
    parser.add_argument("--preset", choices=PRESETS, default="quick", help="lengths; single ones below win over it")
    parser.add_argument("--prompt-tokens", type=int, nargs="+")
    parser.add_argument("--new-tokens", type=int, nargs="+")
    parser.add_argument("--batch-sizes", type=int, nargs="+")
    parser.add_argument("--turns", type=int, help="measurements of each model, of which the medians count")
    parser.add_argument("--threads", type=int, help="on a CPU (default: 1, timed by processor time)")
    parser.add_argument("--dtype", default="stored", help=f"{', '.join(DTYPES)}, or stored: that of FOLDER's weights")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the JSON there as well")
    return parser.parse_args(arguments)


def requested(arguments: argparse.Namespace) -> EfficiencyConfig:
    """Return the preset, overridden by what the command line says.

    Raises:
        ValueError: a number is not allowed.
    """
    names = ("prompt_tokens", "new_tokens", "batch_sizes", "turns", "threads")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    require_choice("--dtype", arguments.dtype, ("stored", *DTYPES))
    try:
        check_values(EfficiencyConfig, given, "--")
    except ValueError as error:
        raise ValueError(str(error).replace("_", "-")) from None
    return EfficiencyConfig(**(PRESETS[arguments.preset] | {"max_minutes": PATIENT_MINUTES} | given))


def work(arguments: argparse.Namespace, config: EfficiencyConfig) -> dict[str, Any]:
    """Measure the model, beside the parent where one is given, and return the result of `measure`.

    Raises:
        ValueError: a folder is not a complete model, or the device is not available.
    """
    from transact.evaluation.efficiency.draft import prompts_of
    from transact.evaluation.efficiency.draft_in_vllm import check_vllm, measure_in_vllm
    from transact.evaluation.efficiency.measure import PARENT, check_folder, choose_device, measure

    if arguments.draft is not None and arguments.against is None:
        raise ValueError("--draft needs --against=PARENT, whose draft FOLDER is tried as")
    if arguments.vllm is not None and arguments.draft is None:
        raise ValueError("--vllm needs --draft=TEXT, whose prompts FOLDER is tried on as a draft")
    if arguments.vllm is not None:
        check_vllm(arguments.vllm)
    folders = {} if arguments.against is None else {PARENT: arguments.against}
    folders |= {"model": arguments.folder}
    for folder in folders.values():
        check_folder(folder)
    device = choose_device(arguments.device)
    dtype = dtype_of(arguments.folder) if arguments.dtype == "stored" else arguments.dtype
    prompts = None
    if arguments.draft is not None:
        prompts = prompts_of(arguments.draft, arguments.folder, config.prompt_tokens[0])
    in_vllm = None
    if arguments.vllm is not None and prompts is not None:  # first: it may refuse the models, and needs the memory
        asked = prompts.tolist(), config.new_tokens[0], config.turns, dtype
        in_vllm = measure_in_vllm(arguments.vllm, arguments.against, arguments.folder, *asked)
    result = measure(folders, config, dtype=dtype, device=device, prompts=prompts)
    if in_vllm is not None:
        result["draft"]["vllm"] = in_vllm
    return result


def calibrate(arguments: argparse.Namespace, config: EfficiencyConfig) -> dict[str, Any]:
    """Measure the table of latencies.

    Raises:
        ValueError: the folder is no model that can be cut, or the device is not available.
    """
    from rich.console import Console
    from rich.progress import Progress

    from transact.evaluation.efficiency.latency_table import measure_latencies, models_to_measure
    from transact.evaluation.efficiency.measure import choose_device
    from transact.models.folder import check_files
    from transact.models.llama import read_geometry

    if arguments.against is not None or arguments.draft is not None:
        raise ValueError("--calibrate measures FOLDER's widths alone: leave out --against and --draft")
    check_files(arguments.folder)
    dtype = dtype_of(arguments.folder) if arguments.dtype == "stored" else arguments.dtype
    described = read_json(arguments.folder / "config.json")
    device = choose_device(arguments.device)
    # Drawn between measurements alone: a thread that draws would be measured too.
    with Progress(console=Console(stderr=True), transient=True, auto_refresh=False) as bar:
        task = bar.add_task("models measured", total=models_to_measure(read_geometry(described)))

        def advance(models: int) -> None:
            bar.update(task, advance=models, refresh=True)

        return measure_latencies(described, config, dtype=dtype, device=device, advance=advance)


def main(command_line: list[str] | None = None) -> int:
    """Run the command and return its exit code; a wrong request ends with one line."""
    arguments = parse(command_line)
    try:
        for name in ("output", "calibrate"):
            file = getattr(arguments, name)
            if file is not None and not file.parent.is_dir():
                raise ValueError(f"--{name}={str(file)!r}: there is no such folder")
            if file is not None and file.is_dir():
                raise ValueError(f"--{name}={str(file)!r} is a folder: name a file in it")
        if arguments.calibrate is not None:
            result = calibrate(arguments, requested(arguments))
            output, words = arguments.calibrate, latency_text(result)
        else:
            result = work(arguments, requested(arguments))
            output, words = arguments.output, efficiency_table(result)
    except ValueError as error:
        return refuse(error)
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "out of memory" not in str(error):  # torch's, whose class is heavy
            raise
        return fail(error)
    print(json.dumps(result, indent=2) if arguments.json else words, flush=True)
    if output is not None:
        try:
            write_json(output, result)
        except OSError as error:  # what was measured has been printed
            return fail(error)
    return DONE
