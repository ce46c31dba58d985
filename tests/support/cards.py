"""A summary as result.json holds it, written by hand, and the configuration of a run."""

from __future__ import annotations

from typing import Any

from tests.support.configs import compose_config
from transact.config.run import RunConfig


def summary(**changes: int) -> dict[str, Any]:
    """Two rounds; changes: of the pruned model's dimensions."""
    dense = {"head_dim": 32, "intermediate_size": 640, "num_layers": 4}
    pruned = dense | {"head_dim": 24, "intermediate_size": 277} | changes

    def model(geometry: dict[str, int], parameters: int) -> dict[str, Any]:
        figures = {"parameters": parameters, "kv_bytes_per_token": 64, "perplexity": 8.5}
        return {**figures, "sequence_length": 256, "tokens": 4096, "tasks": {}, "geometry": geometry}

    return {
        "name": "half",
        "remove_fraction": {"asked": 0.3, "reached": 0.3},
        "dense": model(dense, 1000),
        "pruned": model(pruned, 700),
        "rounds": [{"tokens": 1000}, {"tokens": 2000}],
    }


def composed(model: str, *overrides: str) -> RunConfig:
    """The configuration of a run on a model, as the command line gives it."""
    return compose_config(["name=half", f"model.path={model}", *overrides])
