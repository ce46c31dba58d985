"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685): into a model, what they begin with, and back into its weights.

The modules are peft's. A projection W with an adapter computes W + (alpha / rank) B A: A of (rank, inputs) begins as
random numbers, B of (outputs, rank) as zeros, so that the model begins as it was, and W stays as it is.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from transact.models.tensor_files import ModelReader

ADAPTER = "default"  # peft's name of the only adapter of a model
BASE = ".base_layer"  # what peft puts into the names of an adapted projection's own tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapters:
    """Adapters of one size, in all layers.

    Attributes:
        rank: of the products that are added to the weights.
        alpha: the products are multiplied by alpha / rank.
        targets: names of the projections that have one, "q_proj" and so on.
        seed: of the random numbers that they begin with.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    seed: int = 0

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def adapts(self, weight: str) -> bool:
        """Return whether the weight of this name, in a model folder, gets an adapter."""
        module, _, kind = weight.rpartition(".")
        return kind == "weight" and module.rpartition(".")[2] in self.targets


def adapter_names(weight: str) -> tuple[str, str]:
    """Return the names of A and B, of a weight with an adapter."""
    module = weight.removesuffix(".weight")
    return f"{module}.lora_A.{ADAPTER}.weight", f"{module}.lora_B.{ADAPTER}.weight"


def inject(model: nn.Module, adapters: Adapters) -> None:
    """Put adapters into a model, in place; their values are undefined, as those of the model may be."""
    from peft import LoraConfig, inject_adapter_in_model

    settings: dict[str, Any] = {"r": adapters.rank, "lora_alpha": adapters.alpha, "init_lora_weights": False}
    inject_adapter_in_model(LoraConfig(target_modules=list(adapters.targets), **settings), model, ADAPTER)


def train_adapters_alone(model: Any) -> None:
    """Freeze all weights of a model but those of its adapters."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    # ZeRO-3 gives a layer's weights back, and takes its gradients, where a gradient arrives at its input.
    model.enable_input_require_grads()


def first_a(adapters: Adapters, name: str, inputs: int) -> Tensor:
    """Return what A begins with, (rank, inputs) float32: uniform up to 1 / sqrt(inputs), as peft and nn.Linear have it.

    It depends on the seed and on the name alone, so every rank and every attempt makes the same.
    """
    digest = hashlib.sha256(f"{adapters.seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    return (2 * torch.rand(adapters.rank, inputs, generator=generator) - 1) / math.sqrt(inputs)


def merged(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return W + scale B A in float32. weight: (outputs, inputs); a: (rank, inputs); b: (outputs, rank)."""
    return weight.float() + scale * (b.float() @ a.float())


class AdaptedReader:
    """A model folder as a model with adapters sees it: under peft's names, and with the adapters' first values."""

    def __init__(self, reader: ModelReader, adapters: Adapters) -> None:
        self.folder = reader.folder
        self.files: dict[str, str] = {}  # name in the model -> file in the folder
        self._reader = reader
        self._adapters = adapters
        self._stored: dict[str, str] = {}  # name in the model -> in the folder
        self._begun: dict[str, tuple[int, int]] = {}  # name of an adapter's A or B -> shape
        for name, file in reader.files.items():
            module, _, kind = name.rpartition(".")
            is_adapted = adapters.adapts(f"{module}.weight")
            self._stored[f"{module}{BASE}.{kind}" if is_adapted else name] = name
            if is_adapted and kind == "weight":
                outputs, inputs = reader.shape(name)
                a, b = adapter_names(name)
                self._begun |= {a: (adapters.rank, inputs), b: (outputs, adapters.rank)}
                self.files |= {a: file, b: file}
        self.files |= {name: reader.files[stored] for name, stored in self._stored.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        return self._begun[name] if name in self._begun else self._reader.shape(self._stored[name])

    def tensor(self, name: str) -> Tensor:
        return self._first(name) if name in self._begun else self._reader.tensor(self._stored[name])

    def flat_range(self, name: str, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened tensor."""
        if name in self._begun:
            return self._first(name).view(-1)[start:stop]
        return self._reader.flat_range(self._stored[name], start, stop)

    def _first(self, name: str) -> Tensor:
        rows, columns = self._begun[name]
        return first_a(self._adapters, name, columns) if ".lora_A." in name else torch.zeros(rows, columns)


def merged_tensors(
    reader: ModelReader, names: Iterable[str], parts: Mapping[str, Tensor], adapters: Adapters
) -> dict[str, Tensor]:
    """Return tensors of a model folder with what their adapters have learnt; those without one as they are stored.

    Args:
        names: in the folder.
        parts: name -> A or B, of all adapters, whole.
    """
    found = {}
    for name in names:
        found[name] = reader.tensor(name)
        if adapters.adapts(name):
            a, b = (parts[each] for each in adapter_names(name))
            found[name] = merged(found[name], a, b, adapters.scale)
    return found
