"""Measure what the method costs: greedy OBS at the widths of large models, and sequential against parallel calibration.

python -m benchmarks.method_cost
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

import transact
from benchmarks.workload import DEMO_PARENT, RESULTS, machine, write_result
from transact.errors import DONE, leave
from transact.pruning.greedy_obs import BLOCK, greedy_obs
from transact.pruning.refit import Ridge

WIDTHS = (4096, 11008)
HIDDEN_SIZE = 4096
RIDGE = Ridge(share=0.01)
CALIBRATION_TOKENS = 4096
# The stages of a cut of the demo parent, besides the calibration that both refits need.
STAGES = ("gram", "select", "slice")


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


def slicing_seconds(refit: str, calibration_sequences: int, folder: Path) -> dict[str, float]:
    """Return the seconds by stage of cutting the demo parent in half once."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        result = transact.prune(
            DEMO_PARENT,
            Path(name) / "run",
            data={"sequence_length": 256, "evaluation_sequences": 16, "token_store": str(folder / "tokens")},
            prune={
                "method": {"refit": refit},
                "split": "equal",
                "rounds": 1,
                "calibration_sequences": calibration_sequences,
            },
            recover={"tokens": 0, "validation_sequences": 16},
            eval={"efficiency": {"measured": False}},
            track={"mode": "disabled"},
        )
        return {kind: result.summary["seconds"][kind] for kind in STAGES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS))
    parser.add_argument("--hidden-size", type=int, default=HIDDEN_SIZE)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--calibration-sequences", type=int, default=128)
    parser.add_argument("--output", type=Path, default=RESULTS / "method_cost.json")
    arguments = parser.parse_args()
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
        ]
    }
    with tempfile.TemporaryDirectory(prefix="transact-method-cost-") as name:
        turns = [
            {
                refit: slicing_seconds(refit, arguments.calibration_sequences, Path(name))
                for refit in ("least_squares", "sequential")
            }
            for _ in range(arguments.repetitions)
        ]
    result["environment"] = machine(torch.device("cpu"))
    result["slicing"] = turns
    result["sequential_over_parallel"] = median(
        sum(turn["sequential"].values()) / sum(turn["least_squares"].values()) for turn in turns
    )
    write_result(arguments.output, result)


if __name__ == "__main__":
    main()
    leave(DONE)
