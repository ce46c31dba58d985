"""The job that every stage is given, and the one rule of a stage: finished output is never made again."""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from transact.config.machines import EngineConfig
from transact.config.run import RunConfig
from transact.distributed.process import ProcessGroup
from transact.engine.engine import Engine
from transact.engine.lending import LentEngine
from transact.errors import TransactError
from transact.files import DIGEST_BLOCK_BYTES, damage_of, size_damage_of
from transact.rounds import Outline, Stage, round_name
from transact.runs.run_folder import RoundFolder, RunFolder
from transact.stages.workload import stage_flops
from transact.tracking.progress import JobClock, Progress
from transact.tracking.report.keeper import PageKeeper
from transact.tracking.tracker import Tracker
from transact.tracking.view import Silent, View

CHECKED_SILENTLY_BYTES = 2_000_000_000  # which are read in seconds
COMPARED_IN_FULL_BYTES = 16_000_000  # of larger files that nothing is about to read the size alone is compared
SHOWN_FILES = 3
BORROWERS = ("evaluate", "calibrate", "gram")  # stages that look at a model; others need the memory of its engine
SHARED_FOLDER_SECONDS = 30.0  # NFS remembers for a while that a name did not exist


class StageUndone(TransactError):
    """A finished stage does not count any more: raised on every rank, so that the chain starts again and redoes it."""

    def __init__(self, stage: str) -> None:
        super().__init__(stage)
        self.stage = stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A running job as one rank sees it."""

    config: RunConfig
    group: ProcessGroup
    folder: RunFolder
    outline: Outline
    tracker: Tracker
    view: View = field(default_factory=Silent)  # of rank 0; the others are silent
    pages: PageKeeper | None = None  # of rank 0
    clock: JobClock = field(default_factory=JobClock)  # shown on rank 0 alone, which knows of earlier attempts
    engine: LentEngine = field(default_factory=LentEngine)
    measured: dict[tuple[Path, str], Any] = field(default_factory=dict)  # by model folder and text: `evaluate.measure`

    def path(self, *parts: str) -> Path:
        return self.folder.path.joinpath(*parts)

    def round(self, number: int) -> RoundFolder:
        """Return the folder of a round; 0 is the parent's."""
        return RoundFolder(self.path(round_name(number)))

    def borrow(self, model_folder: Path, settings: EngineConfig | None = None) -> AbstractContextManager[Engine]:
        """Return an engine of a model for inference, which the next stages share (collective).

        settings: of the engine where they are not those of the job.
        """
        return self.engine.of(model_folder, settings or self.config.engine, self.group)

    def forget_models(self) -> None:
        """Close the engine that is open, and forget what was measured: model folders may change now (collective)."""
        self.engine.close()
        self.measured.clear()

    def say(self, message: str) -> None:
        self.view.say(message)

    def alert(self, kind: str, text: str, *, step: int, tokens: int, round: int) -> None:
        """Send what a person should look at to the console, to metrics.jsonl and to W&B, from rank 0."""
        self.say(f"alert: round {round}, step {step}: {kind}: {text}")
        self.tracker.alert(kind, text, step=step, tokens=tokens, round=round)

    def progress(
        self,
        description: str,
        total: int,
        unit: str = "tokens",
        completed: int = 0,
        share: tuple[float, float] = (0.0, 1.0),
        in_step: bool = True,
    ) -> Progress:
        """Return a progress bar for a loop.

        Args:
            total: units of all ranks together.
            share: the part of the stage's work that the loop does, from where to where of 1, if there are other loops.
            in_step: Whether all ranks call `advance` equally often, after which the job may stop; a thread of `on_main`
                may call it too.
        """
        return Progress(
            self.view,
            description,
            total,
            unit,
            completed=completed,
            on_advance=self.group.turn if in_step else self.group.watchdog.progress,
            job_left=partial(self.clock.left, share=share),
        )

    def announce(self, outline: Outline) -> None:
        """Tell the view the stages, and the clock their work; again when a split or shapes have changed the rounds."""
        self.view.expect(outline.stages)
        self.clock.expect(stage_flops(self.config, outline))

    def check_seen(self, field: str, path: Path) -> None:
        """Wait until every rank sees a folder that rank 0 has just made (collective).

        A shared file system may need a while to show it.

        Raises:
            ValueError: on every rank, when one does not see the folder.
        """

        def look() -> None:
            deadline = time.monotonic() + SHARED_FOLDER_SECONDS
            while not path.is_dir():
                if time.monotonic() > deadline:
                    raise ValueError(
                        f"{field}: {str(path)!r} is not there on rank {self.group.rank} (host {socket.gethostname()}): "
                        "it must be a folder that all machines share"
                    )
                time.sleep(1)

        self.group.everywhere(look)

    def show(self) -> None:
        """Bring report.html up to date, where that is due (collective)."""
        self.group.on_main(lambda: self.pages.write_if_due() if self.pages else None)

    def forget_metrics(self, position: int | None = None) -> None:
        """Drop what an unfinished attempt logged: all after `position` bytes, or after the last finished stage.

        A checkpoint that a repair has saved, in which nothing is logged, has position 0: what is finished stays.
        """
        if self.group.is_main:
            self.tracker.truncate(max(position or 0, self.folder.metrics_position()))

    def is_finished(self, stage: Stage, settings: dict[str, Any] | None = None) -> bool:
        """Return whether a stage is finished, with these settings if any are given (collective)."""
        is_done = self.folder.is_finished(stage.name, settings) if self.group.is_main else None
        return bool(self.group.broadcast(is_done))

    def made_of(self, *paths: Path) -> str:
        """Return a digest of the recorded files at or below these paths: of what a stage has read (collective)."""
        return self.group.on_main(lambda: self._digest(paths))

    def _digest(self, paths: Sequence[Path]) -> str:
        digests = sorted((name, file["sha256"]) for name, (_, file) in self.folder.recorded(*paths).items())
        return hashlib.sha256(json.dumps(digests).encode()).hexdigest()

    def verify(self, *paths: Path) -> None:
        """Compare finished files of this run with their digests, right before a stage reads them (collective).

        The ranks share the reading.

        Raises:
            StageUndone: on every rank, when one is not as it was when its stage was finished.
        """
        found = self._damaged(*paths)
        if found is not None:
            raise StageUndone(found)

    def _damaged(self, *paths: Path) -> str | None:
        """Return the first stage with a damaged file at or below these paths, None if there is none (collective).

        The damage is recorded in run.json and logged.
        """
        gone, recorded = self.group.broadcast(
            (self.folder.superseded(*paths), self.folder.recorded(*paths)) if self.group.is_main else None
        )
        if gone is not None:
            self.say(f"{gone}: its model folder was removed (keep_rounds=last) and is needed again: it is made again")
            if self.group.is_main:
                self.folder.mark_damaged(gone, "was removed (keep_rounds=last)")
            return str(gone)
        names = sorted(recorded)
        own = self.group.shared_out(len(names))
        size = sum(recorded[names[number]][1]["size"] for number in own)
        view = self.view if size > CHECKED_SILENTLY_BYTES else Silent()

        def check() -> list[tuple[str, str, str]]:
            problems = []
            alive = self.group.watchdog.progress
            with Progress(view, "compare files with their digests", size, "bytes", on_advance=alive) as bar:
                for number in own:
                    stage, file = recorded[names[number]]
                    path = self.path(names[number])
                    problem = damage_of(path, file, partial(bar.advance, DIGEST_BLOCK_BYTES))
                    problems += [(stage, names[number], problem)] if problem else []
            return problems

        problems = [problem for found in self.group.everywhere(check) for problem in found]
        if not problems:
            return None
        stage, name, problem = problems[0]
        self.say(f"{stage}: its file {name} {problem}: the stage is done again")
        if self.group.is_main:
            self.folder.mark_damaged(stage, f"{name} {problem}")
        return stage

    def warn_of_damage(self) -> None:
        """Warn of damaged files of finished stages that nothing reads any more (collective).

        None is made again: that may cost a day, and the result does not need it.
        """
        recorded = self.group.broadcast(self.folder.recorded(self.folder.path) if self.group.is_main else None)
        gone = {stage.name for stage in self.outline.stages if stage.kind == "gram"}
        names = sorted(name for name, (stage, _) in recorded.items() if stage not in gone)
        own = self.group.shared_out(len(names))

        def check() -> list[str]:
            alive, problems = self.group.watchdog.progress, []
            for name in (names[number] for number in own):
                file, path = recorded[name][1], self.path(name)
                is_small = file["size"] <= COMPARED_IN_FULL_BYTES
                problem = damage_of(path, file, alive) if is_small else size_damage_of(path, file)
                problems += [f"{name} {problem}"] if problem else []
            return problems

        problems = sorted(each for found in self.group.everywhere(check) for each in found)
        if problems:
            more = len(problems) - SHOWN_FILES
            shown = "; ".join(problems[:SHOWN_FILES]) + (f"; and {more} more" if more > 0 else "")
            self.say(f"warning: files of finished stages are not as they were, which the result needs no more: {shown}")

    def stage(
        self,
        stage: Stage,
        output: Path,
        work: Callable[[], dict[str, Any] | None],
        *,
        reads: Sequence[Path] = (),
        also: Sequence[Path] = (),
        scratch: Sequence[Path] = (),
        settings: dict[str, Any] | None = None,
    ) -> Path:
        """Make `output` unless it is finished already (collective: the same arguments on all ranks).

        A result of the run is compared with its digests even if it is finished and nothing reads it. A recovery may
        continue an earlier attempt, and then drops that attempt's surplus metrics itself.

        Args:
            work: Makes the output on all ranks; may return the size and SHA-256 of files by name.
            reads: What the work reads of this run. It is first compared with what was recorded of it.
            also: What it makes besides, and keeps.
            scratch: What it makes besides for its own use.
            settings: Plain values that the output depends on and that may change in a finished run; where they have,
                the stage is done again, and so are those after it.

        Returns:
            `output`.

        Raises:
            Stopped: on every rank, when the job was asked to stop.
            StageUndone: on every rank, when an earlier stage must be done again.
        """
        name = self.group.watchdog.stage = stage.name
        self.group.stop_if_asked()
        if self.is_finished(stage, settings) and not (stage.is_result and self._damaged(output)):
            self.clock.finish(stage, self.folder.stages[name]["seconds"] if self.group.is_main else 0.0)
            self.view.finish(stage)
            self.say(f"{name}: already finished")
            return output
        self.verify(*reads)
        if stage.kind not in BORROWERS:
            self.engine.close()
        order = [each.name for each in self.outline.stages] if settings is not None else []
        is_repair = self.group.on_main(lambda: self.folder.begin(name, [output, *also], scratch, order))
        with self.tracker.silent(is_repair):
            if stage.kind != "recover":
                self.forget_metrics()
            digests, seconds = self._timed(stage, output.parent, work)

        def finish() -> bool:
            earlier = sorted({each for each, _ in self.folder.recorded(*reads).values()})
            position = self.tracker.position()
            return self.folder.finish(name, [output, *also], seconds, position, digests, settings, earlier)

        if not self.group.on_main(finish):
            self.say(f"{name}: came out other than before, so what was made of it is done again too")
            raise StageUndone(name)
        self.clock.finish(stage)
        self.view.finish(stage)
        return output

    def _timed(
        self, stage: Stage, folder: Path, work: Callable[[], dict[str, Any] | None]
    ) -> tuple[dict[str, Any], float]:
        """Do a stage's work in a folder, and return what it says of its files, and its seconds (collective).

        Those of a recovery are of all attempts, without work that was lost; of other stages they are of the last one.
        """
        if self.group.is_main:
            folder.mkdir(parents=True, exist_ok=True)
        self.show()
        self.clock.begin(stage)
        self.view.begin(stage, self.clock.left())
        digests = work()
        self.group.barrier()
        return digests or {}, self.clock.elapsed()
