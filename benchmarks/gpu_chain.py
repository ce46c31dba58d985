"""Does the chain work on a GPU: two rounds with distillation, a signal, a kill, resuming, and the export.

    python -m benchmarks.gpu_chain FOLDER --device cuda --size full

runs the job, or goes on with it; the sections of `benchmarks.gpu_check` start it, stop it and look at what it wrote.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.gpu_place import SIZES, Figures, Place, Section, Size, gib, require
from benchmarks.vllm_check import TOLERANCE, vllm_difference
from benchmarks.workload import random_texts, run_config
from transact.config.accelerators import model_flops_utilisation
from transact.config.outputs import EfficiencyConfig, EvalConfig
from transact.config.run import RunConfig
from transact.distributed.environment import environment_rank, forget_launcher
from transact.distributed.process import ProcessGroup, process_group
from transact.distributed.signals import Interruption
from transact.engine.memory import estimate_memory
from transact.errors import DONE, FAILED, Stopped, leave
from transact.files import read_json, write_json
from transact.geometry import Geometry
from transact.rounds import Stage, outline
from transact.runs.metrics import MetricsLog, read_metrics
from transact.runs.run_folder import CHECKPOINTS, RunFolder
from transact.stages.chain import Prepared, run_chain
from transact.stages.job import Job
from transact.stages.parent import recognise
from transact.tracking.tracker import Tracker
from transact.tracking.view import Lines, Silent

ROUNDS = 2
PIDS, MEASURED, LOG = "pids", "measured.json", "log.txt"
ERROR_LINE = re.compile(r"^(\[rank\d+\]: )?[\w.]*(Error|Failed|Diverged|UnusableModel): ")
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 300.0
NOT_WORSE = 1.02  # times the perplexity: few steps on random tokens, validated on others
ESTIMATED = (Stage("calibrate", 1), Stage("recover", 1), Stage("recover", 2))


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredJob(Job):
    """A job that records the peak memory of the accelerator in each stage: bytes, of the rank with the most."""

    peak_bytes: dict[str, float] = field(default_factory=dict)

    def stage(self, stage: Stage, output: Path, work: Callable[[], dict[str, Any] | None], **options: Any) -> Path:
        is_cuda = self.group.device.type == "cuda"
        if is_cuda:
            torch.cuda.reset_peak_memory_stats(self.group.device)
        Job.stage(self, stage, output, work, **options)
        if is_cuda:
            (self.peak_bytes[stage.name],) = self.group.maxima(torch.cuda.max_memory_allocated(self.group.device))
        return output


def chain_config(place: Place) -> RunConfig:
    """Return the configuration of two rounds of the size."""
    size, ranks = place.size, place.group.world_size
    config = run_config(
        place.folder / "run",
        model=place.folder / "models" / size.model,
        engine=place.engine(micro_batch_sequences=size.micro_batch_sequences),
        sequence_length=size.sequence_length,
        batch_sequences=size.micro_batch_sequences * size.accumulation * ranks,
        num_steps=size.steps,
        calibration_sequences=size.calibration_sequences * ranks,
        other_sequences=4 * ranks,
    )
    unmeasured = EvalConfig(efficiency=EfficiencyConfig(measured=False))  # it takes minutes
    return replace(config, prune=replace(config.prune, rounds=ROUNDS, split="equal"), eval=unmeasured)


def run_job(place: Place) -> None:
    """Run the chain from a random parent to its export, or go on with it (collective)."""
    group, (parent, geometry) = place.group, place.model(place.size.model)
    config = chain_config(place)
    folder = RunFolder(Path(config.output_dir))
    texts = random_texts(place.folder / "tokens", config, group, vocab_size=geometry.vocab_size)
    if group.is_main:
        folder.path.mkdir(exist_ok=True)
        folder.open(group.world_size)
    with Tracker(MetricsLog(folder.path / "metrics.jsonl") if group.is_main else None, None) as tracker:
        view = Lines(config.track.progress_seconds) if group.is_main else Silent()
        asked = outline(config, geometry)
        job = MeasuredJob(config=config, group=group, folder=folder, outline=asked, tracker=tracker, view=view)
        record = recognise(job, parent, commit=None, recorded=None)
        result = run_chain(job, Prepared(parent=parent, record=record, texts=texts))
    if group.is_main:
        folder.end("done")
        write_json(place.folder / MEASURED, measured(job, result))


def measured(job: MeasuredJob, result: dict[str, Any]) -> Figures:
    """Return the figures of a finished run, from its metrics, its record and its stages' peak memory.

    Memory is of the stages that the last attempt ran.
    """
    dense, ranks, config = Geometry.from_dict(result["dense"]["geometry"]), job.group.world_size, job.config
    pruned = job.outline.rounds[-1].geometry
    records = read_metrics(job.path("metrics.jsonl"))
    rate = median(each["perf/tokens_per_s"] for each in records if "perf/tokens_per_s" in each)
    estimated = {
        each.name: estimate_memory(job.outline.at_work(each), config, ranks, each.kind, parent=dense).total()
        for each in ESTIMATED
    }
    stages = {
        name: {
            "seconds": entry["seconds"],
            "peak_bytes": job.peak_bytes.get(name),
            "estimated_bytes": estimated.get(name),
        }
        for name, entry in job.folder.stages.items()
    }
    return {
        "parameters": {"dense": dense.parameters(), "pruned": pruned.parameters()},
        "tokens_per_s": rate,
        "training_flops_per_token": pruned.training_flops_per_token(config.data.sequence_length, dense),
        "stages": stages,
        "perplexity": [result["dense"]["perplexity"]]
        + [each[f"perplexity_{model}"] for each in result["rounds"] for model in ("sliced", "recovered")],
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """A process of the job, as the sections see it."""

    process: subprocess.Popen[bytes]
    folder: Path
    log_start: int  # where in the log of all attempts its own begins, in characters

    @classmethod
    def start(cls, place: Place) -> Attempt:
        """Start the job with as many ranks as there are here."""
        size = next(name for name, each in SIZES.items() if each == place.size)
        options = [str(place.folder), "--device", place.device.type, "--size", size]
        ranks = place.group.world_size
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        environment = dict(os.environ)
        forget_launcher(environment)
        path = place.folder / LOG
        log_start = len(path.read_text(errors="replace")) if path.is_file() else 0
        with path.open("ab") as log:
            command = [sys.executable, *(torchrun if ranks > 1 else []), "-m", "benchmarks.gpu_chain", *options]
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        return cls(process=process, folder=place.folder, log_start=log_start)

    def wait_for_steps(self, round_: int, steps: int) -> None:
        """Wait until a round has so many steps of recovery."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(steps_of(self.folder, round_)) < steps:
            require(self.process.poll() is None, f"the job ended before step {steps} of round {round_}: {self.said()}")
            require(time.monotonic() < deadline, f"round {round_} has no {steps} steps after {PATIENCE_SECONDS:g} s")
            time.sleep(POLL_SECONDS)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to every rank."""
        for path in (self.folder / PIDS).iterdir():
            os.kill(int(path.read_text()), number)

    def end(self) -> int:
        """Wait for the end and return the exit code."""
        try:
            return self.process.wait(PATIENCE_SECONDS)
        finally:
            self.process.kill()

    def said(self) -> str:
        """Return the error of the first rank that failed in this attempt, or else the last line."""
        lines = (self.folder / LOG).read_text(errors="replace")[self.log_start :].splitlines() or [""]
        return next((line for line in lines if ERROR_LINE.search(line)), lines[-1])


def kill_attempts(folder: Path) -> None:
    """Kill the ranks of every attempt in a folder that are still there."""
    for path in folder.glob(f"{PIDS}/*"):
        with suppress(ProcessLookupError):
            os.kill(int(path.read_text()), signal.SIGKILL)


def steps_of(folder: Path, round_: int) -> list[int]:
    """Return the steps of a round's recovery that are logged."""
    path = folder / "run" / "metrics.jsonl"
    rows = read_metrics(path) if path.is_file() else []
    return [row["step"] for row in rows if "recover/loss" in row and row["round"] == round_]


def signalled(place: Place) -> Figures:
    """Stop the job by SIGTERM inside the first recovery: it saves."""

    def act() -> Figures:
        begin = time.monotonic()
        attempt = Attempt.start(place)
        try:
            attempt.wait_for_steps(1, 2)
            training = time.monotonic()
            attempt.send(signal.SIGTERM)
            code = attempt.end()
        finally:
            attempt.process.kill()
        seconds = time.monotonic() - training
        require(code != 0, "the job that was asked to stop ended as if it were finished")
        saved = list((place.folder / "run" / CHECKPOINTS).glob("*"))
        require(bool(saved), f"the job saved nothing: {attempt.said()}")
        said = f"trains after {training - begin:.0f} s, saved and left {seconds:.1f} s after SIGTERM"
        return {"seconds_to_leave": seconds, "said": said}

    return place.group.on_main(act, may_be_left=True)


def killed(place: Place) -> Figures:
    """Go on from the checkpoint, and kill the job in the second recovery."""

    def act() -> Figures:
        before = len(steps_of(place.folder, 1))
        attempt = Attempt.start(place)
        try:
            attempt.wait_for_steps(2, 1)
            attempt.send(signal.SIGKILL)
            attempt.end()
        finally:
            attempt.process.kill()
        log = (place.folder / LOG).read_text(errors="replace")
        require("goes on from checkpoint" in log, "the job did not go on from its checkpoint")
        _check_steps(place, 1)
        return {"said": f"went on from the checkpoint after {before} steps; killed in round 2"}

    return place.group.on_main(act, may_be_left=True)


def _check_steps(place: Place, round_: int) -> None:
    found = steps_of(place.folder, round_)
    require(found == list(range(found[0], found[0] + len(found))), f"steps of round {round_} are not in order: {found}")


def finished(place: Place) -> Figures:
    """Go on to the end: every step is there once, the export was compared, and recovery helped."""

    def act() -> Figures:
        attempt = Attempt.start(place)
        try:
            require(attempt.end() == 0, f"the job failed: {attempt.said()}")
        finally:
            attempt.process.kill()
        for round_ in range(1, ROUNDS + 1):
            _check_steps(place, round_)
        require((place.folder / "run" / "export" / "config.json").is_file(), "there is no export")
        figures: Figures = read_json(place.folder / MEASURED)
        count = sum(len(steps_of(place.folder, round_)) for round_ in range(1, ROUNDS + 1))
        require(count == place.size.steps, f"{count} of {place.size.steps} steps are logged")
        for sliced, recovered in zip(figures["perplexity"][1::2], figures["perplexity"][2::2], strict=True):
            worse = f"recovery from perplexity {sliced:.2f} came to {recovered:.2f}"
            require(recovered <= NOT_WORSE * sliced, worse)
        known, rate = place.accelerator, figures["tokens_per_s"]
        share = None
        if known is not None:
            of_one = rate / place.group.world_size
            share = model_flops_utilisation(figures["training_flops_per_token"], of_one, known.peak_flops)
        return figures | {"mfu": share, "said": _words(figures, share)}

    return place.group.on_main(act, may_be_left=True)


def _words(figures: Figures, share: float | None) -> str:
    stage = figures["stages"][ESTIMATED[-1].name]
    parameters = figures["parameters"]
    mfu = "" if share is None else f", MFU {share:.1%}"
    return (
        f"{parameters['dense']:,} -> {parameters['pruned']:,} parameters, recovery {figures['tokens_per_s']:,.0f} "
        f"tokens/s{mfu}, {gib(stage['peak_bytes'])} GiB (estimate {gib(stage['estimated_bytes'])})"
    )


def in_vllm(place: Place) -> Figures:
    """Compare the export in vLLM, where it is installed beside a GPU, with transformers."""

    def act() -> Figures:
        found = vllm_difference(place.folder / "run" / "export") if place.is_cuda else None
        require(found is None or found < TOLERANCE, f"vLLM is {found} nats from transformers")
        said = "not installed; not checked" if found is None else f"{found:.4f} nats from transformers"
        return {"nats": found, "said": said}

    return place.group.on_main(act, may_be_left=True)


CHAIN = (
    Section(name="signal", seconds=130, run=signalled),
    Section(name="kill", seconds=150, run=killed),
    Section(name="resume_and_export", seconds=160, run=finished),
    Section(name="vllm", seconds=60, run=in_vllm),
)


def work(group: ProcessGroup, size: Size, folder: Path) -> int:
    try:
        run_job(Place(group=group, size=size, folder=folder))
    except Stopped as stopped:
        print(f"{stopped}", flush=True)
        return FAILED
    return DONE


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_chain", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=SIZES, default="full")
    arguments = parser.parse_args()
    interruption = Interruption()
    interruption.listen()
    (arguments.folder / PIDS).mkdir(parents=True, exist_ok=True)
    (arguments.folder / PIDS / str(environment_rank())).write_text(str(os.getpid()))
    with process_group(arguments.device, 10, interruption) as group:
        code = work(group, SIZES[arguments.size], arguments.folder)
        if code != DONE:
            leave(code)  # the others have left, too
    return DONE


if __name__ == "__main__":
    leave(main())
