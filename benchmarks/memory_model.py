"""Compare the memory model of `mode=estimate` with what ranks really allocate.

    python -m benchmarks.memory_model --processes 2

A case is a model, a ZeRO stage, a dtype and so on: its weights are loaded into an engine, and a few optimizer steps are
made, or calibration forwards. The figure is the peak of PyTorch's CPU allocator on rank 0. Rows of other numbers of
ranks stay in the results file.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from benchmarks.allocations import allocated_peak
from benchmarks.random_models import write_random_model
from benchmarks.workload import RESULTS, environment, relaunch, working_folder, write_result
from transact.config.compose import compose_config
from transact.config.inputs import ArchitectureConfig
from transact.config.run import RunConfig
from transact.distributed.process import ProcessGroup, process_group
from transact.engine.deepspeed_setup import TrainingSettings
from transact.engine.engine import Engine, open_engine
from transact.engine.memory import estimate_memory, sums_grams_in_calibration, taught_at_once
from transact.errors import DONE, leave
from transact.files import read_json, write_text
from transact.geometry import Widths
from transact.models.folder import geometry_of
from transact.models.hooks import collect_grams, collect_statistics
from transact.models.llama import read_geometry
from transact.pruning.criteria import Criteria
from transact.stages.recover.loop import adapters_of
from transact.stages.recover.teacher import Teacher

# An estimate that is too low ends a job; one that is too high costs a look at another setting. At ZeRO-3 it depends on
# the moment whether the buffers of a layer that is fetched ahead are there at the peak.
MOST_BELOW, MOST_ABOVE = 0.1, 0.25
STEPS, MICRO_BATCHES = 2, 2
REPETITIONS = 2
LAYERS = ((2, 1408), (1, 96), (2, 704), (1, 352))
SIZES: dict[str, dict[str, Any]] = {
    "deep": {"num_hidden_layers": 10},
    "wide": {"intermediate_size": 1408},
    "vocabulary": {"vocab_size": 8192},
    "many heads": {"num_key_value_heads": 4, "tie_word_embeddings": True, "intermediate_size": 704},
    "layers": {"intermediate_size": 1408},
}
# Of every layer, where they differ.
WIDTHS = {"layers": [Widths(num_key_value_heads=heads, intermediate_size=size) for heads, size in LAYERS]}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """The settings of one comparison, on which memory depends."""

    size: str
    zero_stage: int = 3
    dtype: str = "float32"
    sequences: int = 4
    sequence_length: int = 64
    checkpointing: bool = False
    objective: str = "cross_entropy"
    recovery: str = "full"  # or "lora"
    stage: str = "recover"  # or "calibrate" or "gram": the pass over further layers
    method: str = "norms"
    packing: str = "stream"  # or "documents", three in a sequence

    def config(self, ranks: int) -> RunConfig:
        config = copy.deepcopy(_composed(self.method))
        config.recover.batch_sequences = self.sequences * MICRO_BATCHES * ranks
        config.engine.zero_stage, config.engine.dtype = self.zero_stage, self.dtype
        config.engine.micro_batch_sequences = self.sequences
        config.engine.activation_checkpointing = self.checkpointing
        config.data.sequence_length, config.recover.objective = self.sequence_length, self.objective
        config.recover.method, config.data.packing = self.recovery, self.packing
        return config

    def position_ids(self) -> torch.Tensor | None:
        places = torch.arange(self.sequence_length).expand(self.sequences, -1)
        return None if self.packing == "stream" else places % (self.sequence_length // 3)


@functools.cache
def _composed(method: str) -> RunConfig:
    return compose_config(["name=memory", "engine.reduce_bucket_elements=500000", f"prune/method={method}"])


def architecture(size: str) -> ArchitectureConfig:
    small: dict[str, Any] = {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 352,
        "vocab_size": 1024,
        "max_position_embeddings": 512,
    }
    return ArchitectureConfig(**(small | SIZES[size]))


def all_cases() -> list[Case]:
    cases = []
    for dtype in ("float32", "bfloat16"):
        for size in SIZES:
            cases += [Case(size=size, dtype=dtype, zero_stage=stage) for stage in (0, 1, 2, 3)]
        for stage in (0, 3):
            long: dict[str, Any] = {"sequences": 2, "sequence_length": 256, "dtype": dtype, "zero_stage": stage}
            cases.append(Case(size="wide", checkpointing=True, **long))
            cases.append(Case(size="deep", objective="distillation", checkpointing=True, **long))
            cases.append(Case(size="vocabulary", objective="distillation", dtype=dtype, zero_stage=stage))
            cases.append(Case(size="wide", stage="calibrate", **long))
            cases.append(Case(size="wide", stage="calibrate", method="default", **long))
            cases.append(Case(size="wide", stage="gram", method="default", **long))
            cases.append(Case(size="deep", stage="calibrate", method="taylor", **long))
            cases.append(Case(size="vocabulary", stage="calibrate", method="taylor", dtype=dtype, zero_stage=stage))
    return cases


def measure(case: Case, folder: Path, group: ProcessGroup, repetitions: int = REPETITIONS) -> dict[str, Any]:
    """Measure the bytes that a rank allocates at its peak, and return them beside the estimate (collective)."""
    model, config = folder / case.size, case.config(group.world_size)
    if not (model / "config.json").is_file():
        write_random_model(model, architecture(case.size), group, WIDTHS.get(case.size, ()))
    tokens = torch.randint(0, 1000, (case.sequences, case.sequence_length))
    # What gloo's threads still hold varies by chance: the smallest measurement counts.
    measured = min(allocated_peak(lambda: _work(model, case, config, tokens, group)) for _ in range(repetitions))
    geometry = geometry_of(model)
    estimate = estimate_memory(geometry, config, group.world_size, case.stage, parent=geometry)
    error = estimate.total() / measured - 1
    return asdict(case) | {
        "ranks": group.world_size,
        "measured_bytes": measured,
        "estimated_bytes": round(estimate.total()),
        "error": error,
        "parts": {name: round(size) for name, size in estimate.parts().items() if size},
    }


def _work(model: Path, case: Case, config: RunConfig, tokens: torch.Tensor, group: ProcessGroup) -> None:
    if case.stage == "recover":
        _train(model, case, config, tokens, group)
    elif case.stage == "gram":
        _sum_grams(model, config, tokens, group)
    else:
        _look(model, case, config, tokens, group)


def _train(model: Path, case: Case, config: RunConfig, tokens: torch.Tensor, group: ProcessGroup) -> None:
    settings = TrainingSettings(
        gradient_accumulation_steps=MICRO_BATCHES,
        learning_rate=1e-4,
        weight_decay=0.0,
        betas=(0.9, 0.95),
        gradient_clipping=1.0,
        adapters=adapters_of(config),
    )
    if case.objective == "cross_entropy":
        with open_engine(model, config.engine, group, training=settings) as engine:
            _steps(engine, None, tokens, case.position_ids())
        return
    with (
        open_engine(model, config.engine, group) as parent,
        open_engine(model, config.engine, group, training=settings) as engine,
    ):
        geometry = geometry_of(model)
        at_once = taught_at_once(geometry, config, group.world_size)
        teacher = Teacher(parent, geometry, weight=1.0, temperature=1.0, at_once=at_once)
        _steps(engine, teacher, tokens, case.position_ids())


def _steps(engine: Engine, teacher: Teacher | None, tokens: torch.Tensor, position_ids: torch.Tensor | None) -> None:
    batch = [tokens] * MICRO_BATCHES, [position_ids] * MICRO_BATCHES
    for _ in range(STEPS):
        teachings = teacher.teach(*batch) if teacher else itertools.repeat(None)
        for _ in range(MICRO_BATCHES):
            engine.backward(engine.loss(tokens, next(teachings), position_ids=position_ids))
            engine.step(1e-4)


def _look(model: Path, case: Case, config: RunConfig, tokens: torch.Tensor, group: ProcessGroup) -> None:
    criteria, geometry = Criteria.of(config.prune.method), geometry_of(model)
    differentiates, are_whole = criteria.needs_gradients, case.position_ids() is None
    summed = geometry.num_layers if sums_grams_in_calibration(config, 1) else 0  # Gram matrices of these layers
    with (
        torch.set_grad_enabled(differentiates),
        open_engine(model, config.engine, group) as engine,
        collect_statistics(engine.module, geometry, criteria.statistics(geometry), are_whole=are_whole) as collector,
        collect_grams(engine.module, geometry, range(summed), collector),
    ):
        for _ in range(STEPS):
            (engine.differentiate if differentiates else engine.hidden_forward)(tokens, case.position_ids())


@torch.no_grad()
def _sum_grams(model: Path, config: RunConfig, tokens: torch.Tensor, group: ProcessGroup) -> None:
    geometry = geometry_of(model)
    with (
        open_engine(model, config.engine, group) as engine,
        collect_grams(engine.module, geometry, range(geometry.num_layers)),
    ):
        for _ in range(STEPS):
            engine.hidden_forward(tokens)


def case_of(row: dict[str, Any]) -> Case:
    """Return the case of a row, which may have been measured before Case had all of its fields."""
    return Case(**{each.name: row[each.name] for each in fields(Case) if each.name in row})


def is_stale(row: dict[str, Any]) -> bool:
    """Return whether a case is estimated otherwise than when it was measured, or too far from it."""
    return estimated(row) != row["estimated_bytes"] or is_off(estimated(row) / row["measured_bytes"] - 1)


def estimated(row: dict[str, Any]) -> int:
    """Return the bytes that today's formulas say of a measured case."""
    case = case_of(row)
    geometry = read_geometry(architecture(case.size).to_model_config())
    geometry = geometry.with_layers(WIDTHS[case.size]) if case.size in WIDTHS else geometry
    return round(
        estimate_memory(geometry, case.config(row["ranks"]), row["ranks"], case.stage, parent=geometry).total()
    )


def is_off(error: float) -> bool:
    """Return whether an estimate is too far from what was measured. error: estimate / measured - 1."""
    return not -MOST_BELOW < error < MOST_ABOVE


def memory_markdown(result: dict[str, Any]) -> str:
    """Return a table by number of ranks: comparisons, and the errors at their worst."""
    rows = ["| ranks | comparisons | estimate over measured, lowest | highest |", "|---|---|---|---|"]
    for ranks in sorted({row["ranks"] for row in result["rows"]}):
        errors = [row["error"] for row in result["rows"] if row["ranks"] == ranks]
        rows.append(f"| {ranks} | {len(errors)} | {min(errors):+.1%} | {max(errors):+.1%} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=1, help="ranks to start on this machine")
    parser.add_argument("--smallest", action="store_true", help="one case")
    parser.add_argument(
        "--stale", action="store_true", help="only what was off, is estimated otherwise by now, or was never measured"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "memory.json")
    arguments = parser.parse_args()
    code = relaunch("benchmarks.memory_model", arguments.processes)
    if code is not None:
        raise SystemExit(code)
    every, before = all_cases(), read_json(arguments.output)["rows"] if arguments.output.is_file() else []
    with process_group("cpu", timeout_minutes=10) as group, working_folder(group, None) as folder:
        cases = every[:1] if arguments.smallest else every
        if arguments.stale:
            fresh = {case_of(row) for row in before if row["ranks"] == group.world_size and not is_stale(row)}
            cases = [case for case in every if case not in fresh]
        measure(every[0], folder, group)  # warm-up: what is allocated once, and stays, must not count
        rows = [measure(case, folder, group) for case in cases]
        if not group.is_main:
            return
        others = [row for row in before if row["ranks"] != group.world_size or case_of(row) in {*every} - {*cases}]
        result = {"target": [-MOST_BELOW, MOST_ABOVE], "environment": environment(group), "rows": [*others, *rows]}
        write_result(arguments.output, result)
        write_text(arguments.output.with_suffix(".md"), memory_markdown(result))
        print(memory_markdown(result))


if __name__ == "__main__":
    main()
    leave(DONE)
