"""Show the state of a run, or of every run of a sweep, from its files and from SLURM's queue alone.

python -m transact status FOLDER_OR_SWEEP
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transact.config.pruning import VARIANTS
from transact.distributed.file_lock import is_known_free
from transact.distributed.slurm import ENDED, SlurmError, job_states
from transact.errors import DONE, Parser, one_line, printable, refuse, remedy
from transact.rounds import Stage
from transact.runs.metrics import read_metrics
from transact.runs.run_folder import run_folders
from transact.runs.run_record import JOB_RECORD, read_config, read_record

# On held-out text only: perplexity on the validation part is another figure.
PERPLEXITIES = {
    "eval/perplexity_recovered": "round {}, recovered",
    "eval/perplexity_sliced": "round {}, sliced",
    "eval/perplexity_dense": "the dense model",
}
SHOWN_FILES = 2
SPEED_ROWS = 20  # the latest steps, whose median speed is shown
DIED = f"all its processes were killed, and none could say why: {remedy('died')}"
HEADINGS = ("run", "state", "stage", "round", "tokens", "perplexity", "tokens/s", "recovery left", "restarts", "job")


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """The state of one run; None where the files do not say.

    Attributes:
        state: of run.json; "submitted" while no attempt has begun.
        tokens, total_tokens: of recovery, done and in all.
        perplexity, perplexity_of: the latest on held-out text, and of which model. text: what the held-out text is.
        seconds_left: of recovery, at the latest speed.
        interruptions: timeouts, preemptions and failures of the present job.
        job, job_state: in SLURM; the state is "gone" when SLURM knows of it no more.
    """

    name: str
    state: str
    stage: str | None = None
    round: int | None = None
    tokens: int | None = None
    total_tokens: int | None = None
    perplexity: float | None = None
    perplexity_of: str | None = None
    text: str | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    restarts: int | None = None
    interruptions: dict[str, int] | None = None
    error: str | None = None
    job: str | None = None
    job_state: str | None = None


def statuses(folders: list[Path]) -> list[Status]:
    """Return the status of each run. SLURM is asked once for all, and not at all if none was submitted to it."""
    jobs = {each: _newest_job(each) for each in folders}
    wanted = [job for job in jobs.values() if job is not None]
    try:
        states = job_states(wanted)
        unknown = "gone"
    except SlurmError as error:
        states, unknown = {}, f"unknown ({error})"
    return [status_of(folder, job, None if job is None else states.get(job, unknown)) for folder, job in jobs.items()]


def _newest_job(folder: Path) -> str | None:
    """Return the job submitted last, by a command of ours or by hand since; None without one."""
    submitted, begun = read_record(folder, JOB_RECORD) or {}, read_record(folder) or {}
    jobs = (submitted.get("job"), begun.get("attempt", {}).get("job"))
    return max((job for job in jobs if job is not None), key=int, default=None)


def status_of(folder: Path, job: str | None, job_state: str | None) -> Status:
    """Return the status of one run from its files, and from its newest job and that job's state in SLURM."""
    record, name = read_record(folder), _name(folder)
    if record is None:
        return Status(name=name, state="submitted", job=job, job_state=job_state)
    rows = read_metrics(folder / "metrics.jsonl") if (folder / "metrics.jsonl").is_file() else []
    config = read_config(folder)
    total = _within(config, "recover", "tokens")
    perplexity = _perplexity(rows)
    tokens = max((row["tokens"] for row in rows), default=0)
    speed = _speed(rows)
    interruptions = record.get("interruptions", {})
    stage = record.get("stage")
    is_over = record["state"] == "done"
    state = _state(folder, record["state"], job_state)
    return Status(
        name=name,
        state=state,
        stage=None if is_over else stage,
        round=None if stage is None else Stage.named(stage).round,
        tokens=tokens,
        total_tokens=total,
        perplexity=None if perplexity is None else perplexity[0],
        perplexity_of=None if perplexity is None else perplexity[1],
        text=_held_out_text(_within(config, "data", "evaluation")),
        tokens_per_second=speed,
        # A round trains for at least one step, so that tokens may exceed the total that was asked for.
        seconds_left=max(0, total - tokens) / speed if total is not None and speed and not is_over else None,
        restarts=record.get("restarts"),
        interruptions={kind: count for kind, count in interruptions.items() if isinstance(count, int)},
        error=DIED if state == "died" else record.get("error") or (None if is_over else interruptions.get("last")),
        job=job,
        job_state=job_state,
    )


def _name(folder: Path) -> str:
    """Return the name of the run; that of a variant begins with the run that it recovers."""
    return str(Path(*folder.absolute().parts[-3:])) if folder.parent.name == VARIANTS else folder.name


def _state(folder: Path, recorded: str, job_state: str | None) -> str:
    """Return the recorded state, or "died" where all processes were killed, which run.json cannot say.

    For a job SLURM knows it; else the run's lock, free on this machine, shows it.
    """
    if recorded != "running":
        return recorded
    if job_state is not None:
        return "died" if job_state in ENDED else recorded
    try:
        is_dead = is_known_free(folder / "run.lock")
    except OSError:  # a folder of another user
        is_dead = False
    now = str((read_record(folder) or {}).get("state"))  # the run may have ended since the first look
    return "died" if is_dead and now == "running" else now


def _within(values: Any, *names: str) -> Any:
    """Return the value under these nested names; None where there is none."""
    for name in names:
        values = values.get(name) if isinstance(values, dict) else None
    return values


def _held_out_text(text: Any) -> str | None:
    """Return a short description of the text that data.evaluation names; None where it is unknown."""
    source = _within(text, "source")
    if source in ("files", "tokens"):
        names = [Path(str(each)).name for each in text.get("files") or []]
        more = len(names) - SHOWN_FILES
        return ", ".join(names[:SHOWN_FILES]) + (f" and {more} more" if more > 0 else "")
    if source == "hub":
        return f"{text.get('hub_id')}, split {text.get('split')}"
    return "the library of this Python" if source == "python_stdlib" else None


def _speed(rows: list[dict[str, Any]]) -> float | None:
    speeds = sorted([row["perf/tokens_per_s"] for row in rows if "perf/tokens_per_s" in row][-SPEED_ROWS:])
    return speeds[len(speeds) // 2] if speeds else None


def _perplexity(rows: list[dict[str, Any]]) -> tuple[float, str] | None:
    """Return the latest perplexity and the model it is of; in a row with several, that of the most finished model."""
    for row in reversed(rows):
        for name, whose in PERPLEXITIES.items():
            if name in row:
                return float(row[name]), whose.format(row.get("round", "?"))
    return None


def table(found: list[Status]) -> str:
    """Return the runs as a table for the terminal; below it counts by state, the held-out texts and the errors."""
    rows = [HEADINGS, *(_cells(each) for each in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if len(found) > 1:
        states = [each.state for each in found]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        lines.append(f"{len(found)} runs: {counts}")
    texts = dict.fromkeys(each.text for each in found if each.text and each.perplexity is not None)
    lines += [f"perplexity: on held-out text, data.evaluation ({text})" for text in texts]
    lines += [f"{each.name}: {one_line(each.error)}" for each in found if each.error]
    return "\n".join(lines)


def _cells(status: Status) -> tuple[str, ...]:
    counts = status.interruptions or {}
    split = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    restarts = "-" if status.restarts is None else f"{status.restarts}{f' ({split})' if split else ''}"
    tokens = "-" if status.tokens is None or not status.total_tokens else f"{status.tokens:,}/{status.total_tokens:,}"
    left = "-" if status.seconds_left is None else time.strftime("%H:%M:%S", time.gmtime(status.seconds_left))
    days = int((status.seconds_left or 0) // 86_400)
    return (
        status.name,
        status.state,
        status.stage or "-",
        "-" if status.round is None else str(status.round),
        tokens,
        "-" if status.perplexity is None else f"{status.perplexity:.2f} ({status.perplexity_of})",
        "-" if status.tokens_per_second is None else f"{status.tokens_per_second:,.0f}",
        f"{days}d {left}" if days else left,
        restarts,
        "-" if status.job is None else f"{status.job} {status.job_state}",
    )


def main() -> int:
    parser = Parser(prog="transact status", description=__doc__)
    parser.add_argument("folder", type=Path, help="of a run, or of a sweep")
    given = parser.parse_args()
    try:
        found = statuses(run_folders(given.folder))
    except (ValueError, OSError) as error:
        return refuse(error)
    print(printable(table(found)))
    return DONE
