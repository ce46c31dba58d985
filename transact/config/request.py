"""The command that a user typed: checked before Hydra reads it, and shown again to go on with a run."""

from __future__ import annotations

import argparse
import math
import os
import shlex
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, RangeSweep
from hydra.errors import HydraException

from transact.config.run import RunConfig
from transact.config.setting import all_fields, allowed_in
from transact.errors import LONGEST_REASON, one_line

MODULE = ("-m", "transact.run")
# Lines of shell that prepare a cluster's nodes may hold keys, and the command is printed and published.
NOT_SHOWN = "launch.setup="


def run_command(arguments: Iterable[str], environ: Mapping[str, str] = os.environ) -> str:
    """Return the command with these arguments, started as this process was: by torchrun, by a bare srun, or by itself.

    `launch.setup=...` is left out.
    """
    shown = [each for each in arguments if not each.lstrip("+").startswith(NOT_SHOWN)]
    return shlex.join([*_launcher(environ), *MODULE, *shown])


def _launcher(environ: Mapping[str, str]) -> list[str]:
    world_size = int(environ.get("WORLD_SIZE", "1"))
    if "TORCHELASTIC_RUN_ID" in environ:
        local = int(environ.get("LOCAL_WORLD_SIZE", "1"))
        nodes = [f"--nnodes={world_size // local}"] if world_size > local else []
        return ["torchrun", *nodes, f"--nproc-per-node={local}"]
    tasks = environ.get("SLURM_STEP_NUM_TASKS", "1")
    if "SLURM_STEP_ID" in environ and tasks != "1":
        return ["srun", f"--ntasks={tasks}", "python"]
    return ["python"]


def quoted(value: str) -> str:
    """Quote a value for Hydra's grammar, in which a folder named after settings (`a=1,b=2`) is no plain word."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


MOST_POINTS = 1000  # of a sweep
INFORMATION = ("help", "hydra_help", "cfg", "info", "shell_completion")  # flags that ask for no run
SET_BY_THE_COMMAND = ("command", "sweep_command", "share_dir")
NOT_SWEPT = ("launch.setup",)  # what is swept over names the folder of a point
HYDRA_ITSELF = "hydra.mode"  # what -m stands for
WHERE = "name=NAME or output_dir=FOLDER says where a run writes"
INSTEAD = {
    "hydra.launcher": "launch=local starts processes here, launch=slurm submits a job",
    "hydra.sweeper": "-m and values after commas sweep, as in -m prune.remove_fraction=0.3,0.5",
    "hydra.run": WHERE,
    "hydra.sweep": WHERE,
    "hydra.output_subdir": WHERE,
    "hydra.job.name": WHERE,
    "hydra.job.chdir": f"the current folder stays; {WHERE}",
    "hydra.job_logging": "a job's own lines go to its terminal or to logs/ of its folder",
    "hydra": "transact takes no setting of Hydra's own; --help shows what it takes",
}


def check_arguments(arguments: list[str]) -> bool:
    """Check the command line and return whether a run is asked for, and not only information.

    Raises:
        ValueError: one line that names what is not allowed, and what to use instead.
    """
    given = _parser().parse_args(arguments)
    if given.experimental_rerun is not None:
        raise ValueError("--experimental-rerun reads a pickle: give the settings themselves")
    if given.config_name is not None:
        raise ValueError(
            "--config-name is not allowed: every run begins with conf/config.yaml; +experiment=NAME overlays it"
        )
    if any(getattr(given, name) for name in INFORMATION):
        return False
    points = 1
    for override in map(_parsed, given.overrides):
        key = override.key_or_group.replace("/", ".")
        _check_key(key, override)
        points *= _num_values(override)
    if not 1 <= points <= MOST_POINTS:
        raise ValueError(f"a sweep of {points:,} points is not allowed: it takes 1 to {MOST_POINTS:,}")
    return True


def _parsed(word: str) -> Any:
    """Parse a word by Hydra's grammar, which allows few characters without quotes, and has no `~` for a home folder.

    Raises:
        ValueError: it cannot be read; the message says what to write instead.
    """
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException as error:
        key, equals, value = word.partition("=")
        if key.lstrip("+~") in _secret_settings():  # neither it nor Hydra's words about it, which repeat it
            raise ValueError(f'{key} cannot be read: quote each line of it, \'{key}=["LINE","LINE"]\'') from None
        if not equals:
            way_out = "it must be KEY=VALUE; --help lists the keys"
        elif value.strip("'\"[").startswith("~"):
            way_out = "no shell puts the home folder for this ~: write $HOME"
        else:
            way_out = f"other characters than letters, digits and /-._: need quotes of their own: {key}='\"VALUE\"'"
        raise ValueError(f"{word!r} cannot be read ({one_line(str(error), LONGEST_REASON)}): {way_out}") from None


@cache
def _secret_settings() -> frozenset[str]:
    return frozenset(name for name, declared, _ in all_fields(RunConfig) if allowed_in(declared).is_secret)


def _check_key(key: str, override: Any) -> None:
    if key.partition(".")[0] == "hydra" and key != HYDRA_ITSELF:
        closest = max((name for name in INSTEAD if key == name or key.startswith(f"{name}.")), key=len)
        raise ValueError(f"{override.key_or_group} is not allowed: {INSTEAD[closest]}")
    if key in SET_BY_THE_COMMAND:
        raise ValueError(f"{key} is not allowed: the command sets it itself")
    if key in NOT_SWEPT and override.is_sweep_override():
        raise ValueError(f"{key} cannot be swept over")


def _num_values(override: Any) -> int:
    """Return how many values a sweep takes from one override, without making them; 1 where it is no sweep."""
    values = override.value() if override.is_sweep_override() else None
    if isinstance(values, ChoiceSweep):
        return len(values.list)
    if not isinstance(values, RangeSweep):
        return 1
    numbers = [float(each) for each in (values.start, values.stop, values.step) if each is not None]
    if len(numbers) < 3 or not all(map(math.isfinite, numbers)) or not values.step:
        raise ValueError(f"{override.input_line}: a range needs a start, a stop and a step that is not 0")
    count = (numbers[1] - numbers[0]) / numbers[2]
    return max(0, math.ceil(min(count, 1e18)))


def check_composed(hydra: Any) -> None:
    """Raise ValueError if Hydra would change the current folder or write files of its own.

    Args:
        hydra: Hydra's own part of what it composed, which a user's files can change too.
    """
    expected = {"hydra.job.chdir": (None, False), "hydra.run": (".",), "hydra.output_subdir": (None,)}
    found = {"hydra.job.chdir": hydra.job.chdir, "hydra.run": hydra.run.dir, "hydra.output_subdir": hydra.output_subdir}
    for name, values in expected.items():
        if found[name] not in values:
            raise ValueError(f"{name}={found[name]!r} is not allowed: {INSTEAD[name]}")


def _parser() -> argparse.ArgumentParser:
    """Return Hydra's own parser, changed to say in one line what is wrong instead of printing its usage."""

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ValueError(f"{message}; see --help")

    parser = get_args_parser()
    parser.__class__ = Parser
    return parser
