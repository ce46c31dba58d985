"""One rank of a job: checks the request, joins the process group, runs the chain, reports how it ended."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from transact.config import RunConfig
from transact.configuring import to_dictionary, to_yaml
from transact.exit_codes import DONE, FAILED, REFUSED
from transact.files import write_text
from transact.preflight import check
from transact.runtime.interruption import Interruption, Stopped

if TYPE_CHECKING:
    from transact.runtime.run_folder import RunFolder
    from transact.tracking.tracker import Tracker


def work(config: RunConfig) -> int:
    """Run as the rank that the environment says. Returns the exit code."""
    from transact.runtime.process import environment_rank, environment_world_size
    from transact.stages.recover import Diverged

    is_main = environment_rank() == 0
    interruption = Interruption()
    interruption.listen()
    _set_up_logging(is_main)
    try:
        check(config, environment_world_size())
    except ValueError as error:
        if is_main:
            print(f"error: {error}", file=sys.stderr, flush=True)
        return REFUSED
    try:
        return _run(config, interruption)
    except Stopped as stopped:
        if is_main:
            print(f"{stopped}; the same command goes on from here", file=sys.stderr, flush=True)
        return FAILED
    except Diverged as error:
        if is_main:
            print(f"error: {error}", file=sys.stderr, flush=True)
        return FAILED
    except Exception as error:  # noqa: BLE001 - the end of a rank, whatever the reason
        traceback.print_exc()
        message = f"error on rank {environment_rank()}: {type(error).__name__}: {_first_line(error)}"
        print(message, file=sys.stderr, flush=True)
        return FAILED


def _run(config: RunConfig, interruption: Interruption) -> int:
    from transact.chain import prepare, run_chain
    from transact.runtime.process import process_group
    from transact.runtime.run_folder import RunFolder
    from transact.stages.job import Job
    from transact.tracking.console import result_table
    from transact.tracking.tracker import Tracker

    folder = RunFolder(Path(config.output_dir))
    with process_group(config.engine.device, config.engine.collective_timeout_minutes, interruption) as group:
        job = Job(config=config, group=group, folder=folder, tracker=Tracker(None, None))
        try:
            prepared = prepare(job)
        except ValueError as error:  # what only the downloaded model or the tokenised text can show
            job.say_error(str(error))
            return REFUSED
        if group.is_main:
            folder.open(group.world_size)
            write_text(folder.path / "config.yaml", to_yaml(config))
        with _failure_recorded(folder, group.is_main), _tracker(config, folder, group.is_main) as tracker:
            result = run_chain(replace(job, tracker=tracker), prepared)
        if group.is_main:
            folder.end("done")
            result_table(result)
            print(f"exported model: {folder.path / 'export'}\nresult: {folder.path / 'result.json'}", flush=True)
    return DONE


@contextmanager
def _failure_recorded(folder: RunFolder, is_main: bool) -> Iterator[None]:
    """run.json says where the work failed and why, so that nobody has to search logs."""
    try:
        yield
    except Stopped as stopped:
        if is_main:
            folder.end("stopped", str(stopped))
        raise
    except BaseException as error:
        if is_main:
            folder.end("failed", f"{type(error).__name__}: {_first_line(error)}")
        raise


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
        name=config.name,
        run_id=folder.record["run_id"],
        config=to_dictionary(config),
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


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]
