"""One rank of a job: checks the request, joins the process group, runs the chain, reports how it ended."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from transact.config.compose import to_dictionary, to_yaml
from transact.config.machines import SIGNAL_DELAY_SECONDS
from transact.config.run import RunConfig
from transact.distributed.environment import (
    adopt_launcher,
    allow_open_files,
    environment_rank,
    environment_world_size,
    transport_settings,
)
from transact.distributed.file_lock import run_lock
from transact.distributed.process import check_device, process_group
from transact.distributed.signals import Interruption
from transact.distributed.slurm import EARLY_SECONDS, own_job
from transact.engine.deepspeed_setup import check_deepspeed_settings
from transact.engine.requirements import check_requirements
from transact.errors import DONE, Refusal, Stopped, exit_code, one_line, printable, refuse, remedy, say_error
from transact.files import write_text
from transact.launch.outcome import JobFailed, how_to_go_on, outcome_recorded, say_last_words
from transact.rounds import Outline
from transact.runs.metrics import MetricsLog
from transact.runs.run_folder import RunFolder
from transact.runs.run_record import claim_run
from transact.stages.chain import Prepared, prepare, run_chain
from transact.stages.job import Job
from transact.stages.micro_batch import settle
from transact.stages.preflight import check, make_folder
from transact.stages.texts import tokens_made
from transact.stages.variant import Cut, checked_cut, has_cut, take_over
from transact.tracking.live import open_view
from transact.tracking.report.keeper import PageKeeper
from transact.tracking.result_table import result_table
from transact.tracking.tracker import Tracker
from transact.tracking.view import Silent, View, ViewEvents, events_file
from transact.tracking.wandb_names import DEFAULT_PROJECT, run_tags
from transact.tracking.wandb_run import WandbRun

LOCK_PATIENCE_SECONDS = 10.0  # for the last rank of a run that was killed just now to end
SLURM_LOCK_PATIENCE_SECONDS = 120.0  # ranks on a node that SLURM lost end once they notice that the others are gone
SHORTEST_NOTICE_SECONDS = 30.0


def work(config: RunConfig) -> int:
    """Run as the rank that the environment names, and return the exit code."""
    try:
        adopt_launcher()
    except ValueError as error:
        return refuse(error, always=True)
    interruption = Interruption(_leave_seconds(config), is_cluster=own_job() is not None)
    interruption.listen()
    is_main = environment_rank() == 0
    _set_up_logging(is_main)
    refusal, found = None, None
    try:
        config, found = check(config, environment_world_size())
        check_device(config.engine.device)
        allow_open_files(environment_world_size())
    except (ValueError, OSError) as error:  # a path that is too long, or a file that may not be read
        refusal = str(error)
    os.environ.update(config.launch.transport)  # which NCCL and gloo read when the group is made
    try:
        return _run(config, found, interruption, refusal)
    except Exception as error:  # noqa: BLE001 - whatever ends the rank is reported here
        _tell(error, config, is_main=is_main)
        return exit_code(error)


def _tell(error: Exception, config: RunConfig, *, is_main: bool) -> None:
    """Tell the user why this rank ends, unless another rank does."""
    if isinstance(error, Refusal):
        refuse(error)
    elif isinstance(error, Stopped):
        if is_main:
            said = f"{error}; {remedy('stopped')}"
            print("\n".join([said, *how_to_go_on(config)]), file=sys.stderr, flush=True)
    elif isinstance(error, JobFailed):
        if error.shows_traceback:
            traceback.print_exception(error.__cause__)
        if error.is_told:
            say_last_words(str(error), config)
    else:  # it failed before `outcome_recorded` could explain it
        traceback.print_exception(error)
        say_error(f"rank {environment_rank()}: {one_line(error)}")


def _run(config: RunConfig, found: Outline | None, interruption: Interruption, refusal: str | None) -> int:
    folder, transport = RunFolder(Path(config.output_dir)), transport_settings()
    pages = PageKeeper(
        folder.path,
        is_point=config.share_dir is not None,
        variant_of=config.variant_of,
        seconds=config.track.report_seconds,
    )
    when_recorded = pages.finish if config.mode != "tokenize" else lambda: None  # there is nothing to report
    with (
        process_group(config.engine.device, config.engine.collective_timeout_minutes, interruption, refusal) as group,
        # The lock and the tracker, which may be slow to close, outlive the report of a failure.
        ExitStack() as held,
        closing(_view(config, group.is_main)) as view,
        outcome_recorded(config, folder, group, clear_screen=view.close, when_recorded=when_recorded),
    ):
        if group.is_main:
            interruption.say = view.say
        assert found is not None  # where one rank refuses, process_group raises on all
        job = Job(
            config=config,
            group=group,
            folder=folder,
            outline=found,
            tracker=Tracker(None, None),
            view=view,
            pages=pages if group.is_main else None,
        )
        if transport:
            job.say("transport: " + " ".join(f"{name}={printable(value)}" for name, value in transport.items()))
        try:
            prepared, cut = _prepare_and_claim(job)
            held.enter_context(run_lock(folder.path / "run.lock", group, _lock_patience()))
        except ValueError as error:  # as `_prepare_and_claim` says, or another run holds the lock
            view.close()
            return refuse(error)
        _open_folder(job, prepared)
        if cut is not None:
            _take_over(job, cut)
        if config.mode == "tokenize":
            assert prepared is not None
            texts = prepared.texts
            _end(job, when_recorded, lambda: print("\n".join(tokens_made(texts)), flush=True))
            return DONE
        config.engine = settle(job)  # for all that holds the configuration
        tracker = held.enter_context(_tracker(config, folder, group.is_main))
        result = run_chain(replace(job, tracker=tracker), prepared)
        _end(job, when_recorded, lambda: _say_result(folder.path, result, tracker.whereabouts, config.point_name))
    return DONE


def _prepare_and_claim(job: Job) -> tuple[Prepared | None, Cut | None]:
    """Prepare model and text, and claim the run's folder (collective). Also returns the cut that a variant takes over.

    Raises:
        ValueError: what only the engine's settings, the downloaded model, the tokenised text or the folder show.
    """
    config, group, folder = job.config, job.group, job.folder
    check_deepspeed_settings(config.engine)
    group.everywhere(lambda: check_requirements(config.engine, group.device))
    prepared = prepare(job)
    cut = group.on_main(lambda: _cut(job, prepared), may_be_left=True)
    group.on_main(lambda: make_folder("output_dir", config.output_dir))
    group.on_main(lambda: claim_run(folder.path, config.share_dir, "starting"))
    job.check_seen("output_dir", folder.path)
    return prepared, cut


def _open_folder(job: Job, prepared: Prepared | None) -> None:
    """Open the run's folder, which is claimed and locked, and write the request as it was asked for (collective)."""
    group, folder = job.group, job.folder
    if group.is_main:
        folder.open(group.world_size)
        if prepared is not None:
            folder.note(parent=prepared.record)
        write_text(folder.path / "config.yaml", to_yaml(job.config.without_setup()))
    folder.attempt = group.broadcast(folder.attempt)
    folder.on_read = group.watchdog.progress  # to read what was exported may take longer than a hang


def _end(job: Job, when_recorded: Callable[[], object], say: Callable[[], None]) -> None:
    """Record that the run is done, and say on rank 0 what came of it (collective)."""
    if job.group.is_main:
        job.folder.end("done")
        when_recorded()
        job.view.close()
        with suppress(OSError):  # nobody reads any more
            say()
    job.group.barrier()  # the lock is held until every rank is done


def _cut(job: Job, prepared: Prepared | None) -> Cut | None:
    """Return the cut that a variant takes over before its first stage, once its files are checked; None without one."""
    if job.config.recover.variant is None or prepared is None or has_cut(job.config):
        return None
    return checked_cut(job.config, job.outline)


def _take_over(job: Job, cut: Cut) -> None:
    """Take over the cut's files and stages, and say which (collective)."""
    taken = job.group.on_main(lambda: take_over(job.folder, job.config, job.outline, cut))
    name, stages = job.config.recover.variant, ", ".join(taken.stages)
    job.say(f"variant {name}: takes over {stages} from {taken.run}; all else is done anew")


def _say_result(folder: Path, result: dict[str, Any], wandb: str | None, point: str) -> None:
    """Print the result and where its files are. wandb: where W&B has the run."""
    result_table(result, point=point)
    for what, name in (("exported model", "export"), ("result", "result.json"), ("report", "report.html")):
        if (folder / name).exists():
            print(f"{what}: {folder / name}", flush=True)
    for software, kind in (("llama.cpp", "gguf"), ("ExecuTorch", "executorch")):
        if kind in result:
            size = f"{result[kind]['bytes'] / 1e6:,.1f} MB"
            print(f"for {software}: {folder / result[kind]['file']} ({size})", flush=True)
    if "hub" in result:
        kind = "private" if result["hub"]["private"] else "public"
        print(f"on the hub: {result['hub']['url']} ({kind})", flush=True)
    if wandb is not None:
        print(f"W&B: {wandb}", flush=True)


def _view(config: RunConfig, is_main: bool) -> View:
    """Return the view of rank 0: live on a terminal, here or the launcher's, else lines. Other ranks are silent."""
    if not is_main:
        return Silent()
    events = events_file()
    if events is not None:
        return ViewEvents(config.track.progress_seconds, events, config.point_name)
    return open_view(config.track.progress_seconds, config.name, label=config.point_name)


def _leave_seconds(config: RunConfig) -> float | None:
    """Return how long a stage that ignores SLURM's warning may go on, in seconds; None outside of SLURM."""
    if own_job() is None:
        return None
    return max(SHORTEST_NOTICE_SECONDS, (config.launch.signal_delay_seconds or SIGNAL_DELAY_SECONDS) - EARLY_SECONDS)


def _lock_patience() -> float:
    return LOCK_PATIENCE_SECONDS if own_job() is None else SLURM_LOCK_PATIENCE_SECONDS


@contextmanager
def _tracker(config: RunConfig, folder: RunFolder, is_main: bool) -> Iterator[Tracker]:
    """Yield a tracker that writes metrics.jsonl and W&B on rank 0, and nothing on other ranks."""
    if not is_main:
        yield Tracker(None, None)
        return
    mirror = WandbRun()
    mirror.start(
        config.track.mode,
        project=config.track.project or DEFAULT_PROJECT,
        entity=config.track.entity,
        group=config.track.group,
        notes=config.track.notes,
        tags=run_tags(config),
        name=" ".join(filter(None, [config.track.run_name or config.name, config.point_name])),
        run_id=folder.record["run_id"],
        config=to_dictionary(config.without_setup()),
        folder=folder.path,
    )
    with Tracker(MetricsLog(folder.path / "metrics.jsonl"), mirror) as tracker:
        yield tracker


class PrintableFormatter(logging.Formatter):
    """A formatter that escapes control characters: names from files in a message must not act on the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _set_up_logging(is_main: bool) -> None:
    """Log our own lines only: a handler on the root logger would repeat those of every library."""
    logger = logging.getLogger("transact")
    logger.propagate = False
    logger.setLevel(logging.INFO if is_main else logging.ERROR)
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logger.handlers = [handler]
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
