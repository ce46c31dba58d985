"""Start the ranks of a job as processes of this machine, follow them, and pass on signals to them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from transact.config.run import RunConfig
from transact.distributed.signals import LEAVE_SECONDS, ORPHAN_SECONDS, STOPPING, handle_all, let_terminal_go
from transact.errors import DONE, FAILED, REFUSED, Stopped, refuse, worst
from transact.launch.executors import local_exit_code, log_path, submit_locally
from transact.launch.following import follow, view_events_for_ranks
from transact.launch.outcome import how_to_go_on, say_last_words
from transact.runs.run_record import RECORD, claim_run, missing_folders, unclaim
from transact.runs.verdict import how_it_ended
from transact.stages.preflight import check
from transact.tracking.live import open_view
from transact.tracking.view import View

PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h


def run_locally(config: RunConfig) -> int:
    """Run `launch.processes` ranks here, show the output of rank 0, and return the exit code of the job."""
    try:
        check(config, config.launch.processes)
    except (ValueError, OSError) as error:
        return refuse(error)
    folder, since = Path(config.output_dir), time.time()
    is_new, made = not os.path.lexists(folder / RECORD), missing_folders(folder)
    try:
        claim_run(folder, config.share_dir, "starting")  # before logs are written into it
    except (ValueError, OSError) as error:
        return refuse(error)
    if is_new:  # by the clock of the file system, which may be behind
        since = min(since, (folder / RECORD).stat().st_mtime)
    with view_events_for_ranks(config.launch.wait) as events:
        job = submit_locally(config, folder / "logs", since)
        logs = [log_path(folder / "logs", job.job_id, rank) for rank in range(config.launch.processes)]
        if not config.launch.wait:
            _say_how_to_go_on(job, logs)
            return DONE
        # No label for the view: the lines of rank 0 name the point of a sweep already.
        title = f"{config.name} {config.point_name}".strip()
        with closing(open_view(config.track.progress_seconds, title)) as view:
            requests, ranks = _Requests(job, view), _Ranks(job)

            def is_over() -> bool:
                requests.acknowledge()
                return ranks.are_over()

            with requests.passed_on():
                follow(logs[0], is_over, view, events, requests.is_news)
    code = _exit_code(config, job, logs, since, requests.asked)
    if code == REFUSED and is_new:  # for a reason that only the ranks could see
        unclaim(folder, made, job.job_id)
    return code


class _Requests:
    """Signals to stop: acknowledged here, and passed on to the ranks, which save first; then the job ends by itself.

    They go to the process that controls the ranks. A second signal goes the same way, and the ranks leave at once.
    """

    def __init__(self, job: Any, view: View) -> None:
        self._job, self._view = job, view
        self.asked: list[str] = []
        self._told = 0

    @contextmanager
    def passed_on(self) -> Iterator[None]:
        """Pass signals on to the ranks inside the block; afterwards they are handled as before."""
        before = handle_all(self._pass_on) | {signal.SIGTSTP: signal.signal(signal.SIGTSTP, self._suspend)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            let_terminal_go()
        self.asked.append(signal.Signals(number).name)  # `acknowledge` prints it: the view may be writing just now
        with suppress(ProcessLookupError):
            os.kill(int(self._job.job_id), number)

    def _suspend(self, number: int, frame: FrameType | None) -> None:
        """Suspend and resume the ranks together with this process: the terminal's Ctrl-Z does not reach them."""
        with suppress(ProcessLookupError):
            os.killpg(int(self._job.job_id), signal.SIGSTOP)
            signal.signal(number, signal.SIG_DFL)
            # To this thread: if another took the signal, this one might resume the ranks before the process stops.
            signal.pthread_kill(threading.get_ident(), number)  # returns once the process is resumed
            signal.signal(number, self._suspend)
            os.killpg(int(self._job.job_id), signal.SIGCONT)

    def acknowledge(self) -> None:
        """Tell the user once that a signal has arrived."""
        if self._told < len(self.asked) and self._told == 0:
            self._view.say(f"{self.asked[0]}: {STOPPING}")
        self._told = len(self.asked)

    def is_news(self, line: str) -> bool:
        """Return whether a line of rank 0 says more than what was acknowledged here."""
        return not self.asked or not line.endswith(STOPPING)


class _Ranks:
    """The processes of a job, including ranks that outlive their controller for a while after it was killed."""

    def __init__(self, job: Any) -> None:
        self._job = job
        self._deadline: float | None = None
        _adopt_orphans()

    def are_over(self) -> bool:
        """Return whether all processes have ended, or ranks without a controller have used up their time."""
        if not self._job.done():
            return False
        self._deadline = self._deadline or time.monotonic() + ORPHAN_SECONDS + LEAVE_SECONDS
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            return True
        return time.monotonic() > self._deadline


def _adopt_orphans() -> None:
    """Become the parent of processes whose own parent, started here, is killed (on Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _say_how_to_go_on(job: Any, logs: list[Path]) -> None:
    print(f"started: process {job.job_id}\n  follow  tail -f {logs[0]}\n  stop    kill {job.job_id}", flush=True)


def _exit_code(config: RunConfig, job: Any, logs: list[Path], since: float, asked: list[str]) -> int:
    """Return the worst exit code of the ranks. Prints what ended them and how to go on, unless rank 0 has."""
    folder = Path(config.output_dir)
    found = (local_exit_code(job, rank, len(logs)) for rank in range(len(logs)))
    # A rank that was stopped inside a SLURM job has the exit code of the signal.
    codes = [code if code in (DONE, REFUSED) else FAILED for code in found]
    ended = how_it_ended(folder, since)
    if ended is not None and ended[0] == "stopped":
        if asked:
            raise Stopped(asked[0])
        return worst([*codes, FAILED])
    if FAILED in codes and asked:
        print("\n".join([str(Stopped(asked[0])), *how_to_go_on(config)]), file=sys.stderr, flush=True)
        raise Stopped(asked[0])
    for rank, log in enumerate(logs):
        if codes[rank] == FAILED:
            print(f"rank {rank} failed; its log: {log}", file=sys.stderr, flush=True)
    if ended is not None and ended[0] != "done":
        say_last_words(ended[1], config)
    return worst(codes)
