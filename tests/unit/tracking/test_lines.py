"""What a log file gets: lines that are whole, say how far the job is, and name the point of a sweep."""

from __future__ import annotations

import contextlib
import errno
import io
import re

import pytest

from transact.rounds import Stage
from transact.tracking.progress import Progress
from transact.tracking.view import Lines

STAGES = [Stage("evaluate", 0), Stage("recover", 1), Stage("export")]


def written(capsys: pytest.CaptureFixture[str], label: str = "", interval: float = 0.0) -> list[str]:
    stream = io.StringIO()
    view = Lines(interval, stream, label)
    view.expect(STAGES)
    view.begin(Stage("recover", 1), job_left=75.0)
    with Progress(view, "recover round 1", 1000, job_left=lambda status: 3725.4) as bar:
        for _ in range(4):
            bar.advance(250, loss=3.1187, next="a very long figure " * 20)
    view.say("round 1: recovered perplexity 7.00")
    return [*stream.getvalue().splitlines(), *capsys.readouterr().out.splitlines()]


def test_a_stage_and_its_loop_have_lines_that_are_never_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    begin, *loop, said = written(capsys)
    assert begin == "round_01/recover  stage=2/3  job_left=1:15"
    assert len(loop) == 4 and all("job_left=1:02:05" in line and "loss=3.119" in line for line in loop)
    assert re.match(r"recover round 1  tokens=1000/1000  100%  tokens_per_s=\S+  left=0:00  job_left=", loop[-1])
    assert said == "round 1: recovered perplexity 7.00"


def test_a_line_is_not_lost_while_standard_output_is_caught(capsys: pytest.CaptureFixture[str]) -> None:
    """Another thread acknowledges a signal while an engine is made, whose library writes on standard output."""
    view = Lines(0.0)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        view.say("SIGINT: stopping")
        view.begin(Stage("export"))
    assert capsys.readouterr() == ("SIGINT: stopping\n", "export\n")


def test_a_reader_that_is_gone_ends_no_run() -> None:
    """Ctrl-C ends the `tee` of `... | tee log` too."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, text)

    Lines(0.0, Gone()).begin(Stage("export"))


def test_one_line_an_interval_and_one_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    _, *loop, _ = written(capsys, interval=3600.0)
    assert [line.split()[3] for line in loop] == ["tokens=1000/1000"]


def test_every_line_of_a_point_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    lines = written(capsys, label="prune.remove_fraction=0.3")
    assert len(lines) == 6
    assert all(line.startswith("[prune.remove_fraction=0.3] ") for line in lines)
