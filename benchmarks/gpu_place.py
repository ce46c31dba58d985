"""What the sections of `benchmarks.gpu_check` are given, and the sizes at which they run."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.random_models import ARCHITECTURES, write_random_model
from benchmarks.workload import REPOSITORY, wait
from transact.config.accelerators import Accelerator, reported_as
from transact.config.machines import EngineConfig
from transact.distributed.process import ProcessGroup
from transact.engine.deepspeed_setup import TrainingSettings
from transact.geometry import Geometry
from transact.models.llama import read_geometry

GIB = 1024**3
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """The size of the check.

    Attributes:
        model: a name of ARCHITECTURES, that is saved, and pruned in the chain.
        compared: the smaller model that CPU and device both compute.
        layers: the few wide layers whose speed is measured.
        sequence_length: tokens, of `model` and `layers`.
        micro_batch_sequences, accumulation, steps, calibration_sequences: of the chain; steps in both rounds together,
            calibration sequences of each rank.
        matrix: rows and columns of the matrix product whose speed is measured.
        copied_mib: moved between memories, and between ranks.
        micro_batches: sequences of those whose speed is measured.
        widths: channels and outputs of the layers on which the choice of channels is measured.
        square: channels of the layer on which CPU and device are compared.
    """

    model: str
    compared: str
    layers: str
    sequence_length: int
    micro_batch_sequences: int
    accumulation: int
    steps: int
    calibration_sequences: int
    matrix: int
    copied_mib: int
    micro_batches: tuple[int, ...]
    widths: tuple[tuple[int, int], ...]
    square: int


SIZES = {
    "full": Size(
        model="1b",
        compared="25m",
        layers="7b_8_layers",
        sequence_length=2048,
        micro_batch_sequences=4,
        accumulation=4,
        steps=80,
        calibration_sequences=64,
        matrix=8192,
        copied_mib=2048,
        micro_batches=(1, 2, 4),
        widths=((11_008, 4096), (28_672, 8192)),
        square=2048,
    ),
    "tiny": Size(
        model="tiny",
        compared="tiny",
        layers="tiny",
        sequence_length=64,
        micro_batch_sequences=2,
        accumulation=2,
        steps=24,
        calibration_sequences=4,
        matrix=128,
        copied_mib=1,
        micro_batches=(1, 2),
        widths=((128, 64), (192, 64)),
        square=128,
    ),
}


class CheckFailed(Exception):
    """A section found something that is not as it must be; the message says what."""


def require(holds: bool, reason: str) -> None:
    """Raise CheckFailed with the reason unless something holds."""
    if not holds:
        raise CheckFailed(reason)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where sections run: the ranks with their device, the size, and a folder for files that all ranks see."""

    group: ProcessGroup
    size: Size
    folder: Path

    @property
    def device(self) -> torch.device:
        return self.group.device

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def accelerator(self) -> Accelerator | None:
        """The kind of GPU; None where it is not known, or there is none."""
        return reported_as(torch.cuda.get_device_name(self.device)) if self.is_cuda else None

    def engine(self, **changes: Any) -> EngineConfig:
        """Return the settings that runs on GPUs use (conf/engine/gpu.yaml), with changes; nothing is left to choose."""
        settings = yaml.safe_load((REPOSITORY / "conf" / "engine" / "gpu.yaml").read_text(encoding="utf-8"))
        settled = {"device": self.device.type, "micro_batch_sequences": 1, "activation_checkpointing": True}
        return EngineConfig(**(settings | settled | changes))

    def model(self, name: str) -> tuple[Path, Geometry]:
        """Return the folder and the dimensions of a random model, which is written once (collective)."""
        architecture, folder = ARCHITECTURES[name](), self.folder / "models" / name
        if not self.group.on_main(folder.is_dir):
            write_random_model(folder, architecture, self.group)
        return folder, read_geometry(architecture.to_model_config())

    def tokens(self, geometry: Geometry, sequences: int, length: int, seed: int = 0) -> torch.Tensor:
        """Return random tokens, other ones on each rank: (sequences, length)."""
        generator = torch.Generator().manual_seed(1000 * seed + self.group.rank)
        return torch.randint(geometry.vocab_size, (sequences, length), generator=generator).to(self.device)

    def seconds(self, work: Callable[[], object], repetitions: int = 3) -> float:
        """Return the seconds of one call, the mean of some after a first one (collective)."""
        work()
        wait(self.group)
        begin = time.perf_counter()
        for _ in range(repetitions):
            work()
        wait(self.group)
        return (time.perf_counter() - begin) / repetitions

    def allocated(self) -> int:
        """Return the bytes of device memory that tensors take now, without what cuBLAS keeps; 0 on a CPU."""
        gc.collect()
        if not self.is_cuda:
            return 0
        torch._C._cuda_clearCublasWorkspaces()
        return torch.cuda.memory_allocated(self.device)

    def peak(self, work: Callable[[], object]) -> int | None:
        """Call work and return the largest device memory that tensors took meanwhile; None on a CPU."""
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        work()
        return torch.cuda.max_memory_allocated(self.device) if self.is_cuda else None


Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A section of the check.

    Attributes:
        name: of the section in its part.
        seconds: that it may take on one H100 at full size; an assumption, by which a part keeps its time.
        run: does it on all ranks and returns its figures, with "said": the figures in a few words. Raises where
            something is not as it must be.
    """

    name: str
    seconds: float
    run: Callable[[Place], Figures]


def training(accumulation: int = 1) -> TrainingSettings:
    """Return the settings of an engine that trains."""
    return TrainingSettings(
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-4,
        weight_decay=0.1,
        betas=(0.9, 0.95),
        gradient_clipping=1.0,
    )


def gib(size: float | None) -> str:
    return "-" if size is None else f"{size / GIB:.2f}"


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference, as a multiple of the largest element of what is expected."""
    found, expected = found.double().cpu(), expected.double().cpu()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
