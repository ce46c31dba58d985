"""A profile of a few steps of recovery as files of the run: PyTorch's trace, and of a GPU what its allocator did."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from transact.errors import one_line
from transact.files import publish, temporary_name
from transact.stages.job import Job

PROFILES = "profile"  # folder of the run
LARGEST_HISTORY = 1_000_000  # events of the allocator


class StepProfiler:
    """Records the steps of `track.profile_steps` that this attempt makes in one round, on rank 0 alone.

    Steps are counted over all rounds from 1, as in metrics.jsonl. What an attempt did not finish is not written; the
    one that goes on records the steps that are left to it.
    """

    def __init__(self, job: Job, round_steps: range) -> None:
        """Choose the steps. round_steps: the numbers of the round's steps."""
        self._job = job
        first, last = job.config.track.profile_steps or (1, 0)
        is_asked = job.group.is_main
        self._steps = range(max(first, round_steps.start), min(last + 1, round_steps.stop)) if is_asked else range(0)
        self._recording: profile | None = None
        self._first = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._recording is not None:
            self._stop(self._recording)

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Record the step in the block if it is one of those, and write the files after the last."""
        if number not in self._steps:
            yield
            return
        if self._recording is None:
            self._start(number)
        with record_function(f"step {number}"):
            yield
        if number == self._steps[-1]:
            self._write(number)

    def _start(self, number: int) -> None:
        activities = [ProfilerActivity.CPU]
        if self._job.group.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=LARGEST_HISTORY)
        self._first, self._recording = number, profile(activities=activities, profile_memory=True)
        self._recording.start()  # type: ignore[no-untyped-call]

    def _stop(self, recording: profile) -> None:
        recording.stop()  # type: ignore[no-untyped-call]
        self._recording = None
        if self._job.group.device.type == "cuda":
            torch.cuda.memory._record_memory_history(enabled=None)

    def _write(self, last: int) -> None:
        recording = self._recording
        assert recording is not None
        name = self._job.path(PROFILES) / f"steps_{self._first:06d}_to_{last:06d}_rank_00000"
        snapshot = torch.cuda.memory._snapshot() if self._job.group.device.type == "cuda" else None
        self._stop(recording)
        try:
            files = [_write_trace(name, recording)]
            if snapshot is not None:
                files.append(_write_memory(name, snapshot))
        except OSError as error:  # training is worth more than its profile
            self._job.say(f"profile of steps {self._first} to {last}: cannot be written: {one_line(error)}")
            return
        self._job.say(f"profile of steps {self._first} to {last} on rank 0: {', '.join(map(str, files))}")


def _write_trace(name: Path, recording: profile) -> Path:
    name.parent.mkdir(exist_ok=True)
    for left in name.parent.glob("steps_*.tmp"):  # of an attempt that was killed while it wrote
        left.unlink()
    plain = temporary_name(name.with_suffix(".json"))
    recording.export_chrome_trace(str(plain))
    if not plain.is_file():  # the library logs why
        raise OSError(f"{str(plain)!r} was not written")
    return _compress(plain, name.with_suffix(".json.gz"))


def _write_memory(name: Path, snapshot: Any) -> Path:
    plain = temporary_name(name.with_name(f"{name.name}_memory.json"))
    plain.write_text(json.dumps(snapshot, default=str), encoding="utf-8")
    return _compress(plain, name.with_name(f"{name.name}_memory.json.gz"))


def _compress(plain: Path, output: Path) -> Path:
    """Replace a file by a finished one that is compressed, and return that."""
    with plain.open("rb") as source, gzip.open(temporary_name(output), "wb", compresslevel=6) as target:
        shutil.copyfileobj(source, target)
    publish(temporary_name(output), output)
    plain.unlink()
    return output
