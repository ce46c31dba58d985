"""The command: `python -m transact.run [+experiment=NAME] [setting=value ...]`.

It composes and checks the configuration, then works in this process, starts local ranks, submits to SLURM, or prints
the estimate. It is light to import: torch and other heavy libraries are imported with the work itself.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from transact.errors import DONE, FAILED, Stopped, interrupted, leave, leave_at_interrupt, refuse, worst

if __name__ == "__main__":
    leave_at_interrupt()  # the imports below take a while

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from transact.config.compose import UnknownSetting, conf_folder, register, typed_config
from transact.config.help import help_on, is_setting, nearest
from transact.config.pruning import VARIANTS
from transact.config.request import check_arguments, check_composed, quoted, run_command
from transact.config.run import TOKENIZE_SUFFIX, RunConfig
from transact.config.setting import require
from transact.distributed.environment import check_launcher, launched_processes
from transact.runs.run_record import note_points
from transact.runs.verdict import how_it_ended
from transact.tracking.wandb_names import fill_from_environment

LONGEST_FILE_NAME = 200  # bytes; file systems take 255
SWEEP_FLAGS = ("-m", "--multirun")


def run(config: RunConfig, *, is_sweep: bool) -> int:
    """Do what the configuration asks for, and return the exit code."""
    if config.mode == "estimate":
        from transact.estimate.contents import show_estimate

        return show_estimate(config)
    if config.launch.kind == "slurm":
        from transact.launch.cluster import run_on_slurm

        signal.signal(signal.SIGINT, signal.default_int_handler)  # it says itself what becomes of the job
        return run_on_slurm(config, is_sweep=is_sweep)
    if config.launch.kind == "local" and launched_processes() > 1:
        return refuse(
            "launch=local starts the processes itself: call it without torchrun and srun, or with launch=inline"
        )
    if config.launch.kind == "local" or is_sweep:
        from transact.launch.local import run_locally

        return run_locally(config)
    from transact.launch.worker import work

    return work(config)


def point_folder(output_dir: str, command_line: list[str]) -> str:
    """Return the folder of one point of a sweep, named in the sweep's folder after the settings that are swept over."""
    parser = OverridesParser.create()
    given = parser.parse_overrides([each for each in command_line if "=" in each and not each.startswith("--")])
    swept = {each.key_or_group for each in given if each.is_sweep_override()}
    point = parser.parse_overrides(list(HydraConfig.get().overrides.task))
    name = ",".join(each.input_line or "" for each in point if each.key_or_group in swept).replace("/", "_")
    if not name:
        name = f"point_{HydraConfig.get().job.num}"
    encoded = name.encode(errors="surrogateescape")
    if len(encoded) > LONGEST_FILE_NAME:
        cut = encoded[:LONGEST_FILE_NAME].decode(errors="ignore")
        name = f"{cut}_{hashlib.sha256(encoded).hexdigest()[:8]}"
    return os.path.join(output_dir, name)


def main() -> int:
    """Do what the command line asks for, and return the exit code; a wrong request ends with one line."""
    if sys.argv[1:2] in (["--help"], ["-h"]):
        return show_help(sys.argv[2] if len(sys.argv) > 2 else None)
    try:
        os.getcwd()
    except OSError:
        return refuse("the current folder has been removed: change to another", always=True)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise instead of printing pages and exiting
    # Hydra takes flags only in front of the settings.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda each: each not in SWEEP_FLAGS)
    register()
    requests: list[tuple[DictConfig, bool]] = []  # composed, and whether it is a point of a sweep
    failures: list[Exception] = []

    def collect(composed: DictConfig) -> None:
        try:
            requests.append(completed(composed))
        except Exception as error:  # noqa: BLE001 - reported below, without Hydra's own lines
            failures.append(error)

    try:
        check_launcher()
    except ValueError as error:
        return refuse(error, always=True)
    try:
        is_run = check_arguments(sys.argv[1:])
        # Requests are only collected inside Hydra, which would report in its own way what goes wrong later.
        hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(collect)()
        if failures:
            raise failures[0]
    except Exception as error:  # noqa: BLE001 - Hydra also raises plain errors for what it cannot compose
        return refuse(hydra_message(error))
    if is_run and not requests:
        return refuse("nothing was composed, so there is nothing to do: Hydra's launcher or sweeper ran elsewhere")
    if any(is_sweep for _, is_sweep in requests) and launched_processes() > 1:
        return refuse("-m starts the processes of each job itself: call it without torchrun and srun")
    configs = []
    for composed, is_sweep in requests:  # all of them are checked before the first starts
        try:
            configs.append((checked(composed, is_sweep=is_sweep), is_sweep))
        except (ValueError, OSError) as error:
            reason = with_nearest(error) if isinstance(error, UnknownSetting) else error
            return refuse(f"{Path(composed.output_dir).name}: {reason}" if len(requests) > 1 else reason)
    return run_all(configs)


def run_all(configs: list[tuple[RunConfig, bool]]) -> int:
    """Run one after the other, even after one that failed, and return the worst exit code.

    A point that was stopped ends the sweep: whoever pressed Ctrl-C means all of it.

    Raises:
        Exception: the first that a point ended with, after the last point.
    """
    codes: list[int] = []
    failures: list[Exception] = []
    for number, (config, is_sweep) in enumerate(configs, start=1):
        since, is_stopped = time.time(), False
        try:
            codes.append(run(config, is_sweep=is_sweep))
        except Stopped:  # where no rank could record it
            codes.append(FAILED)
            is_stopped = True
        except Exception as error:  # noqa: BLE001 - as above
            failures.append(error)
        note_sweep([config for config, is_sweep in configs if is_sweep and config.mode != "estimate"])
        ended = how_it_ended(Path(config.output_dir), since)
        is_stopped |= ended is not None and ended[0] == "stopped" and config.launch.kind != "slurm"
        if is_stopped and number < len(configs):
            left = ", ".join(Path(each.output_dir).name for each, _ in configs[number:])
            print(f"the sweep is stopped too, before {left}: the same command goes on", file=sys.stderr, flush=True)
            break
    if failures:
        raise failures[0]
    return worst(codes)


def note_sweep(points: list[RunConfig]) -> None:
    """Write down the points of a sweep once one of them has begun.

    Not before: a request that is refused writes nothing. The record serves to keep what the points share until none of
    them needs it.
    """
    if points and points[0].share_dir is not None:
        with suppress(ValueError, OSError):  # the points meet the same error, and report it
            note_points(points[0].share_dir, [Path(each.output_dir).name for each in points])


def show_help(name: str | None) -> int:
    """Print the help on a group, on a setting, or on the command, and return the exit code."""
    try:
        print(help_on(name))
    except ValueError as error:
        return refuse(error)
    return DONE


def completed(composed: DictConfig) -> tuple[DictConfig, bool]:
    """Return a request with what only Hydra knows of it, and whether it is a point of a sweep."""
    is_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    check_composed(HydraConfig.get())
    if OmegaConf.is_missing(composed, "name"):
        raise ValueError("name is required: give name=NAME, or choose an experiment")
    with open_dict(composed):
        composed.command = run_command(sys.argv[1:])
        fill_from_environment(composed.track)
        if is_sweep:
            # Hydra's own dump of the request holds even the settings that are left out of every record.
            (Path(HydraConfig.get().sweep.dir) / "multirun.yaml").unlink(missing_ok=True)
            sweep = composed.output_dir
            composed.share_dir = os.path.join(sweep, "shared")
            composed.output_dir = point_folder(sweep, sys.argv[1:])
            composed.track.group = composed.track.group or composed.name
            composed.sweep_command = composed.command
            alone = list(HydraConfig.get().overrides.task)
            composed.command = run_command([*alone, f"output_dir={quoted(composed.output_dir)}"])
        if composed.recover.variant is not None:
            composed.output_dir = os.path.join(composed.output_dir, VARIANTS, str(composed.recover.variant))
        if composed.mode == "tokenize":
            composed.output_dir += TOKENIZE_SUFFIX
            composed.engine.device, composed.engine.attention, composed.engine.kernels = "cpu", "sdpa", None
    OmegaConf.resolve(composed)  # `${hydra:...}` can be resolved only here
    return composed, is_sweep


def checked(composed: DictConfig, *, is_sweep: bool) -> RunConfig:
    """Convert a request to the typed configuration, and check it.

    Raises:
        ValueError, OSError: the request is wrong; of a point of a sweep as far as it can be known before it starts.
    """
    config = typed_config(composed)
    alone = not is_sweep or config.recover.variant is None
    require("recover.variant", config.recover.variant, alone, "one at a time, without -m, to the command of a run")
    waits = not is_sweep or config.launch.kind == "slurm" or config.launch.wait or config.mode == "estimate"
    at_once = "the points would all run at the same time; put the whole command into the background instead"
    require("launch.wait", config.launch.wait, waits, at_once)
    if is_sweep and config.mode != "estimate":
        from transact.stages.preflight import check

        launch = config.launch
        check(config, launch.num_ranks if launch.kind == "slurm" else launch.processes)
    return config


def with_nearest(error: UnknownSetting) -> str:
    """Return the message, and the settings whose names are like the unknown one."""
    return f"{error}{nearest(error.key)}"


def hydra_message(error: Exception) -> str:
    """Return what is wrong in one line, instead of Hydra's pages."""
    if isinstance(error, MissingConfigException) and error.options:
        return f"{error.missing_cfg_file!r} does not exist; it must be one of {', '.join(sorted(error.options))}"
    if isinstance(error.__cause__, ConfigAttributeError | ConfigKeyError):
        unknown = UnknownSetting(error.__cause__)
        if is_setting(unknown.key):
            return f"{unknown.key} is in none of the files that were composed: write it with a plus, +{unknown.key}=..."
        return with_nearest(unknown)
    return str(error.__cause__ or error)


if __name__ == "__main__":
    try:
        leave(main())
    except KeyboardInterrupt:
        interrupted()
