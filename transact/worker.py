"""One rank of a job: checks the request, joins the process group, runs the chain, reports how it ended."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from transact.config import RunConfig
from transact.configuring import to_dictionary, to_yaml
from transact.exit_codes import DONE, FAILED, refuse
from transact.failures import explain, is_lost_rank
from transact.files import write_text
from transact.preflight import check
from transact.runtime.interruption import Interruption, Stopped
from transact.runtime.launcher import adopt_slurm_step
from transact.runtime.slurm import EARLY_SECONDS, own_job
from transact.runtime.watchdog import SILENCE_SECONDS
from transact.stages.training_health import Diverged

if TYPE_CHECKING:
    from transact.runtime.process import ProcessGroup
    from transact.runtime.run_folder import RunFolder
    from transact.tracking.tracker import Tracker


LOCK_PATIENCE_SECONDS = 10.0  # for the last rank of a run that was killed just now
SLURM_LOCK_PATIENCE_SECONDS = 120.0  # ranks on a node that SLURM lost notice by themselves that they are alone
SHORTEST_NOTICE_SECONDS = 30.0
CLOSING_SECONDS = 30.0  # for the tracker, once the work has stopped or failed
VERDICT_PATIENCE_SECONDS = SILENCE_SECONDS + 5


def work(config: RunConfig) -> int:
    """Run as the rank that the environment says. Returns the exit code."""
    interruption = Interruption(_leave_seconds(config))
    interruption.listen()
    adopt_slurm_step()
    from transact.runtime.rendezvous import Refused, environment_rank, environment_world_size

    is_main = environment_rank() == 0
    _set_up_logging(is_main)
    refusal = None
    try:
        check(config, environment_world_size())
    except (ValueError, OSError) as error:  # a path that is too long, or a file that may not be read
        refusal = str(error)
    try:
        return _run(config, interruption, refusal)
    except Refused as refused:
        return refuse(refused)
    except Stopped as stopped:
        if is_main:
            print(f"{stopped}; the same command goes on from here", file=sys.stderr, flush=True)
        return _code_of_stop(interruption)
    except JobFailed as failure:
        if failure.shows_traceback:
            traceback.print_exception(failure.__cause__)
        if failure.is_told:
            print(f"error: {failure}", file=sys.stderr, flush=True)
    except Exception as error:  # noqa: BLE001 - before there was a job to speak of
        traceback.print_exc()
        print(f"error on rank {environment_rank()}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    return FAILED


def _run(config: RunConfig, interruption: Interruption, refusal: str | None) -> int:
    from transact.chain import prepare, run_chain
    from transact.runtime.file_lock import run_lock
    from transact.runtime.process import process_group
    from transact.runtime.run_folder import RunFolder
    from transact.stages.job import Job
    from transact.tracking.console import result_table
    from transact.tracking.tracker import Tracker

    folder = RunFolder(Path(config.output_dir))
    with (
        process_group(config.engine.device, config.engine.collective_timeout_minutes, interruption, refusal) as group,
        # Lock and tracker, which may take its time to close, outlive the report of a failure.
        ExitStack() as held,
        _failures_told(config, folder, group),
    ):
        job = Job(config=config, group=group, folder=folder, tracker=Tracker(None, None))
        try:
            prepared = prepare(job)
            group.on_main(lambda: folder.path.mkdir(parents=True, exist_ok=True))
            job.check_seen("output_dir", folder.path)
            held.enter_context(run_lock(folder.path / "run.lock", group, _lock_patience()))
        except ValueError as error:  # what only the downloaded model, the tokenised text or the folder can show
            return refuse(error)
        if group.is_main:
            folder.remove_leftovers()
            folder.open(group.world_size)
            write_text(folder.path / "config.yaml", to_yaml(_without_setup(config)))
        tracker = held.enter_context(_tracker(config, folder, group.is_main))
        result = run_chain(replace(job, tracker=tracker), prepared)
        if group.is_main:
            folder.end("done")
            result_table(result)
            print(f"exported model: {folder.path / 'export'}\nresult: {folder.path / 'result.json'}", flush=True)
        group.barrier()  # the lock covers every rank's last act
    return DONE


def _leave_seconds(config: RunConfig) -> float | None:
    """Before SLURM's time limit, in a stage that does not heed the warning."""
    if own_job() is None:
        return None
    return max(SHORTEST_NOTICE_SECONDS, config.launch.signal_delay_seconds - EARLY_SECONDS)


def _code_of_stop(interruption: Interruption) -> int:
    """In a SLURM job that of a process which the signal ended: the batch script must tell a stop from a failure, and
    nothing is written in run.json before the ranks have met."""
    if own_job() is None or interruption.asked_by is None:
        return FAILED
    return 128 + signal.Signals[interruption.asked_by].value


def _lock_patience() -> float:
    return LOCK_PATIENCE_SECONDS if own_job() is None else SLURM_LOCK_PATIENCE_SECONDS


class JobFailed(Exception):
    """The work failed. shows_traceback: the reason is this rank's own. is_told: this rank tells the user."""

    def __init__(self, message: str, *, shows_traceback: bool, is_told: bool) -> None:
        super().__init__(message)
        self.shows_traceback = shows_traceback
        self.is_told = is_told


@contextmanager
def _failures_told(config: RunConfig, folder: RunFolder, group: ProcessGroup) -> Iterator[None]:
    """run.json says where the work failed and why; a rank that only lost another one says which."""
    watchdog = group.watchdog

    def record(state: str, message: str) -> None:
        if group.is_main and folder.record:
            with suppress(OSError):  # the disk may be full; the user is told all the same
                folder.end(state, message)

    watchdog.stacks = folder.path / "stacks"
    watchdog.record_failure = lambda message: record("failed", message)
    try:
        yield
    except Stopped as stopped:
        record("stopped", str(stopped))
        watchdog.end()
        _leave_in_time()
        raise
    except Exception as error:
        lost = is_lost_rank(error)
        verdict = watchdog.verdict(VERDICT_PATIENCE_SECONDS) if lost else None
        message = verdict or f"rank {group.rank} failed in {explain(error, watchdog.stage, config, group.world_size)}"
        if verdict is None:
            watchdog.report(message)
        record("diverged" if isinstance(error, Diverged) else "failed", message)
        watchdog.end()
        _leave_in_time()
        told = not lost or watchdog.speaks()
        # Without a verdict what looked like a lost rank may be an error of this rank's own.
        explains_itself = verdict is not None or isinstance(error, Diverged)
        raise JobFailed(message, shows_traceback=not explains_itself, is_told=told) from error


def _leave_in_time() -> None:
    """Nothing that is left to do is worth holding the machines for: W&B without a network, say."""
    last_resort = threading.Timer(CLOSING_SECONDS, os._exit, [FAILED])
    last_resort.daemon = True
    last_resort.start()


def _without_setup(config: RunConfig) -> RunConfig:
    """Lines of shell that prepare a cluster's nodes may hold keys."""
    return replace(config, launch=replace(config.launch, setup=[]))


@contextmanager
def _tracker(config: RunConfig, folder: RunFolder, is_main: bool) -> Iterator[Tracker]:
    """metrics.jsonl and W&B on rank 0, nothing elsewhere."""
    from transact.tracking.metrics import MetricsLog
    from transact.tracking.tracker import Tracker
    from transact.tracking.wandb_run import WandbRun

    if not is_main:
        yield Tracker(None, None)
        return
    mirror = WandbRun()
    mirror.start(
        config.track.mode,
        project=config.track.project,
        entity=config.track.entity,
        group=config.track.group,
        tags=config.track.tags,
        name=config.name if config.share_dir is None else f"{config.name} {folder.path.name}",
        run_id=folder.record["run_id"],
        config=to_dictionary(_without_setup(config)),
        folder=folder.path,
    )
    with Tracker(MetricsLog(folder.path / "metrics.jsonl"), mirror) as tracker:
        yield tracker


def _set_up_logging(is_main: bool) -> None:
    """Our own lines only: a handler on the root logger would repeat those of every library."""
    logger = logging.getLogger("transact")
    logger.propagate = False
    logger.setLevel(logging.INFO if is_main else logging.ERROR)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
