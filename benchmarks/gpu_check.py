"""Run the whole job on a GPU, at a size that is meaningful there.

    python -m benchmarks.gpu_check
    torchrun --nproc-per-node 8 -m benchmarks.gpu_check

Prunes a random LLaMA of a billion parameters in bfloat16 with the chain of `transact.run`, then prints speed,
utilisation and peak memory against the estimate, and whether CPU and GPU choose the same channels; where vLLM is
installed, whether it computes what transformers does. Ends with code 0 where there is no GPU, and with 1 where a
comparison fails.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml

from benchmarks.accelerators import utilisation
from benchmarks.channel_agreement import channel_agreement
from benchmarks.random_models import ARCHITECTURES, write_random_model
from benchmarks.vllm_check import TOLERANCE, vllm_difference
from benchmarks.workload import (
    REPOSITORY,
    RESULTS,
    environment,
    random_texts,
    relaunch,
    run_config,
    working_folder,
    write_result,
)
from transact.config.machines import EngineConfig
from transact.config.run import RunConfig
from transact.distributed.environment import environment_rank
from transact.distributed.process import ProcessGroup, process_group
from transact.engine.memory import estimate_memory
from transact.errors import leave
from transact.geometry import Geometry
from transact.models.llama import read_geometry
from transact.rounds import Stage, outline
from transact.runs.metrics import MetricsLog, read_metrics
from transact.runs.run_folder import RunFolder
from transact.stages.chain import Prepared, prune
from transact.stages.job import Job
from transact.stages.parent import recognise
from transact.tracking.tracker import Tracker
from transact.tracking.view import Lines, Silent

GIB = 1024**3
REQUIRED_AGREEMENT = 0.999  # in float32, where only the order of a sum differs; two near-equal channels may swap
COMPARED_LENGTH = 256  # tokens
# Stages whose estimated memory is compared with what they took.
ESTIMATED = (Stage("gram", 1), Stage("recover", 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """The size of the check: its models and how much they are trained."""

    model: str  # a name of ARCHITECTURES
    compared: str  # the smaller model that CPU and device both calibrate
    sequence_length: int  # tokens
    micro_batch_sequences: int
    accumulation: int  # micro-batches in a step of one rank
    steps: int  # of recovery
    calibration_sequences: int  # of each rank


SIZES = {
    "1b": Size(
        model="1b",
        compared="25m",
        sequence_length=2048,
        micro_batch_sequences=4,
        accumulation=4,
        steps=300,
        calibration_sequences=64,
    ),
    "tiny": Size(
        model="tiny",
        compared="tiny",
        sequence_length=64,
        micro_batch_sequences=2,
        accumulation=2,
        steps=4,
        calibration_sequences=4,
    ),
}


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


def gpu_engine(device: str, micro_batch_sequences: int) -> EngineConfig:
    """Return the settings that runs on GPUs use (conf/engine/gpu.yaml), and micro-batches of this size."""
    own = {"device": device, "micro_batch_sequences": micro_batch_sequences, "activation_checkpointing": True}
    settings = yaml.safe_load((REPOSITORY / "conf" / "engine" / "gpu.yaml").read_text(encoding="utf-8"))
    return EngineConfig(**(settings | own))


def make_config(size: Size, engine: EngineConfig, group: ProcessGroup, folder: Path) -> RunConfig:
    return run_config(
        folder / "run",
        model=folder / "parent",
        engine=engine,
        sequence_length=size.sequence_length,
        batch_sequences=size.micro_batch_sequences * size.accumulation * group.world_size,
        num_steps=size.steps,
        calibration_sequences=size.calibration_sequences * group.world_size,
        other_sequences=4 * group.world_size,
    )


def run_job(config: RunConfig, size: Size, group: ProcessGroup) -> dict[str, Any]:
    """Run the chain from a random parent to its export (collective). Returns what was measured, on rank 0."""
    parent, folder = Path(config.model.path or ""), RunFolder(Path(config.output_dir))
    architecture = ARCHITECTURES[size.model]()
    write_random_model(parent, architecture, group)
    texts = random_texts(folder.path / "tokens", config, group, vocab_size=architecture.vocab_size)
    asked = outline(config, read_geometry(architecture.to_model_config()))
    if group.is_main:
        folder.open(group.world_size)
    with Tracker(MetricsLog(folder.path / "metrics.jsonl") if group.is_main else None, None) as tracker:
        view = Lines(config.track.progress_seconds) if group.is_main else Silent()
        job = MeasuredJob(config=config, group=group, folder=folder, outline=asked, tracker=tracker, view=view)
        record = recognise(job, parent, commit=None, recorded=None)
        result = prune(job, Prepared(parent=parent, record=record, texts=texts))
    return measured(job, result) if group.is_main else {}


def measured(job: MeasuredJob, result: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a finished run, from its metrics, its record and its stages' peak memory."""
    dense, pruned = (Geometry.from_dict(result[role]["geometry"]) for role in ("dense", "pruned"))
    records = read_metrics(job.path("metrics.jsonl"))
    rate = median(record["perf/tokens_per_s"] for record in records if "perf/tokens_per_s" in record)
    device, ranks, config = environment(job.group)["device"], job.group.world_size, job.config
    estimated = {
        each.name: estimate_memory(pruned if each.kind == "recover" else dense, config, ranks, each.kind).total()
        for each in ESTIMATED
    }
    return {
        "parameters": {"dense": dense.parameters(), "pruned": pruned.parameters()},
        "tokens_per_s": rate,
        "model_flops_utilisation": utilisation(rate, pruned, config.data.sequence_length, device, ranks),
        "stages": {
            name: {
                "seconds": entry["seconds"],
                "peak_bytes": job.peak_bytes.get(name),
                "estimated_bytes": estimated.get(name),
            }
            for name, entry in job.folder.stages.items()
        },
        "perplexity": {
            "dense": result["dense"]["perplexity"],
            "sliced": result["rounds"][0]["perplexity_sliced"],
            "recovered": result["rounds"][0]["perplexity_recovered"],
        },
    }


def table(result: dict[str, Any]) -> str:
    """Return the result as text to read."""

    def gib(size: float | None) -> str:
        return "-" if size is None else f"{size / GIB:.2f}"

    parameters, share = result["parameters"], result["model_flops_utilisation"]
    lines = [
        f"{result['world_size']} x {result['device']}: {parameters['dense']:,} -> {parameters['pruned']:,} parameters",
        f"recovery: {result['tokens_per_s']:,.0f} tokens/s, MFU {'unknown' if share is None else f'{share:.1%}'}",
        f"{'stage':20}{'seconds':>10}{'peak GiB':>10}{'estimate GiB':>14}",
    ]
    for name, stage in result["stages"].items():
        peak, estimate = gib(stage["peak_bytes"]), gib(stage["estimated_bytes"])
        lines.append(f"{name:20}{stage['seconds']:>10.1f}{peak:>10}{estimate:>14}")
    shares = ", ".join(f"{share:.2%} in {dtype}" for dtype, share in result["same_units_as_cpu"].items())
    return "\n".join([*lines, f"units kept that the CPU keeps too: {shares}"])


def check(arguments: argparse.Namespace, group: ProcessGroup, folder: Path) -> int:
    """Run all comparisons and return the exit code (collective)."""
    size = SIZES[arguments.size]
    engine = gpu_engine(arguments.device, size.micro_batch_sequences)
    compared, length = ARCHITECTURES[size.compared](), min(size.sequence_length, COMPARED_LENGTH)
    agreement = channel_agreement(folder / "agreement", compared, engine, group, sequence_length=length)
    config = make_config(size, engine, group, folder)
    result = run_job(config, size, group)
    if group.is_main:
        result |= {"same_units_as_cpu": agreement, "size": asdict(size), "engine": asdict(engine), **environment(group)}
        print(table(result), flush=True)
        write_result(arguments.output, result)
    return 0 if agreement["float32"] >= REQUIRED_AGREEMENT and check_vllm(arguments, config, group) else 1


def check_vllm(arguments: argparse.Namespace, config: RunConfig, group: ProcessGroup) -> bool:
    """Return whether vLLM, where it is installed beside a GPU, computes the exported model as transformers does."""
    if not group.is_main or arguments.device != "cuda":
        return True
    difference = vllm_difference(Path(config.output_dir) / "export")
    found = "not installed; not checked" if difference is None else f"{difference:.4f} nats from transformers"
    print(f"vLLM: {found}", flush=True)
    return difference is None or difference < TOLERANCE


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--processes", type=int, default=1, help="ranks to start on this machine")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--folder", type=Path, help="where to put 15 GB for the time of the check (default: TMPDIR)")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu_check.json")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        if environment_rank() == 0:
            print("gpu-check: there is no GPU here; nothing was checked", flush=True)
        return 0
    code = relaunch("benchmarks.gpu_check", arguments.processes)
    if code is not None:
        return code
    with (
        process_group(arguments.device, timeout_minutes=10) as group,
        working_folder(group, arguments.folder) as folder,
    ):
        return check(arguments, group, folder)


if __name__ == "__main__":
    leave(main())
