"""Start the ranks of a job as processes of this machine, and follow them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from transact.config import RunConfig
from transact.exit_codes import DONE, FAILED, refuse, worst
from transact.launching.executors import local_exit_code, log_path, submit_locally
from transact.launching.following import follow, view_events_for_ranks
from transact.runtime.interruption import SIGNALS
from transact.runtime.run_folder import was_stopped
from transact.runtime.run_record import claim_run
from transact.tracking.live import open_view

STRAGGLER_SECONDS = 90.0


def run_locally(config: RunConfig) -> int:
    """Run `launch.processes` ranks here, show what rank 0 says, return the exit code of the job."""
    from transact.preflight import check

    try:
        check(config, config.launch.processes)
    except (ValueError, OSError) as error:
        return refuse(error)
    folder, since = Path(config.output_dir), time.time()
    try:
        claim_run(folder, config.share_dir, "starting")  # before there are logs in it
    except (ValueError, OSError) as error:
        return refuse(error)
    with view_events_for_ranks(config.launch.wait) as events:
        job = submit_locally(config, folder / "logs", _visible_gpus())
        logs = [log_path(folder / "logs", job.job_id, rank) for rank in range(config.launch.processes)]
        if not config.launch.wait:
            _say_how_to_go_on(job, logs)
            return DONE
        title = f"{config.name} {config.point_name}".strip()  # the lines of rank 0 name a sweep's point themselves
        with _passing_on(job), closing(open_view(config.track.progress_seconds, title)) as view:
            follow(logs[0], _Watch(job, config.launch.processes).is_over, view, events)
    return _exit_code(job, logs, folder, since)


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


class _Watch:
    """Ends the ranks that go on long after another has left: before they have met, nobody tells them."""

    def __init__(self, job: Any, processes: int) -> None:
        self._job = job
        self._left = [job.paths.folder / f"{job.job_id}_{rank}_result.pkl" for rank in range(processes)]
        self._since: float | None = None

    def is_over(self) -> bool:
        if self._job.done():
            return True
        if self._since is None and any(path.exists() for path in self._left):
            self._since = time.monotonic()
        if self._since is not None and time.monotonic() - self._since > STRAGGLER_SECONDS:
            with suppress(ProcessLookupError):
                os.kill(int(self._job.job_id), signal.SIGTERM)
            self._since = float("inf")  # once
        return False


def _visible_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _say_how_to_go_on(job: Any, logs: list[Path]) -> None:
    print(f"started: process {job.job_id}\n  follow  tail -f {logs[0]}\n  stop    kill {job.job_id}", flush=True)


def _exit_code(job: Any, logs: list[Path], folder: Path, since: float) -> int:
    """The worst of the ranks."""
    codes = []
    for rank, log in enumerate(logs):
        codes.append(local_exit_code(job, rank, len(logs)))
        if codes[-1] == FAILED and not was_stopped(folder, since):
            print(f"rank {rank} failed; its log: {log}", file=sys.stderr, flush=True)
    return worst(codes)
