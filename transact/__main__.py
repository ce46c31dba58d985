"""The command `transact`, or `python -m transact`: run a job, look at one, measure a model."""

from __future__ import annotations

import importlib
import os
import sys

from transact import __version__
from transact.errors import DONE, interrupted, leave, leave_at_interrupt, refuse

# Command -> the module whose `main` it is, and what it does. A module is imported only when its command is used.
COMMANDS = {
    "run": ("transact.run", "prune a model: the same as python -m transact.run"),
    "status": ("transact.launch.status", "say how a run or a sweep stands"),
    "report": ("transact.tracking.report.command", "write a run's or a sweep's page: one HTML file"),
    "efficiency": ("transact.evaluation.efficiency.command", "measure latency and memory of a model, beside another"),
    "import": (
        "transact.evaluation.efficiency.imported",
        "take figures of vLLM's and llama.cpp's benchmarks into a run's page",
    ),
    "quantize": ("transact.quantize.command", "make quantised variants of a finished run, beside its parent's"),
    "dashboard": ("transact.tracking.dashboard.command", "make the project's pages at Weights & Biases"),
}
USAGE = "\n".join(
    [
        "usage: transact COMMAND ...; transact COMMAND --help says more",
        "",
        *(f"  {name:<12}{purpose}" for name, (_, purpose) in COMMANDS.items()),
        "",
        "  --version   print the version",
    ]
)


COMPLETION = "-sc"  # Hydra's flag: `transact run -sc install=bash` prints what a shell evaluates


def main() -> int:
    """Run the command that the arguments name and return its exit code."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print(USAGE)
        return DONE
    if name == "--version":
        print(f"transact {__version__}")
        return DONE
    if name == COMPLETION:
        return complete(arguments)
    if name not in COMMANDS:
        return refuse(f"{name!r} is no command: it must be one of {', '.join(COMMANDS)}")
    sys.argv = ["transact", *arguments]
    code: int = importlib.import_module(COMMANDS[name][0]).main()
    return code


def complete(arguments: list[str]) -> int:
    """Print the completions of the line in COMP_LINE for a shell, and return the exit code.

    These are the commands, and after `run` what Hydra offers: settings, groups and their choices. Hydra's shell script
    calls only the first word of the line, so that it asks here and not at `transact run`.
    """
    command, run, rest = [*os.environ.get("COMP_LINE", "").split(maxsplit=2), "", "", ""][:3]
    if run != "run":
        print(" ".join(COMMANDS))
        return DONE
    os.environ["COMP_LINE"] = f"{command} {rest}"
    sys.argv = ["transact", COMPLETION, *arguments]
    code: int = importlib.import_module(COMMANDS["run"][0]).main()
    return code


def entry() -> None:
    """Run the console script: end the process with the exit code of its command."""
    if sys.argv[1:2] == ["run"]:
        leave_at_interrupt()
    try:
        leave(main())
    except KeyboardInterrupt:
        interrupted()


if __name__ == "__main__":
    entry()
