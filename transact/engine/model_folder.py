"""Writing model folders: a shard per layer, as many at a time as there are ranks, published once all are complete."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from transact.distributed.process import ProcessGroup
from transact.engine.engine import Engine
from transact.files import fresh_temporary_folder, publish, read_json, temporary_name, write_json
from transact.models.adapters import Adapters, merged_tensors
from transact.models.families import architectures_of
from transact.models.llama import code_files, layer_of
from transact.models.model_files import COMPANION_FILES, own_file
from transact.models.shard_writer import write_shard
from transact.models.tensor_files import ModelReader, write_index

Tensors = dict[str, torch.Tensor]


def stored_names(reader: ModelReader, config: dict[str, Any]) -> list[str]:
    """Return the names of a folder's parameters in the order of layers; a tied output layer is not stored twice."""
    tied = {"lm_head.weight"} if config.get("tie_word_embeddings") else set()

    def order(name: str) -> tuple[int, str]:
        layer = layer_of(name)
        return (-1 if layer is None else layer), name

    return sorted(set(reader.files) - tied, key=order)


def layer_groups(names: Iterable[str]) -> list[list[str]]:
    """Group the names that are handled together: a layer's, or a single tensor outside the layers."""
    groups: dict[str, list[str]] = {}
    for name in names:
        layer = layer_of(name)
        groups.setdefault(name if layer is None else f"layer {layer}", []).append(name)
    return list(groups.values())


def copy_companions(source: Path, target: Path) -> None:
    """Copy the files beside the weights, such as the tokenizer's, that the source folder itself holds."""
    for name in COMPANION_FILES:
        if file := own_file(source, name):
            shutil.copyfile(file, target / name)


def add_code(config: Mapping[str, Any], target: Path) -> None:
    """Put the code into a model folder that its config.json names, where layers differ."""
    for file in code_files(config):
        shutil.copyfile(file, target / file.name)


def stored_config(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return config.json for weights stored in `dtype`, which it names under the keys of transformers 4 and 5."""
    return config | {
        "architectures": architectures_of(config),
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def write_model_folder(
    output: Path,
    group: ProcessGroup,
    shards: list[Callable[[], Tensors]],
    *,
    every_rank_reads: bool,
    config: dict[str, Any],
    companions: Path,
    done: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Write a model folder, the shards dealt out to the ranks, which write at the same time (collective).

    Args:
        shards: A function per shard that returns its tensors.
        config: config.json, as `stored_config` makes it; it says the dtype.
        every_rank_reads: Whether reading a shard is collective (its owner alone keeps and writes it).
        companions: The folder to take tokenizer files from.
        done: Called for each shard, on every rank equally often.

    Returns:
        Shard name -> {"size": bytes, "sha256"}, on every rank.
    """
    if group.is_main:
        fresh_temporary_folder(output)
    group.barrier()
    temporary = temporary_name(output)
    dtype: torch.dtype = getattr(torch, config["dtype"])
    written, files = {}, {}
    for first in range(0, len(shards), group.world_size):
        together = range(first, min(first + group.world_size, len(shards)))
        own: Tensors = {}
        for number in together:
            mine = number == first + group.rank
            tensors = shards[number]() if mine or every_rank_reads else {}
            if mine:  # already rounded: it waits beside the shards of the others while those are read
                own = {name: tensor.to(dtype) for name, tensor in tensors.items()}
            del tensors
        if first + group.rank in together:
            name = f"model-{first + group.rank + 1:05d}-of-{len(shards):05d}.safetensors"
            written[name] = write_shard(temporary / name, own, dtype)
            files.update(dict.fromkeys(own, name))
        group.turn()
        for _ in together:
            done()
    digests: dict[str, Any] = {}
    all_files: dict[str, str] = {}
    for their_digests, their_files in group.gather((written, files)):
        digests |= their_digests
        all_files |= their_files
    if group.is_main:
        write_index(temporary, all_files, sum(entry["size"] for entry in digests.values()))
        write_json(temporary / "config.json", config)
        copy_companions(companions, temporary)
        add_code(config, temporary)
        publish(temporary, output)
    group.barrier()
    return digests


def save_engine(
    engine: Engine, output: Path, group: ProcessGroup, *, source: Path, dtype: str, adapters: Adapters | None = None
) -> dict[str, Any]:
    """Write an engine's weights, gathering a layer at a time (collective).

    Of an engine with adapters, which computes with weights that may be rounded, those of `source` are written as they
    are stored there, with what the adapters have learnt added in float32. Configuration and tokenizer come from
    `source` as well.
    """
    config, parameters = read_json(source / "config.json"), dict(engine.named_parameters())

    def gathered(names: list[str]) -> Tensors:
        return {name: engine.full_weight(parameters[name]) for name in names}

    with ModelReader(source) as stored:
        shards: list[Callable[[], Tensors]] = [partial(gathered, names) for names in layer_groups(parameters)]
        if adapters is not None:
            parts = {name: engine.full_weight(parameter).cpu() for name, parameter in engine.trained_parameters()}
            groups = layer_groups(stored_names(stored, config))
            shards = [partial(merged_tensors, stored, names, parts, adapters) for names in groups]
        return write_model_folder(
            output,
            group,
            shards,
            every_rank_reads=adapters is None,
            config=stored_config(config, dtype),
            companions=source,
        )
