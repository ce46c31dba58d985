"""python -m transact efficiency FOLDER [--against PARENT]: what a model costs to run, and what its parent does.

Prints a table, or JSON with --json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NoReturn

from transact.checks import require_choice
from transact.config import DEVICES, DTYPES, EfficiencyConfig
from transact.config.setting import check_values
from transact.errors import DONE, REFUSED, leave, refuse
from transact.evaluation.efficiency.presets import PRESETS

PATIENT_MINUTES = 1e6  # who asks for it on the command line can also end it


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        refuse(message)
        sys.exit(REFUSED)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="transact efficiency", description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="an exported model, or any folder of a supported family")
    parser.add_argument("--against", type=Path, metavar="PARENT", help="the model to compare it with")
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
    """The preset with what the command line says instead.

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
    """Raises ValueError: a folder is no complete model, or the device is not there."""
    from transact.evaluation.efficiency.loading import check_folder, choose_device
    from transact.evaluation.efficiency.measure import PARENT, measure
    from transact.models.folder import dtype_of

    folders = {} if arguments.against is None else {PARENT: arguments.against}
    folders |= {"model": arguments.folder}
    for folder in folders.values():
        check_folder(folder)
    device = choose_device(arguments.device)
    dtype = dtype_of(arguments.folder) if arguments.dtype == "stored" else arguments.dtype
    return measure(folders, config, dtype=dtype, device=device)


def main(command_line: list[str] | None = None) -> int:
    """Returns the exit code; a wrong request ends with one line."""
    from transact.evaluation.efficiency.table import efficiency_table
    from transact.files import write_json

    arguments = parse(command_line)
    try:
        if arguments.output is not None and not arguments.output.parent.is_dir():
            raise ValueError(f"--output={str(arguments.output)!r}: there is no such folder")
        result = work(arguments, requested(arguments))
    except ValueError as error:
        return refuse(error)
    if arguments.output is not None:
        write_json(arguments.output, result)
    print(json.dumps(result, indent=2) if arguments.json else efficiency_table(result))
    return DONE


if __name__ == "__main__":
    leave(main())
