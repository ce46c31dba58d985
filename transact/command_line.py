"""The command that a person typed, for whoever wants to go on with a run or to make it again."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping

MODULE = ("-m", "transact.run")
# Lines of shell that prepare a cluster's nodes may hold keys, and this is printed and published.
NOT_SHOWN = "launch.setup="


def run_command(arguments: Iterable[str], environ: Mapping[str, str] = os.environ) -> str:
    """The command with these arguments, started as this process was: by torchrun, by a bare srun, or by itself.

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
