"""Start the processes of a job with submitit, on this machine or on SLURM. The only file that imports submitit.

python -m transact.launch.executors FOLDER      controls the ranks of launch=local, which alone starts it
"""

from __future__ import annotations

import io
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import FrameType
from typing import Any

from submitit import LocalExecutor, SlurmExecutor
from submitit.core.utils import FailedJobError, UncompletedJobError
from submitit.helpers import TorchDistributedEnvironment
from submitit.local.local import Controller, LocalJob

from transact.config.compose import to_dictionary, typed_config
from transact.config.machines import LaunchConfig
from transact.config.run import RunConfig
from transact.distributed.environment import JOB_TOKEN, LAUNCHER, LOOPBACK, PARENTS, forget_launcher, free_port
from transact.distributed.rendezvous import new_token
from transact.distributed.signals import handle_all
from transact.distributed.slurm import SlurmError
from transact.errors import FAILED, leave
from transact.runs.verdict import RankEnd, name_the_dead

OF_THE_CLUSTER = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")  # where SLURM's controller is, which sbatch needs
# The ranks notice a lost rank and end by themselves; srun would kill the rank that records the reason in run.json.
SRUN_OPTIONS = ["--kill-on-bad-exit=0", "--wait=120"]
POLL_SECONDS = 0.05
BEGAN = "TRANSACT_BEGAN"  # unix seconds: when the command began that has started the ranks
# How long ranks may go on after another has left: without a process group yet, they cannot notice that it has.
STRAGGLER_SECONDS = 90.0
KILL_SECONDS = 30.0  # from SIGTERM to SIGKILL after that: a suspended process never reacts to SIGTERM
SAVE_SECONDS = 600.0  # the same at the time limit, for healthy ranks, which save first


class LocalTask:
    """The function that each process of launch=local runs. It is pickled, so it holds plain data only."""

    def __init__(self, config: dict[str, Any], port: int) -> None:
        self.config = config
        self.port = port

    def __call__(self) -> int:
        """Run the rank and return the exit code of `transact.launch.worker.work`."""
        _listen_as_usual()
        os.environ[PARENTS] = f"{os.getppid()} {os.environ.get(LAUNCHER, '')}"
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        from transact.launch.worker import work

        os.environ["MASTER_ADDR"] = LOOPBACK  # all ranks are here: no port is open to other machines
        os.environ["MASTER_PORT"] = str(self.port)  # submitit derives its port from the job's number, free or not
        return work(typed_config(self.config))


class SlurmTask:
    """The function that each process of launch=slurm runs."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def __call__(self) -> None:
        """End the process with the exit code of `transact.launch.worker.work`, on which the batch script acts."""
        _listen_as_usual()
        from transact.launch.worker import work

        leave(work(typed_config(self.config)))


def _listen_as_usual() -> None:
    """Restore the default signal handlers.

    Under submitit's own, tasks ignore SIGTERM, and rank 0 requeues the job on SIGUSR2.
    """
    handle_all(signal.SIG_DFL)


def log_path(folder: Path, job: str, rank: int) -> Path:
    return folder / f"{job}_{rank}_log.out"


def submit_locally(config: RunConfig, logs: Path, since: float) -> Any:
    """Start `launch.processes` processes on this machine and return submitit's job.

    They have a session of their own: a signal of the terminal, from a key or its end, reaches this process alone, which
    passes it on where it waits for them.

    Args:
        since: unix seconds; a run.json from before that is of an earlier attempt.
    """
    executor = _Executor(folder=logs)
    executor.update_parameters(
        tasks_per_node=config.launch.processes,
        timeout_min=config.launch.timeout_minutes,
        stderr_to_stdout=True,
    )
    task = LocalTask(to_dictionary(config.without_setup()), free_port())
    forget_launcher()
    with _variables({JOB_TOKEN: new_token(), LAUNCHER: str(os.getpid()), BEGAN: str(since)}):
        if config.launch.wait:
            return executor.submit(task)
        del os.environ[LAUNCHER]
        with _silent_children():
            return executor.submit(task)


class _Executor(LocalExecutor):  # type: ignore[misc]
    """An executor whose controller records how each rank ended.

    The ranks see the same GPUs as the command. submitit's own executor would number them anew and, with
    CUDA_VISIBLE_DEVICES=2,3, take the first two of the machine.
    """

    def _submit_command(self, command: str) -> Any:
        count = self.parameters["tasks_per_node"]
        variables = {
            "NTASKS": count,
            "COMMAND": command,
            "TIMEOUT_S": int(60 * self.parameters["timeout_min"]),
            "SIGNAL_DELAY_S": 30,
            "NODEID": 0,
            "JOB_NUM_NODES": 1,
            "WITH_SHELL": "",
        }
        environment = {f"SUBMITIT_LOCAL_{name}": str(value) for name, value in variables.items()}
        environment |= {"SUBMITIT_STDERR_TO_STDOUT": "1", "SUBMITIT_EXECUTOR": "local"}
        arguments = [sys.executable, "-m", "transact.launch.executors", str(self.folder)]
        process = subprocess.Popen(arguments, env=os.environ | environment, start_new_session=True)
        return LocalJob(self.folder, job_id=str(process.pid), process=process, tasks=list(range(count)))


class RankController(Controller):  # type: ignore[misc]
    """The parent process of the ranks: it alone knows how each of them ended, and it ends those that hang."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked: str | None = None
        self._began = float(os.environ[BEGAN])
        handle_all(self._pass_on)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.asked = self.asked or signal.Signals(number).name
        self._forward_signal(signal.Signals(number))

    def wait(self, freq: int = 24) -> Any:
        """Wait until all ranks have ended and return their exit codes; by then run.json names the one that died."""
        ends: dict[int, RankEnd] = {}
        if self.asked is not None:  # while ranks were being started: the later ones have not heard it
            self._forward_signal(signal.Signals[self.asked])
        limit = time.monotonic() + self.timeout_s
        patience, is_asked = math.inf, False  # when ranks that were asked to leave are killed
        while len(ends) < len(self.tasks):
            now = time.monotonic()
            for rank, task in enumerate(self.tasks):
                if rank not in ends and (code := task.poll()) is not None:
                    ends[rank] = RankEnd(rank=rank, code=code, by_us=is_asked)
                    limit = min(limit, now + STRAGGLER_SECONDS)
                    patience = min(patience, now + STRAGGLER_SECONDS) if is_asked else patience
            if not is_asked and now > limit:
                is_asked = True
                patience = now + (KILL_SECONDS if ends else SAVE_SECONDS)
                self._forward_signal(signal.SIGTERM)
            if now > patience:
                patience = math.inf
                self._forward_signal(signal.SIGKILL)
            time.sleep(POLL_SECONDS)
        name_the_dead(self.folder.parent, self._began, list(ends.values()), self.asked)
        return [ends[rank].code for rank in sorted(ends)]


@contextmanager
def _variables(given: dict[str, str]) -> Iterator[None]:
    """Set environment variables for processes that are started inside the block."""
    os.environ |= given
    try:
        yield
    finally:
        for name in given:
            os.environ.pop(name, None)


@contextmanager
def _silent_children() -> Iterator[None]:
    """Send the output of processes started inside to /dev/null: they would hold ours open, and a pipe would wait."""
    kept = [os.dup(number) for number in (1, 2)]
    with open(os.devnull, "w") as nowhere:
        for number in (1, 2):
            os.dup2(nowhere.fileno(), number)
    try:
        yield
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)


def local_exit_code(job: Any, rank: int, processes: int) -> int:
    """Return the exit code of a rank of a job that is over; FAILED for one that was killed."""
    try:
        return int(job.task(rank).result() if processes > 1 else job.result())
    except (FailedJobError, UncompletedJobError):
        return FAILED


def submit_to_slurm(config: RunConfig, logs: Path, code: Path, after: str | None) -> str:
    """Submit the job to SLURM and return its id.

    Args:
        code: the folder that holds the package to run.
        after: a job that must have ended before this one starts.

    Raises:
        SlurmError: SLURM refuses the job; says why.
    """
    launch = config.launch
    cpus = {} if launch.cpus_per_task is None else {"cpus_per_task": launch.cpus_per_task}
    executor = SlurmExecutor(folder=logs, python=launch.python)
    executor.update_parameters(
        job_name=f"{config.name} {config.point_name}".strip(),
        time=launch.timeout_minutes,
        nodes=launch.nodes,
        ntasks_per_node=launch.ranks_per_node,
        signal_delay_s=launch.signal_delay_seconds,
        stderr_to_stdout=True,
        wckey=None,
        dependency=None if after is None else f"afterany:{after}",
        setup=setup_lines(launch, Path(config.output_dir), code),
        # Since SLURM 22.05 srun does not inherit --cpus-per-task from sbatch.
        srun_args=[*SRUN_OPTIONS, *(f"--cpus-per-task={count}" for count in cpus.values()), *launch.srun_options],
        additional_parameters=_sbatch_options(launch),
        **cpus,
    )
    # sbatch passes the environment on to the job, and its own variables override our request.
    ours = [name for name in os.environ if name.startswith(("SBATCH_", "SLURM_")) and name not in OF_THE_CLUSTER]
    for name in ours:
        del os.environ[name]
    forget_launcher()
    os.environ[JOB_TOKEN] = new_token()
    try:
        with redirect_stderr(io.StringIO()):  # submitit prints there what the error says
            return str(executor.submit(SlurmTask(to_dictionary(config.without_setup()))).job_id)
    except FailedJobError as error:
        raise SlurmError(f"SLURM refuses the job: {_reason(str(error))}") from None


def _sbatch_options(launch: LaunchConfig) -> dict[str, Any]:
    named = {
        "partition": launch.partition,
        "account": launch.account,
        "qos": launch.qos,
        "mem": launch.memory,
        "constraint": launch.constraint,
        "gpus-per-node": launch.gpus_per_node or None,
    }
    # sbatch's flags have no value: launch.options={exclusive: true}.
    options = {name: True if value.lower() == "true" else value for name, value in launch.options.items()}
    return {name: value for name, value in named.items() if value is not None} | {"requeue": True} | options


def _reason(text: str) -> str:
    """Return what sbatch said, without submitit's message around it."""
    lines = [line.strip() for line in text.splitlines()]
    said = [line.partition("error:")[2].strip() for line in lines if "sbatch: error:" in line]
    return "; ".join(said) or " ".join(line for line in lines if line)


def setup_lines(launch: LaunchConfig, folder: Path, code: Path) -> list[str]:
    """Return the lines of the batch script before srun, and write the user's own to a file beside the code."""
    limits = f"--max-timeouts={launch.max_timeouts} --max-preemptions={launch.max_preemptions} "
    limits += f"--max-failures={launch.max_failures} --signal-delay={launch.signal_delay_seconds}"
    attempt = f"{shlex.quote(sys.executable)} -m transact.launch.attempt"
    at_end = f"code=$?; {attempt} end {shlex.quote(str(folder))} $code {limits}; exit $code"
    return [
        *_own_setup(launch, code),
        # Behind the user's lines, which may set it: what was submitted runs, whatever else is installed.
        f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}",
        "export PYTHONSAFEPATH=1  # no package of the folder that we happen to be in",
        f"{attempt} begin {shlex.quote(str(folder))} {limits} || exit",
        "trap : TERM  # while the ranks save",
        f"trap {shlex.quote(at_end)} EXIT",
    ]


def _own_setup(launch: LaunchConfig, code: Path) -> list[str]:
    """Write the user's lines to a file that only the user can read, and return lines that source it.

    They may contain keys. submitit keeps the batch script readable for all, and SLURM's controller has a copy.
    """
    if not launch.setup:
        return []
    path = code / "setup.sh"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in launch.setup))
    quoted = shlex.quote(str(path))
    return [f"test -r {quoted} || {{ echo error: {quoted} is not there >&2; exit 1; }}", f". {quoted}"]


if __name__ == "__main__":
    RankController(Path(sys.argv[1])).run()
