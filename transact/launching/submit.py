"""Start the ranks of a job as processes of this machine and follow them. The only file that imports submitit."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from transact.config import RunConfig
from transact.configuring import to_dictionary, typed_config
from transact.exit_codes import DONE, FAILED, REFUSED, refuse
from transact.runtime.interruption import SIGNALS
from transact.runtime.run_folder import was_stopped

POLL_SECONDS = 0.2
SUBMITIT_LINE = "submitit "


class Task:
    """What each process runs. It travels as a pickle between these processes, so it holds plain data only."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def __call__(self) -> int:
        """Returns the exit code of `transact.worker.work`."""
        from submitit.helpers import TorchDistributedEnvironment

        # submitit makes its tasks deaf to SIGTERM, so that nothing could stop them politely.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        from transact.runtime.rendezvous import LOOPBACK
        from transact.worker import work

        os.environ["MASTER_ADDR"] = LOOPBACK  # all ranks are here: nothing need listen to other machines
        return work(typed_config(self.config))


def run_locally(config: RunConfig) -> int:
    """Run `launch.processes` ranks here, show what rank 0 says, return the exit code of the job."""
    from transact.preflight import check

    try:
        check(config, config.launch.processes)
    except (ValueError, OSError) as error:
        return refuse(error)
    job = _submit(config)
    logs = [Path(str(path)) for path in _log_paths(job, config.launch.processes)]
    with _passing_on(job):
        _follow(job, logs[0])
    return _exit_code(job, logs, Path(config.output_dir))


@contextmanager
def _passing_on(job: Any) -> Iterator[None]:
    """A signal to stop goes on to the ranks, which save first; then the job ends by itself.

    By way of the process that controls them, which passes on SIGTERM alone. A second Ctrl-C comes to the ranks from
    the terminal, and they leave at once.
    """

    def pass_on(number: int, frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(int(job.job_id), signal.SIGTERM)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _submit(config: RunConfig) -> Any:
    import submitit

    executor = submitit.LocalExecutor(folder=Path(config.output_dir) / "logs")
    executor.update_parameters(
        tasks_per_node=config.launch.processes,
        timeout_min=config.launch.timeout_minutes,
        gpus_per_node=_visible_gpus(),  # submitit hides every GPU that it is not told of
        stderr_to_stdout=True,
    )
    # Deaf to Ctrl-C from the start, as its children are until `work` listens: submitit's own answer is to kill the
    # ranks within a second.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return executor.submit(Task(to_dictionary(config)))
    finally:
        signal.signal(signal.SIGINT, before)


def _visible_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _log_paths(job: Any, processes: int) -> list[Path]:
    return [job.paths.folder / f"{job.job_id}_{rank}_log.out" for rank in range(processes)]


def _follow(job: Any, log: Path) -> None:
    """Print the lines of a growing file until the job ends."""
    while not log.exists() and not job.done():
        time.sleep(POLL_SECONDS)
    if not log.exists():
        return
    with log.open(encoding="utf-8", errors="replace") as file:
        while not job.done():
            _print_new(file)
            time.sleep(POLL_SECONDS)
        _print_new(file)


def _print_new(file: TextIO) -> None:
    for line in file.readlines():
        if not line.startswith(SUBMITIT_LINE):
            print(line, end="", flush=True)


def _exit_code(job: Any, logs: list[Path], folder: Path) -> int:
    """The worst of the ranks; a rank that was killed counts as failed."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    codes = []
    for rank, log in enumerate(logs):
        try:
            codes.append(job.task(rank).result() if len(logs) > 1 else job.result())
        except (FailedJobError, UncompletedJobError):
            codes.append(FAILED)
        if codes[-1] == FAILED and not was_stopped(folder):
            print(f"rank {rank} failed; its log: {log}", file=sys.stderr, flush=True)
    return max(codes, key=[DONE, REFUSED, FAILED].index)
