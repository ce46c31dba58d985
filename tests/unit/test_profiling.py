"""track.profile_steps: the steps that are asked for, in files that are whole, and never at the cost of the training."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.configs import compose_config
from transact.config.outputs import TrackConfig
from transact.stages.preflight import check_settings
from transact.stages.recover.profiling import StepProfiler

CPU = torch.device("cpu")


def job_in(folder: Path, steps: list[int] | None, *, is_main: bool = True) -> tuple[Any, list[str]]:
    """What a profiler asks of a job."""
    said: list[str] = []
    config = SimpleNamespace(track=TrackConfig(profile_steps=steps))
    group = SimpleNamespace(is_main=is_main, device=CPU)
    return SimpleNamespace(config=config, group=group, path=folder.joinpath, say=said.append), said


def train(job: Any, steps: range, begin: int | None = None) -> None:
    """A round of these steps, of which this attempt begins at one in the middle."""
    with StepProfiler(job, steps) as profiler:
        for number in range(begin or steps.start, steps.stop):
            with profiler.step(number):
                torch.ones(2, 2) @ torch.ones(2, 2)


def steps_in(path: Path) -> set[int]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    assert any(event.get("name") == "aten::mm" for event in events)
    names = (str(event.get("name")) for event in events)
    return {int(name.removeprefix("step ")) for name in names if name.startswith("step ")}


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("profile/*"))


def test_steps_of_two_rounds_are_in_a_file_each(tmp_path: Path) -> None:
    job, said = job_in(tmp_path, [2, 5])
    train(job, range(1, 4))
    train(job, range(4, 9))
    first, second = (f"steps_00000{a}_to_00000{b}_rank_00000.json.gz" for a, b in ((2, 3), (4, 5)))
    assert files(tmp_path) == [first, second]
    assert steps_in(tmp_path / "profile" / first) == {2, 3}
    assert steps_in(tmp_path / "profile" / second) == {4, 5}
    assert said == [
        f"profile of steps {a} to {a + 1} on rank 0: {tmp_path}/profile/{name}" for a, name in ((2, first), (4, second))
    ]


def test_an_attempt_that_goes_on_records_what_is_left(tmp_path: Path) -> None:
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "steps_000002_to_000005_rank_00000.json.tmp").write_text("half")
    (tmp_path / "profile" / "mine.tmp").write_text("of the user")
    job, _ = job_in(tmp_path, [2, 5])
    train(job, range(1, 9), begin=4)
    assert files(tmp_path) == ["mine.tmp", "steps_000004_to_000005_rank_00000.json.gz"]
    train(job, range(1, 9), begin=7)
    assert len(files(tmp_path)) == 2


def test_nothing_is_recorded_where_nobody_asks_or_on_other_ranks(tmp_path: Path) -> None:
    for steps, is_main in ((None, True), ([1, 2], False)):
        job, said = job_in(tmp_path, steps, is_main=is_main)
        train(job, range(1, 4))
        assert not said
    assert not files(tmp_path)


def test_a_job_that_stops_within_the_steps_writes_no_half_profile(tmp_path: Path) -> None:
    job, _ = job_in(tmp_path, [1, 3])
    with pytest.raises(KeyboardInterrupt), StepProfiler(job, range(1, 9)) as profiler:
        with profiler.step(1):
            pass
        raise KeyboardInterrupt
    assert not files(tmp_path)
    train(job, range(1, 4))  # the profiler was ended: another can begin
    assert len(files(tmp_path)) == 1


def test_a_profile_that_cannot_be_written_ends_no_training(tmp_path: Path) -> None:
    (tmp_path / "profile").write_text("a file in the way")
    job, said = job_in(tmp_path, [1, 1])
    train(job, range(1, 4))
    assert len(said) == 1 and "cannot be written" in said[0]


@pytest.mark.parametrize("steps", [[3, 2], [1, 51]])
def test_a_range_of_steps(steps: list[int]) -> None:
    with pytest.raises(ValueError, match=r"track\.profile_steps=.* the first and the last of at most 50 steps"):
        TrackConfig(profile_steps=steps)


def test_steps_that_recovery_has() -> None:
    asked = ["name=x", "model=demo_random", "mode=pretrain", "recover.objective=cross_entropy", "recover.tokens=8192"]
    asked += ["recover.batch_sequences=8", "data.sequence_length=128", "engine.micro_batch_sequences=8"]
    for last, is_taken in ((8, True), (9, False)):
        config = compose_config([*asked, f"track.profile_steps=[2,{last}]"])
        assert config.model.architecture is not None
        described = config.model.architecture.to_model_config()
        if is_taken:
            check_settings(config, described, 1)
        else:
            with pytest.raises(ValueError, match=r"profile_steps=\[2, 9\] is not allowed: recovery has 8 steps"):
                check_settings(config, described, 1)
