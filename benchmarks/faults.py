"""Kill a job at random moments until it completes anyway, and compare its end with that of an undisturbed run.

    python -m benchmarks.faults

A job of two ZeRO-3 ranks, started with `launch=local`. Each kill aims at a stage, drawn evenly, or at a checkpoint that
is being written, and hits, at a random moment in it, one rank or every process of the job with SIGKILL. Then the same
command is started again.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from safetensors.torch import load_file

from benchmarks.workload import RESULTS, write_result
from transact.errors import DONE, leave
from transact.files import TEMPORARY_SUFFIX, read_json
from transact.rounds import Stage
from transact.runs.metrics import read_metrics

RANKS = 2
SAVING = ": saving"  # suffix of a recovery's name: while one of its checkpoints is written
POLL_SECONDS = 0.005
LIMIT_SECONDS = 600.0
# A rank's death must be noticed within 30 s; the rest is for the interpreter to start and end on a busy machine.
NOTICE_SECONDS = 60.0
DEMO = (
    "+experiment=demo",
    "recover.tokens=131072",
    "data.evaluation_sequences=64",
    "prune.calibration_sequences=64",
    "engine.checkpoint_every.tokens=16384",
    "track.mode=disabled",
)


@dataclass(kw_only=True)
class Tally:
    """Counts of the kills by stage, and how long each death of a rank took to be noticed."""

    by_stage: Counter[str] = field(default_factory=Counter)
    noticed_seconds: list[float] = field(default_factory=list)  # from the death of one rank to the end of the job


def start(overrides: list[str]) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SUBMITIT", "SLURM"))}
    return subprocess.Popen(
        [sys.executable, "-m", "transact.run", *overrides, "launch=local", f"launch.processes={RANKS}"],
        env=environment | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def complete(overrides: list[str], folder: Path) -> None:
    """Run the job to its end.

    Raises:
        RuntimeError: the job failed, although nobody killed it.
    """
    process = start([*overrides, f"output_dir={folder}"])
    _, errors = process.communicate(timeout=LIMIT_SECONDS)
    if process.returncode != 0:
        raise RuntimeError(f"{folder.name}: exit code {process.returncode}: {errors.decode()[-2000:]}")


def record_of(folder: Path) -> dict[str, Any]:
    record = folder / "run.json"
    return read_json(record) if record.is_file() else {"restarts": -1, "stages": {}, "stage": None}


def stage_now(folder: Path) -> str | None:
    """Return the stage at work; None between stages."""
    record = record_of(folder)
    return None if record["stage"] in record["stages"] else record["stage"]


def is_saving(folder: Path) -> bool:
    """Return whether a checkpoint is being written."""
    return any(folder.glob(f"checkpoints/*{TEMPORARY_SUFFIX}"))


def ranks_of(process: subprocess.Popen[bytes]) -> dict[int, psutil.Process]:
    """Return the processes of the ranks, by rank; submitit starts each as a child of its controller."""
    ranks = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if any("submitit.core._submit" in word for word in child.cmdline()):
                ranks[int(child.environ()["SUBMITIT_LOCAL_GLOBALID"])] = child
    return ranks


def is_reached(target: str, folder: Path) -> bool:
    """Return whether the job is at the target or past it: a stage may be shorter than the polling interval."""
    stage, stages = target.removesuffix(SAVING), record_of(folder)["stages"]
    if stage in stages:
        return True
    return stage_now(folder) == stage and (target == stage or is_saving(folder))


def place(folder: Path) -> str:
    """Return where the job is, as the tally names it."""
    stage = stage_now(folder)
    if stage is None:
        return "between stages"
    return stage + SAVING if is_saving(folder) else stage


def kill_in(
    target: str, seconds: float, overrides: list[str], folder: Path, chance: random.Random, tally: Tally
) -> bool:
    """Start the job and kill in `target`, at a random moment of the `seconds` that it usually takes.

    Returns:
        Whether a process was killed: the job may have completed meanwhile.

    Raises:
        AssertionError: the job did not end as it should.
    """
    attempts = record_of(folder)["restarts"]
    process = start([*overrides, f"output_dir={folder}"])

    deadline = time.monotonic() + LIMIT_SECONDS
    # Until this attempt has begun, the folder shows where the one before was killed.
    while process.poll() is None and not (record_of(folder)["restarts"] > attempts and is_reached(target, folder)):
        assert time.monotonic() < deadline, f"{target} never came"
        time.sleep(POLL_SECONDS)
    time.sleep(chance.uniform(0, seconds))
    if process.poll() is not None:
        process.communicate()
        return False
    met = place(folder)
    _kill(process, folder, chance, tally)
    tally.by_stage[met] += 1
    print(f"kill {tally.by_stage.total()}: in {met}", flush=True)
    return True


def _kill(process: subprocess.Popen[bytes], folder: Path, chance: random.Random, tally: Tally) -> None:
    ranks = ranks_of(process)
    everybody = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    if chance.random() < 0.5 and len(ranks) == RANKS:
        _kill_one(process, ranks, folder, chance, tally)
        return
    for each in everybody:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.communicate()
    psutil.wait_procs(everybody)


def _kill_one(
    process: subprocess.Popen[bytes],
    ranks: dict[int, psutil.Process],
    folder: Path,
    chance: random.Random,
    tally: Tally,
) -> None:
    """Kill one rank, and assert that the job ends with a line that says which rank died."""
    number = chance.choice(sorted(ranks))
    begin = time.monotonic()
    ranks[number].kill()
    _, told = process.communicate(timeout=LIMIT_SECONDS)
    seconds = time.monotonic() - begin
    tally.noticed_seconds.append(seconds)
    assert process.returncode == 1, f"exit code {process.returncode} after rank {number} was killed"
    assert seconds < NOTICE_SECONDS, f"the death of rank {number} went unnoticed for {seconds:.0f} s"
    if record_of(folder).get("state") != "done":
        assert f"error: rank {number} died in " in told.decode(errors="replace"), told[-2000:]


def usual_seconds(folder: Path) -> dict[str, float]:
    """Return target -> seconds that it usually takes, in the order in which the targets come."""
    saving = median(
        row["perf/checkpoint_s"] for row in read_metrics(folder / "metrics.jsonl") if "perf/checkpoint_s" in row
    )
    seconds = {}
    for stage, entry in record_of(folder)["stages"].items():
        seconds[stage] = entry["seconds"]
        if Stage.named(stage).kind == "recover":
            seconds[stage + SAVING] = saving
    return seconds


def losses(folder: Path) -> list[tuple[int, int, float]]:
    """Return (round, step, loss) of every line about a step of recovery."""
    rows = read_metrics(folder / "metrics.jsonl")
    return [(row["round"], row["step"], row["recover/loss"]) for row in rows if "recover/loss" in row]


def run_faults(overrides: list[str], *, kills: int, runs: int, seed: int, folder: Path) -> dict[str, Any]:
    """Kill `kills` times in all, spread over `runs` jobs, and return the benchmark's result."""
    chance, tally = random.Random(seed), Tally()
    undisturbed = folder / "undisturbed"
    complete(overrides, undisturbed)
    seconds = usual_seconds(undisturbed)
    expected = losses(undisturbed)
    weights = load_file(undisturbed / "export" / "model.safetensors")
    rows: list[dict[str, Any]] = []
    while len(rows) < runs or (tally.by_stage.total() < kills and len(rows) < 2 * runs):
        run = folder / f"run_{len(rows)}"
        wanted = min(kills, -(-kills * (len(rows) + 1) // runs)) - tally.by_stage.total()
        for target in sorted(chance.choices(list(seconds), k=wanted), key=list(seconds).index):
            if not kill_in(target, seconds[target], overrides, run, chance, tally):
                break
        complete(overrides, run)
        rows.append(_compare(run, expected, weights))
        print(f"run {len(rows)}: {rows[-1]}", flush=True)
    return {
        "kills": tally.by_stage.total(),
        "by_stage": dict(sorted(tally.by_stage.items())),
        "runs": len(rows),
        "identical": sum(row["identical"] for row in rows),
        "lost_steps": sum(row["lost_steps"] for row in rows),
        "repeated_steps": sum(row["repeated_steps"] for row in rows),
        "left_over_files": sum(row["left_over_files"] for row in rows),
        "kills_of_one_rank": len(tally.noticed_seconds),
        "seconds_to_notice": {"largest": max(tally.noticed_seconds, default=None), "all": tally.noticed_seconds},
    }


def _compare(run: Path, expected: list[tuple[int, int, float]], weights: Any) -> dict[str, Any]:
    found = losses(run)
    steps, expected_steps = (Counter((round_, step) for round_, step, _ in each) for each in (found, expected))
    ours = load_file(run / "export" / "model.safetensors")
    same_weights = ours.keys() == weights.keys() and all(ours[name].equal(weights[name]) for name in weights)
    return {
        "identical": same_weights and found == expected,
        "lost_steps": (expected_steps - steps).total(),
        "repeated_steps": (steps - expected_steps).total(),
        "left_over_files": sum(1 for _ in run.rglob(f"*{TEMPORARY_SUFFIX}")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS / "faults.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="transact-faults-") as name:
        overrides = [*DEMO, f"data.token_store={name}/tokens"]
        result = run_faults(
            overrides, kills=arguments.kills, runs=arguments.runs, seed=arguments.seed, folder=Path(name)
        )
    write_result(arguments.output, result)
    if result["kills"] < arguments.kills or result["identical"] < result["runs"]:
        raise SystemExit(f"{result['kills']} kills, {result['identical']} of {result['runs']} runs as without: failed")


if __name__ == "__main__":
    main()
    leave(DONE)
