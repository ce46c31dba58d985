"""Slice: physically smaller weights, from a checkpoint folder to a checkpoint folder.

Each rank reads, cuts and writes the layers that fall to it, one at a time: no engine is needed, and no
rank ever holds more than one layer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from transact.files import read_json
from transact.models.llama import slice_tensor, sliced_config
from transact.prune.planning import PrunePlan
from transact.runtime.checkpoints import layer_groups, write_checkpoint
from transact.runtime.process import ProcessGroup
from transact.runtime.tensor_files import CheckpointReader


def slice_checkpoint(source: Path, plan: PrunePlan, output: Path, group: ProcessGroup, *, dtype: str) -> dict[str, Any]:
    """Write the sliced model's folder. Returns the size and SHA-256 of each shard by name."""
    with CheckpointReader(source) as reader:

        def cut(names: list[str]) -> Callable[[], dict[str, torch.Tensor]]:
            # In float32 until it is written: the query scale must be rounded once, not twice.
            return lambda: {name: slice_tensor(name, reader.tensor(name).float(), plan) for name in names}

        config = read_json(source / "config.json")
        tied = {"lm_head.weight"} if config.get("tie_word_embeddings") else set()
        names = sorted(set(reader.files) - tied)
        return write_checkpoint(
            output,
            group,
            [cut(group_names) for group_names in layer_groups(names)],
            every_rank_reads=False,
            config=sliced_config(config, plan),
            companions=source,
            dtype=dtype,
        )
