"""How a job ends on one rank: why it failed, what is recorded, which rank tells the user, and which error is raised."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transact.config.run import RunConfig
from transact.distributed.environment import LAUNCHER
from transact.distributed.watchdog import SILENCE_SECONDS
from transact.engine.gram_memory import GIB
from transact.engine.memory import STAGE_KINDS, estimate_memory
from transact.errors import (
    FAILED,
    Failure,
    RankFailed,
    Refusal,
    Stopped,
    TransactError,
    leave_after,
    one_line,
    remedy,
    say_error,
)
from transact.models.folder import declared_geometry
from transact.models.identity import UnusableModel
from transact.rounds import Stage, outline
from transact.stages.recover.health import Diverged
from transact.stages.texts import UnusableText

if TYPE_CHECKING:
    from transact.distributed.process import ProcessGroup
    from transact.runs.run_folder import RunFolder


def say_last_words(message: str, config: RunConfig) -> None:
    """Print the reason in one line, then where to look, and the command that goes on.

    Args:
        message: the stage, the rank and the reason.
    """
    say_error(message, *_places(Path(config.output_dir)), *how_to_go_on(config))


def how_to_go_on(config: RunConfig) -> list[str]:
    """Return a line with the command that goes on; empty where the configuration did not come from a command line.

    Of a point it is the sweep's, which passes over finished points: by itself it would be no point of the sweep's page.
    """
    command = config.sweep_command or config.command
    return [] if command is None else [f"  go on:   {command}"]


def _places(folder: Path) -> list[str]:
    """Return lines that name the files of the run that may explain more."""
    stacks, record = folder / "stacks", folder / "run.json"
    lines = [f"  record:  {shlex.quote(str(record))}"] if record.is_file() else []
    if stacks.is_dir() and any(stacks.iterdir()):
        lines.append(f"  stacks:  {shlex.quote(str(stacks))}")
    return lines


NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded")
NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
# What gloo, NCCL and the store say when the other side is gone or silent; no rank's own failure reads like this.
LOST_RANK = re.compile(r"Connection (closed|reset|refused)|Broken pipe|Timed out waiting|Socket Timeout|NCCL|gloo")


def is_lost_rank(error: BaseException) -> bool:
    """Return whether this rank's error only follows from the failure of another rank."""
    if isinstance(error, TransactError) or not isinstance(error, RuntimeError):
        return isinstance(error, RankFailed)
    return LOST_RANK.search(str(error)) is not None and not _is_no_memory(error)


def explain(error: BaseException, stage: str, config: RunConfig, world_size: int) -> str:
    """Return the stage and the reason in one line, for run.json and the user."""
    try:
        return _explained(error, stage, config, world_size)
    except Exception:  # noqa: BLE001 - on a machine that fails, looking closer may fail as well
        return f"{stage}: {one_line(error)}"


def _explained(error: BaseException, stage: str, config: RunConfig, world_size: int) -> str:
    for each in _chain(error):
        if _is_no_space(each):
            return f"{stage}: {_no_space(each, config)}"
        if _is_no_memory(each):
            return f"{stage}: {_no_memory(stage, config, world_size)}"
    return f"{stage}: {one_line(error)}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    each: BaseException | None = error
    while each is not None:
        yield each
        each = each.__cause__


def _is_no_space(error: BaseException) -> bool:
    by_number = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return by_number or NO_SPACE.search(str(error)) is not None


def _no_space(error: BaseException, config: RunConfig) -> str:
    if isinstance(error, OSError) and error.filename:
        place = os.fsdecode(error.filename)
        free = _free_bytes(Path(place))
    else:  # writes to an open file, and safetensors, name no path: take the fullest of the places written to
        free, place = min(
            ((_free_bytes(path), where) for where, path in _written_places(config)), key=lambda each: each[0]
        )
    return (
        f"the disk is full ({place}, {free / GIB:.2f} GiB free). What was finished before is intact: {remedy('disk')}"
    )


def _written_places(config: RunConfig) -> list[tuple[str, Path]]:
    """Return where a run writes: what names the place to the user, and its path. The first on a disk stands for it."""
    cache = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
    places = [
        ("output_dir=", config.output_dir),
        ("data.token_store=", config.data.token_store),
        ("HF_HOME=", cache),
        ("TMPDIR=", tempfile.gettempdir()),
    ]
    return [(f"{name}{path}", Path(path)) for name, path in places]


def _free_bytes(path: Path) -> int:
    there = next(each for each in (path, *path.absolute().parents) if each.exists())
    return shutil.disk_usage(there).free


def _is_no_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(NO_MEMORY.search(str(error))))


def _no_memory(stage: str, config: RunConfig, world_size: int) -> str:
    """Return the message for out of memory, with the largest consumer where `mode=estimate` estimates the stage."""
    at_work = Stage.named(stage)
    kind = at_work.kind
    if kind not in STAGE_KINDS or at_work.round is None:
        helps = remedy(f"memory/{kind}")
        return f"out of memory, in a stage that mode=estimate has no estimate of; what helps: {helps}"
    parent = declared_geometry(config.model)
    geometry = outline(config, parent).at_work(at_work)  # for a measured split: equal shares, as large
    parts = estimate_memory(geometry, config, world_size, kind, parent=parent).parts()
    largest = max(parts, key=lambda part: parts[part])
    return (
        f"out of memory. The largest consumer is {largest} (about {parts[largest] / GIB:.2f} GiB a rank); what helps: "
        f"{remedy(f'memory/{largest}/{kind}')}. mode=estimate shows all of them"
    )


# For closing the tracker once the work has stopped or failed: W&B without a network must not hold the machines.
CLOSING_SECONDS = 30.0
VERDICT_PATIENCE_SECONDS = SILENCE_SECONDS + 5


UNUSABLE = (UnusableModel, UnusableText)  # a fault of the request that shows in the work


class JobFailed(Failure):
    """The work failed. shows_traceback: the reason is this rank's own. is_told: this rank tells the user."""

    def __init__(self, message: str, *, shows_traceback: bool, is_told: bool) -> None:
        super().__init__(message)
        self.shows_traceback = shows_traceback
        self.is_told = is_told


@contextmanager
def outcome_recorded(
    config: RunConfig,
    folder: RunFolder,
    group: ProcessGroup,
    *,
    clear_screen: Callable[[], None],
    when_recorded: Callable[[], None],
) -> Iterator[None]:
    """Record in run.json where the work inside failed and why; a rank that only lost another one names that rank.

    Args:
        clear_screen: called before anything is printed, and before the process may be ended: a live view restores the
            terminal.
        when_recorded: called on rank 0 once the end is in run.json.

    Raises:
        Stopped: as raised inside.
        Refusal: on every rank, when the model or, in mode=pretrain, the text is unusable.
        JobFailed: for every other exception.
    """
    outcome = _Outcome(config, folder, group, clear_screen, when_recorded)
    group.interruption.left = outcome.leave
    watchdog = group.watchdog
    watchdog.stacks = folder.path / "stacks"
    watchdog.record_failure, watchdog.tell = outcome.record_failure, outcome.tell
    try:
        yield
    except Stopped as stopped:
        clear_screen()
        outcome.end("stopped", str(stopped))
        raise
    except Exception as error:
        clear_screen()
        raise outcome.end_failed(error) from error


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How one rank's part in a job ends; the attributes are the arguments of `outcome_recorded`."""

    config: RunConfig
    folder: RunFolder
    group: ProcessGroup
    clear_screen: Callable[[], None]
    when_recorded: Callable[[], None]

    def record_failure(self, message: str) -> bool:
        """Record a failure that the watchdog has seen. Returns whether this rank tells the user."""
        self.clear_screen()
        return _is_to_be_told(self._record("failed", message))

    def tell(self, message: str) -> None:
        self.clear_screen()
        with redirect_stderr(sys.__stderr__ or sys.stderr):  # lm-eval, at work in the main thread, is silenced by that
            say_last_words(message, self.config)

    def leave(self, name: str) -> None:
        """Record that a second signal, of this name, ends the process at once."""
        self.clear_screen()
        if self.folder.attempt is not None:
            with suppress(OSError):
                self.folder.end("stopped", f"left at once, after a second {name}")
        self.group.interruption.say_left(name)

    def end(self, state: str, message: str) -> bool | None:
        """Record the end as `_record` does, and give what is still open `CLOSING_SECONDS` before the process ends."""
        recorded = self._record(state, message)
        self.group.watchdog.end()
        leave_after(CLOSING_SECONDS, FAILED)
        return recorded

    def end_failed(self, error: Exception) -> Refusal | JobFailed:
        """Find out why, tell the other ranks, and end as `end` does; return what is to be raised."""
        watchdog, lost = self.group.watchdog, is_lost_rank(error)
        verdict = watchdog.verdict(VERDICT_PATIENCE_SECONDS) if lost else None
        message = verdict or self._own_failure(error)
        if verdict is None:
            watchdog.report(message)
        recorded = self.end("diverged" if isinstance(error, Diverged) else "failed", message)
        if isinstance(error, UNUSABLE):
            return Refusal(message)
        told = (not lost or watchdog.speaks()) and _is_to_be_told(recorded)
        # Without a verdict, what looked like a lost rank may be an error of this rank's own.
        explains_itself = verdict is not None or isinstance(error, Diverged)
        return JobFailed(message, shows_traceback=not explains_itself, is_told=told)

    def _own_failure(self, error: Exception) -> str:
        stage, group = self.group.watchdog.stage, self.group
        if isinstance(error, UNUSABLE):
            return f"{stage}: {one_line(error)}"
        return f"rank {group.rank} failed in {explain(error, stage, self.config, group.world_size)}"

    def _record(self, state: str, message: str) -> bool | None:
        """Record how the attempt ended. Returns whether this rank's verdict counts; None where it cannot be written.

        Rank 0 writes it, the others where rank 0 is the one that is gone.
        """
        recorded = None
        if self.folder.attempt is not None and self.group.watchdog.speaks():
            with suppress(OSError):  # the disk may be full; the user is told all the same
                recorded = self.folder.end(state, message)
        if self.group.is_main and self.folder.attempt is not None:
            self.when_recorded()
        return recorded


def _is_to_be_told(recorded: bool | None) -> bool:
    """Return whether this rank tells the user.

    The rank whose verdict was recorded does, unless a launcher does. Where none could be recorded every rank does.
    """
    return recorded is None or (recorded and LAUNCHER not in os.environ)
