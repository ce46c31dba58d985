"""Measure what every width of a model's layers costs on this machine: the table behind prune.budget.latency_ms.

Models of a few layers with random weights stand for the whole one: what a layer takes does not depend on its weights.
A narrower one is measured in turn with one of the parent's widths, so that what disturbs the machine disturbs both.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from transact.config.outputs import EfficiencyConfig
from transact.config.pruning import LATENCY_PHASES
from transact.evaluation.efficiency.generation import Clock, generate, random_prompt
from transact.evaluation.efficiency.measure import WARM_UP_TOKENS, limited_threads
from transact.geometry import Geometry
from transact.models.llama import read_geometry
from transact.models.stock import stock_class

LAYERS = 4  # of the models that are measured; one of half as many tells what is no layer
STEPS = 8  # widths from the parent's down to an eighth
MILLISECONDS = 1000.0
WEIGHT_DEVIATION = 0.02


def measure_latencies(
    config: Mapping[str, Any],
    asked: EfficiencyConfig,
    *,
    dtype: str,
    device: torch.device,
    advance: Callable[[int], object] = lambda models: None,
) -> dict[str, Any]:
    """Return the table of a model, for the first batch size, prompt and number of new tokens that are asked for.

    Args:
        config: the model's config.json.
        asked: with turns and threads too.
        advance: called with the number of models that were measured.

    Returns:
        "geometry"; "settings"; "phases": of prefill and decode the "rest" and the curves "attention" (by the width of
        keys) and "mlp" (by intermediate_size), in milliseconds.
    """
    geometry, clock = read_geometry(config), Clock(device=device, threads=asked.threads)
    settings: dict[str, Any] = {
        "batch_size": asked.batch_sizes[0],
        "prompt_tokens": asked.prompt_tokens[0],
        "new_tokens": max(2, asked.new_tokens[0]),
        "threads": asked.threads,
        "turns": asked.turns,
        "dtype": dtype,
        "machine": machine_name(device),
        "clock": clock.basis,
    }

    def made(layers: int, **widths: int) -> Any:
        return _random_model(config, layers, **widths).to(device, getattr(torch, dtype))

    def ratios(layers: int, **widths: int) -> dict[str, float]:
        found = turns.ratios(made(layers, **widths))
        advance(1)
        return found

    with limited_threads(asked.threads, device):
        prompt = random_prompt(geometry.vocab_size, settings["batch_size"], settings["prompt_tokens"], device)
        turns = _Turns(
            whole=made(LAYERS), prompt=prompt, new_tokens=settings["new_tokens"], count=asked.turns, clock=clock
        )
        half = ratios(LAYERS // 2)
        mlps = {width: ratios(LAYERS, intermediate_size=width) for width in _steps(geometry.intermediate_size, 1)}
        heads = {dim: ratios(LAYERS, head_dim=dim) for dim in _steps(geometry.head_dim, 2)}
    phases = {
        phase: phase_curves(
            geometry,
            MILLISECONDS * median(turns.seconds[phase]),
            half[phase],
            {width: each[phase] for width, each in mlps.items()},
            {geometry.num_key_value_heads * dim: each[phase] for dim, each in heads.items()},
        )
        for phase in LATENCY_PHASES
    }
    return {"geometry": geometry.to_dict(), "settings": settings, "phases": phases}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Turns:
    """A model that others are timed beside, in turn with it.

    Attributes:
        prompt: (sequences, tokens).
        count: of turns with each of the others.
        seconds: that the model took in every turn, by phase.
    """

    whole: Any
    prompt: torch.Tensor
    new_tokens: int
    count: int
    clock: Clock
    seconds: dict[str, list[float]] = field(default_factory=lambda: {phase: [] for phase in LATENCY_PHASES})

    def ratios(self, other: Any) -> dict[str, float]:
        """Return by phase what another model takes relative to this one: the median of the turns' ratios."""
        for model in (self.whole, other):
            generate(model, self.prompt, [WARM_UP_TOKENS], self.clock.read)
        found: dict[str, list[float]] = {phase: [] for phase in LATENCY_PHASES}
        for turn in range(self.count):
            order = (self.whole, other) if turn % 2 else (other, self.whole)
            timed = {id(model): self._timed(model) for model in order}
            one, base = timed[id(other)], timed[id(self.whole)]
            for phase in LATENCY_PHASES:
                found[phase].append(one[phase] / base[phase])
                self.seconds[phase].append(base[phase])
        return {phase: median(each) for phase, each in found.items()}

    def _timed(self, model: Any) -> dict[str, float]:
        phases = generate(model, self.prompt, [self.new_tokens], self.clock.read)[self.new_tokens]
        return {phase: getattr(phases[phase], self.clock.basis) for phase in LATENCY_PHASES}


def _random_model(config: Mapping[str, Any], layers: int, **widths: int) -> Any:
    """Return a model of so many layers with these widths, otherwise as config.json says but for its rotation."""
    plain = {name: value for name, value in config.items() if not name.startswith("rope_")} | {"rope_theta": 10000.0}
    of_layers: dict[str, Any] = {"num_hidden_layers": layers}
    if config.get("layer_types"):
        of_layers["layer_types"] = list(islice(cycle(config["layer_types"]), layers))
    torch.manual_seed(0)
    model_class, described = stock_class(plain | of_layers | widths, "sdpa")
    model = model_class(described).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=WEIGHT_DEVIATION)
    return model


def machine_name(device: torch.device) -> str:
    """Return the name of what computes: the GPU's, or the processor's and its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def models_to_measure(geometry: Geometry) -> int:
    """Return how often `measure_latencies` calls `advance`."""
    return 1 + len(_steps(geometry.intermediate_size, 1)) + len(_steps(geometry.head_dim, 2))


def _steps(size: int, multiple: int) -> list[int]:
    """Return sizes below one, evenly spaced, from an eighth of it on."""
    return sorted({max(1, round(size * part / STEPS / multiple)) * multiple for part in range(1, STEPS)} - {size})


def phase_curves(
    geometry: Geometry, whole: float, half: float, mlps: Mapping[int, float], heads: Mapping[int, float]
) -> dict[str, Any]:
    """Return one phase of the table.

    Args:
        whole: milliseconds of the model of `LAYERS` layers.
        half: what the one of half as many takes, relative to it; mlps, heads: likewise, by width.
    """
    rest = min(max(0.0, 2 * half - 1), 1.0) * whole
    layer = (whole - rest) / LAYERS
    widths = {
        "mlp": (geometry.intermediate_size, mlps),
        "attention": (geometry.num_key_value_heads * geometry.head_dim, heads),
    }
    # What a part saves is known, not what all of it takes: the narrowest MLP and the narrowest heads stand for nothing,
    # and what a layer takes besides is with its attention.
    saved = {
        name: {width: (1 - ratio) * whole / LAYERS for width, ratio in found.items()}
        for name, (_, found) in widths.items()
    }
    parts = {"mlp": max([0.0, *saved["mlp"].values()])}
    # Never less than a narrower one saves, and both together no more than a layer takes: where the noise of a busy
    # machine says otherwise, both are scaled down.
    parts["attention"] = max([0.0, layer - parts["mlp"], *saved["attention"].values()])
    both = sum(parts.values())
    scale = min(1.0, layer / both) if both else 1.0
    curves: dict[str, list[list[float]]] = {}
    for name, (full, _) in widths.items():
        narrower = [[width, scale * (parts[name] - less)] for width, less in sorted(saved[name].items())]
        curves[name] = [*narrower, [full, scale * parts[name]]]
    return {"rest": rest, **curves}
