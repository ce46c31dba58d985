"""Folders as runs leave them, made up: what a report shows does not depend on a model having been there."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save_file

from transact.geometry import Geometry
from transact.runs.run_record import LAYOUT

LLAMA_7B = Geometry(
    hidden_size=4096,
    num_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=128,
    intermediate_size=11008,
    vocab_size=32000,
    tied_embeddings=False,
)
SMALL = Geometry(
    hidden_size=192,
    num_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=32,
    intermediate_size=640,
    vocab_size=2048,
    tied_embeddings=True,
)
BEGIN = 1_767_225_600.0


@dataclass(frozen=True, kw_only=True)
class MadeUpRun:
    """
    Attributes:
        rounds: that the run asks for; done: that it has finished. Of the one after them, the first half of the steps.
        has_efficiency, has_tasks: whether the last stages are done.
    """

    name: str = "made_up"
    geometry: Geometry = SMALL
    rounds: int = 2
    done: int = 2
    steps: int = 40
    state: str = "done"
    error: str | None = None
    fraction: float = 0.5
    has_efficiency: bool = True
    has_tasks: bool = True
    seed: int = 0
    lowest: float = 12.0  # perplexity, the parent's
    growth: float = 1.0  # nats from the parent to all gone

    def shrunk(self, number: int) -> Geometry:
        """After this round; 0 is the parent."""
        left = 1 - self.fraction * number / self.rounds
        values = self.geometry.to_dict()
        values["head_dim"] = max(2, 2 * round(self.geometry.head_dim * left / 2))
        values["intermediate_size"] = max(1, round(self.geometry.intermediate_size * left))
        return Geometry.from_dict(values)

    def perplexity(self, number: int) -> float:
        return self.lowest * math.exp(self.growth * self.fraction * number / self.rounds)


def write_run(folder: Path, run: MadeUpRun) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "run.json", _record(run))
    config = {"name": run.name, "command": f"python -m transact.run name={run.name} prune.rounds={run.rounds}"}
    config |= {"model": {"path": "/models/llama-parent"}}
    config |= {"recover": {"objective": "distillation", "tokens": run.rounds * run.steps * 4096}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _rows(run)), encoding="utf-8")
    write(folder / "round_00" / "evaluation.json", {"dense": evaluation(run, 0)})
    started = run.done if run.state == "done" else min(run.done + 1, run.rounds)
    for number in range(1, started + 1):
        _write_round(folder / f"round_{number:02d}", run, number)
    candidates = [run.shrunk(number).to_dict() for number in range(1, run.rounds + 1)]
    measured = [{"geometry": each, "parameters": 10**6, "loss": 2.0 + turn} for turn, each in enumerate(candidates)]
    write(folder / "round_01" / "split.json", {"candidates": measured, "chosen": candidates[0]})
    if run.has_tasks:
        write(folder / "comparison.json", {"dense": _compared(0.6), "pruned": _compared(0.5)})
    if run.has_efficiency:
        write(folder / "efficiency.json", _efficiency(run))
    return folder


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def _record(run: MadeUpRun) -> dict[str, Any]:
    stages = [f"round_{number:02d}/{stage}" for number in range(1, run.done + 1) for stage in ("slice", "recover")]
    middle = BEGIN + 60 + (run.steps + run.steps // 2) * 2
    return {
        "layout": LAYOUT,
        "state": run.state,
        "error": run.error,
        "stage": stages[-1] if run.state == "done" else f"round_{run.done + 1:02d}/recover",
        "restarts": 1,
        "starts": [BEGIN, middle],
        "world_size": 2,
        "git_revision": "0123456789abcdef",
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "stages": {
            name: {"seconds": 10.0 + turn, "metrics_position": 0, "files": {}} for turn, name in enumerate(stages)
        },
    }


def evaluation(run: MadeUpRun, number: int, worse: float = 1.0) -> dict[str, Any]:
    geometry = run.shrunk(number)
    return {
        "parameters": geometry.parameters(),
        "kv_bytes_per_token": geometry.kv_bytes_per_token(),
        "geometry": geometry.to_dict(),
        "perplexity": worse * run.perplexity(number),
    }


def _rows(run: MadeUpRun) -> list[dict[str, Any]]:
    numbers = random.Random(run.seed)
    rows: list[dict[str, Any]] = [_row(run, 0, 0, {"eval/perplexity_dense": run.perplexity(0)})]
    for number in range(1, run.rounds + 1):
        steps = run.steps if number <= run.done else run.steps // 2
        if number > run.done + 1 or (number > run.done and run.state == "done"):
            break
        first = (number - 1) * run.steps
        geometry = run.shrunk(number)
        figures: dict[str, float] = {f"prune/{name}": getattr(geometry, name) for name in ("head_dim", "num_layers")}
        figures |= {
            "prune/parameters": geometry.parameters(),
            "recover/validation_perplexity": 1.1 * run.perplexity(number),
        }
        rows.append(_row(run, number, first, figures))
        rows += [_row(run, number, first + step, _step(step / steps, numbers)) for step in range(1, steps + 1)]
        rows.append(_row(run, number, first + steps, {"recover/validation_perplexity": run.perplexity(number)}))
        measured = {"sliced": 1.5 * run.perplexity(number), "recovered": run.perplexity(number)}
        rows.append(_row(run, number, first + steps, {f"eval/perplexity_{role}": measured[role] for role in measured}))
    return rows


def _row(run: MadeUpRun, number: int, step: int, figures: dict[str, float]) -> dict[str, Any]:
    return {"time": BEGIN + 60 + 2 * step, "step": step, "tokens": 4096 * step, "round": number, **figures}


def _step(progress: float, numbers: random.Random) -> dict[str, float]:
    return {
        "recover/loss": 0.3 + math.exp(-4 * progress) + 0.05 * numbers.random(),
        "recover/lr": 1e-3 * (1 - progress),
        "recover/grad_norm": 1 + numbers.random(),
        "perf/tokens_per_s": 4000 + 200 * numbers.random(),
        "perf/mfu": 0.4 + 0.02 * numbers.random(),
        "perf/step_s": 1 + 0.1 * numbers.random(),
        "perf/data_s": 0.01,
        "mem/host_peak_gib": 30 + numbers.random() / 2,
        "mem/allocator_retries": 800.0,
    }


def _write_round(folder: Path, run: MadeUpRun, number: int) -> None:
    source, target = run.shrunk(number - 1), run.shrunk(number)
    write(folder / "selection.json", {"source": source.to_dict(), "target": target.to_dict(), "reached": 0.25})
    save_file(activation_maps(source, run.seed + number), folder / "activation_maps.safetensors")
    if number <= run.done:
        both = {"sliced": evaluation(run, number, 1.5), "recovered": evaluation(run, number)}
        write(folder / "evaluation.json", both)


def activation_maps(geometry: Geometry, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    generator = np.random.default_rng(seed)
    pairs = geometry.head_dim // 2
    widths = {
        "query": geometry.num_attention_heads * pairs,
        "key": geometry.num_key_value_heads * pairs,
        "attention_output": geometry.num_attention_heads * geometry.head_dim,
        "intermediate": geometry.intermediate_size,
    }
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for kind, width in widths.items():
        norms = np.exp(generator.normal(size=(geometry.num_layers, width))).astype(np.float32)
        tensors[f"{kind}.norms"] = norms
        if kind != "attention_output":
            tensors[f"{kind}.kept"] = norms > np.median(norms, axis=1, keepdims=True)
    return tensors


def _compared(score: float) -> dict[str, Any]:
    tasks = {name: {"acc": score + 0.05 * turn, "documents": 100} for turn, name in enumerate(("piqa", "boolq"))}
    return {"texts": {"notes": {"perplexity": 20 / score, "tokens": 1000}}, "tasks": tasks}


def _efficiency(run: MadeUpRun) -> dict[str, Any]:
    def model(role: str, scale: float) -> dict[str, Any]:
        phases = {
            phase: {"processor_seconds": scale, "wall_seconds": scale, "flops": 1e11 * scale, "bytes": 1e9 * scale}
            for phase in ("prefill", "decode", "whole")
        }
        return {**phases, "peak_bytes": int(1e9 * scale)}

    left = 1 - run.fraction
    entry = {"speed_up": 1 / (left + 0.1), "allowed": 1 / left}
    row = {
        "batch_size": 1,
        "prompt_tokens": 64,
        "new_tokens": 32,
        "turns": 3,
        "models": {"parent": model("parent", 0.02), "pruned": model("pruned", 0.02 * left)},
        "speed_ups": {"pruned": {"prefill": entry, "decode": entry, "whole": {"speed_up": 1.5}}},
    }
    sizes = {"parent": run.shrunk(0), "pruned": run.shrunk(run.rounds)}
    models = {
        role: {"parameters": each.parameters(), "file_bytes": 2 * each.parameters()} for role, each in sizes.items()
    }
    settings = {"dtype": "float32", "device": "cpu", "clock": "processor", "turns": 3}
    left_out = ["256 tokens of prompt, batch size 1: 3 of 3 turns"]
    return {"models": models, "settings": settings, "latency": [row], "left_out": left_out}
