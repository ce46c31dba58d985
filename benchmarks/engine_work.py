"""Count what a micro-batch of distillation costs beside computing: collectives, synchronisations, and the host's time.

    python -m benchmarks.engine_work --processes 2

The model is LLaMA-7B at a 64th of its width, with the settings of `engine=gpu`, whose elements are divided by the same
factor as the model's. So small a model needs next to no computing: what is left is what keeps a GPU waiting. The same
micro-batches through stock transformers, without ranks, are the measure of the host's time.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.random_models import load_stock_model, write_random_model
from benchmarks.workload import RESULTS, environment, relaunch, working_folder, write_result
from transact.config.compose import compose_config
from transact.config.inputs import ArchitectureConfig
from transact.config.machines import EngineConfig
from transact.distributed.process import ProcessGroup, process_group
from transact.engine.deepspeed_setup import TrainingSettings, import_deepspeed
from transact.engine.engine import Engine, open_engine
from transact.engine.sharded_state import optimizer_groups
from transact.errors import DONE, leave
from transact.models.folder import geometry_of
from transact.stages.recover.teacher import Teacher

NARROWER = 64  # times
FEWER = NARROWER**2  # times the elements
TOKENS = 32  # of a sequence
MICRO_BATCHES = 4  # of a step
LEARNING_RATE = 1e-4
HOST_TARGET = 1.8  # times what stock transformers takes
READS = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal")  # the host waits for a value of the device
GATHERS = ("c10d::_allgather_base_", "c10d::allgather_", "c10d::allgather_into_tensor_coalesced_")


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What one micro-batch costs, the mean of a step.

    Attributes:
        gathers: all-gathers.
        volume: elements gathered, in models.
        collectives: calls of all collectives, by name.
        synchronisations: times that the host waits for all that the device has to do.
        reads: scalars that the host reads from the device.
        host: processor time of the host, as a multiple of what stock transformers takes.
        host_ms: milliseconds of it.
    """

    gathers: float
    volume: float
    collectives: dict[str, float]
    synchronisations: float
    reads: float
    host: float
    host_ms: float


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Calls of operators by name, and elements that came out of all-gathers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()
        self.gathered = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operator.name().split(".")[0]
        self.calls[name] += 1
        if name in GATHERS:
            self.gathered += sum(map(torch.numel, torch.utils._pytree.tree_leaves(args[0])))
        return operator(*args, **(kwargs or {}))


@contextmanager
def counting() -> Iterator[Counted]:
    """Count the operators and, as "synchronize", the synchronisations of the block."""
    import_deepspeed()
    from deepspeed.accelerator import get_accelerator

    accelerator = type(get_accelerator())
    original, counted = accelerator.synchronize, Counted()

    def synchronize(*given: Any, **named: Any) -> Any:
        counted.calls["synchronize"] += 1
        return original(*given, **named)

    with patch.object(accelerator, "synchronize", synchronize), counted:
        yield counted


def architecture() -> ArchitectureConfig:
    return ArchitectureConfig(
        hidden_size=4096 // NARROWER,
        num_hidden_layers=32,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=1024 // NARROWER,
        intermediate_size=11_008 // NARROWER,
        vocab_size=32_000 // NARROWER,
        max_position_embeddings=512,
    )


def engine_config(device: str) -> EngineConfig:
    """Return the settings of `engine=gpu` for a model with `FEWER` times fewer elements."""
    config = compose_config(["name=engine_work", "engine=gpu"]).engine
    elements = ("reduce_bucket_elements", "prefetch_elements", "live_elements")
    return replace(
        config,
        device=device,
        micro_batch_sequences=1,
        activation_checkpointing=True,
        **{name: getattr(config, name) // FEWER for name in elements},
    )


def training() -> TrainingSettings:
    return TrainingSettings(
        gradient_accumulation_steps=MICRO_BATCHES,
        learning_rate=LEARNING_RATE,
        weight_decay=0.1,
        betas=(0.9, 0.95),
        gradient_clipping=1.0,
    )


def our_step(engine: Engine, teacher: Teacher, batch: list[torch.Tensor]) -> None:
    for tokens, teaching in zip(batch, teacher.teach(batch), strict=True):
        engine.backward(engine.loss(tokens, teaching))
        engine.step(LEARNING_RATE)


@contextmanager
def stock_step(
    model: Path, config: EngineConfig, device: torch.device
) -> Iterator[Callable[[list[torch.Tensor]], None]]:
    """Yield the same step with stock transformers and plain PyTorch: nothing sharded, no master weights."""
    settings = training()
    teacher = load_stock_model(model, config.dtype).to(device).eval()
    student = load_stock_model(model, config.dtype).to(device).train()
    if config.recomputes:
        student.activation_checkpointing_enable({"use_reentrant": False})
    groups = optimizer_groups(student, settings.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)

    def logarithms(model: Any, tokens: torch.Tensor) -> torch.Tensor:
        return model(input_ids=tokens, use_cache=False).logits.float().log_softmax(-1).flatten(0, 1)

    def step(batch: list[torch.Tensor]) -> None:
        for tokens in batch:
            with torch.no_grad():
                target = logarithms(teacher, tokens)
            loss = torch.nn.functional.kl_div(
                logarithms(student, tokens), target, log_target=True, reduction="batchmean"
            )
            torch.autograd.backward(loss / len(batch))
        torch.nn.utils.clip_grad_norm_(student.parameters(), settings.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()

    yield step


def processor_seconds(work: Callable[[], object]) -> float:
    """Return the processor time of this thread, in which other ranks and other work have no part."""
    begin = time.thread_time()
    work()
    return time.thread_time() - begin


def measure(folder: Path, group: ProcessGroup, repetitions: int, at_most: int = 0) -> Work:
    """Count a step of distillation, and time it in turn with one of stock transformers (collective).

    Args:
        repetitions: turns of both; the fastest of each counts, as whatever disturbs them makes them slower.
        at_most: further turns while the host's time is above `HOST_TARGET`, up to so many in all.
    """
    write_random_model(folder / "model", architecture(), group)
    model, config = folder / "model", engine_config(group.device.type)
    batch = list(torch.randint(0, architecture().vocab_size, (MICRO_BATCHES, 1, TOKENS), device=group.device))
    with (
        stock_step(model, config, group.device) as stock,
        open_engine(model, config, group) as parent,
        open_engine(model, config, group, training=training()) as engine,
    ):
        teacher = Teacher(parent, geometry_of(model), weight=1.0, temperature=1.0, at_once=MICRO_BATCHES)

        def turn() -> tuple[float, float]:
            return processor_seconds(lambda: our_step(engine, teacher, batch)), processor_seconds(lambda: stock(batch))

        turn()  # DeepSpeed looks at the order of layers in the first two micro-batches
        times = [turn() for _ in range(repetitions)]
        while len(times) < at_most and group.any(_ratio(times) > HOST_TARGET)[0]:
            times.append(turn())
        with counting() as counted:
            our_step(engine, teacher, batch)
    calls = {name: count / MICRO_BATCHES for name, count in counted.calls.items()}
    return Work(
        gathers=sum(calls.get(name, 0) for name in GATHERS),
        volume=counted.gathered / MICRO_BATCHES / geometry_of(model).parameters(),
        collectives={name.removeprefix("c10d::"): count for name, count in calls.items() if name.startswith("c10d::")},
        synchronisations=calls.get("synchronize", 0),
        reads=sum(calls.get(name, 0) for name in READS),
        host=_ratio(times),
        host_ms=1000 * min(ours for ours, _ in times) / MICRO_BATCHES,
    )


def _ratio(times: list[tuple[float, float]]) -> float:
    return min(ours for ours, _ in times) / min(theirs for _, theirs in times)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_work", description=__doc__)
    parser.add_argument("--processes", type=int, default=2, help="ranks to start on this machine")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--output", type=Path, default=RESULTS / "engine_work.json")
    arguments = parser.parse_args()
    code = relaunch("benchmarks.engine_work", arguments.processes)
    if code is not None:
        return code
    with process_group("cpu", timeout_minutes=10) as group, working_folder(group, None) as folder:
        work = measure(folder, group, arguments.repetitions)
        if group.is_main:
            for name, value in asdict(work).items():
                print(f"{name:16} {value if isinstance(value, dict) else format(value, '.2f')}")
            write_result(arguments.output, asdict(work) | environment(group))
    return DONE


if __name__ == "__main__":
    leave(main())
