"""Measure what the method costs: greedy OBS at the widths of large models, and a cut of a real one beside its forwards.

python -m benchmarks.method_cost
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch

import transact
from benchmarks.smollm2 import smollm2_folder
from benchmarks.trials import of_all_parameters
from benchmarks.workload import REPOSITORY, RESULTS, machine, parse_whole, write_result
from transact.config.compose import method_preset
from transact.errors import DONE, leave
from transact.models.folder import geometry_of
from transact.pruning.greedy_obs import BLOCK, greedy_obs
from transact.pruning.refit import Ridge

WIDTHS = (4096, 11008)
HIDDEN_SIZE = 4096
RIDGE = Ridge(share=0.01)
CALIBRATION_TOKENS = 4096  # of the stand-in for a layer's activations
SEQUENCE_LENGTH = 256
MICRO_BATCH = 4  # sequences
FORWARDS = 2  # of the dense model over the calibration text, one for scores and one for Gram matrices: the yardstick
STAGES = ("calibrate", "gram", "select", "slice")


def obs_seconds(channels: int, outputs: int) -> float:
    """Return the seconds to choose half of the channels of one layer; float32, correlated activations."""
    generator = torch.Generator().manual_seed(0)
    activations = torch.randn(CALIBRATION_TOKENS, channels, generator=generator)
    activations += activations.roll(1, dims=1)
    gram = activations.T @ activations
    weight = torch.randn(outputs, channels, generator=generator)
    begin = time.perf_counter()
    greedy_obs(weight, gram, channels // 2, RIDGE)
    return time.perf_counter() - begin


def cut_seconds(model: Path, method: str, calibration_sequences: int, folder: Path) -> dict[str, float]:
    """Return the seconds by stage of calibrating and cutting a model once, by a method of conf/prune/method.

    Half of what is inside attention and MLP goes, from both in equal shares: measuring splits is a choice of its own.
    """
    removed = of_all_parameters(0.5, geometry_of(model))
    with tempfile.TemporaryDirectory(dir=folder) as name:
        result = transact.prune(
            model,
            Path(name) / "run",
            data={
                "sequence_length": SEQUENCE_LENGTH,
                "evaluation_sequences": 4,
                "token_store": str(folder / "tokens"),
            },
            prune={
                "method": asdict(method_preset(method)),
                "remove_fraction": removed,
                "split": "equal",
                "target": "transformers",
                "calibration_sequences": calibration_sequences,
            },
            recover={"tokens": 0, "validation_sequences": 4},
            engine={"micro_batch_sequences": MICRO_BATCH},
            eval={"efficiency": {"measured": False}},
            track={"mode": "disabled"},
        )
        return {kind: result.summary["seconds"].get(kind, 0.0) for kind in STAGES}


@torch.no_grad()
def forward_seconds(model: Path, calibration_sequences: int) -> float:
    """Return the seconds that stock transformers takes to run the calibration text through a model, `FORWARDS` times.

    Without the output layer, as calibration does, which sums scores and Gram matrices in one forward.
    """
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).model.eval()
    tokens = torch.randint(0, network.config.vocab_size, (calibration_sequences, SEQUENCE_LENGTH))
    network(tokens[:MICRO_BATCH], use_cache=False)
    begun = time.perf_counter()
    for _ in range(FORWARDS):
        for batch in torch.split(tokens, MICRO_BATCH):
            network(batch, use_cache=False)
    return time.perf_counter() - begun


def measured_cuts(model: Path, methods: list[str], calibration_sequences: int, repetitions: int) -> dict[str, Any]:
    """Return the seconds of every turn, and the median of what a cut takes of the forwards alone, by method."""
    turns = []
    with tempfile.TemporaryDirectory(prefix="transact-method-cost-") as name:
        for _ in range(repetitions):
            seconds = {method: cut_seconds(model, method, calibration_sequences, Path(name)) for method in methods}
            turns.append({"forwards": {"all": forward_seconds(model, calibration_sequences)}, **seconds})
    return {
        "model": model.name,
        "calibration_tokens": calibration_sequences * SEQUENCE_LENGTH,
        "turns": turns,
        "over_forwards": {
            method: median(sum(turn[method].values()) / turn["forwards"]["all"] for turn in turns) for method in methods
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS))
    parser.add_argument("--hidden-size", type=int, default=HIDDEN_SIZE)
    parser.add_argument("--model", type=Path, help="a model folder; without it SmolLM2-135M-Instruct from PyPI")
    parser.add_argument("--methods", nargs="+", default=["parallel", "default"], help="of conf/prune/method")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--calibration-sequences", type=int, default=64)
    parser.add_argument("--output", type=Path, default=RESULTS / "method_cost.json")
    arguments = parse_whole(parser)
    model = arguments.model or smollm2_folder(REPOSITORY / "outputs" / "real_model")
    result: dict[str, Any] = {
        "greedy_obs": [
            {
                "channels": width,
                "outputs": arguments.hidden_size,
                "kept": width // 2,
                "block": BLOCK,
                "seconds": obs_seconds(width, arguments.hidden_size),
            }
            for width in arguments.widths
        ],
        "cut": measured_cuts(model, arguments.methods, arguments.calibration_sequences, arguments.repetitions),
        "environment": machine(torch.device("cpu")),
    }
    write_result(arguments.output, result)


if __name__ == "__main__":
    main()
    leave(DONE)
