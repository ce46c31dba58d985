"""Fill a model from a checkpoint folder; where parameters are partitioned, each rank reads its own part alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from transact.models.shards import check_shapes
from transact.models.tensor_files import CheckpointReader
from transact.models.weight_check import not_finite


def is_partitioned(parameter: Any) -> bool:
    """Whether DeepSpeed holds this parameter in parts (ZeRO stage 3)."""
    return hasattr(parameter, "ds_tensor")


def whole_shape(parameter: Any) -> tuple[int, ...]:
    return tuple(parameter.ds_shape if is_partitioned(parameter) else parameter.shape)


def check_names_and_shapes(model: Any, reader: CheckpointReader) -> None:
    """The folder holds exactly the model's parameters.

    Raises:
        ValueError: as `check_shapes`.
    """
    found = {name: reader.shape(name) for name in reader.files}
    expected = {name: whole_shape(parameter) for name, parameter in model.named_parameters()}
    check_shapes(str(reader.folder), found, expected, is_tied=model.config.tie_word_embeddings)


@torch.no_grad()
def load_weights(model: Any, reader: CheckpointReader, rounding: torch.dtype | None) -> str | None:
    """Copy every weight, through `rounding` where given, into the dtype of the model.

    Returns:
        Which weight that this rank has read holds something else than finite numbers, in words; None if none does.
    """
    problem = None
    check_names_and_shapes(model, reader)
    for name, parameter in model.named_parameters():
        if is_partitioned(parameter):
            target, values = parameter.ds_tensor, own_part(parameter, reader, name)
        else:
            target, values = parameter, reader.tensor(name)
        target.copy_(values if rounding is None else values.to(rounding))
        found = not_finite(values) if problem is None else None
        if found is not None:
            problem = f"{name} in {str(reader.folder / reader.files[name])!r} holds {found}"
    return problem


def own_part(parameter: Any, reader: CheckpointReader, name: str) -> torch.Tensor:
    """This rank's range of a partitioned parameter, padded with zeros to the length of every rank's part."""
    length = parameter.ds_tensor.numel()
    start = min(length * parameter.ds_zero_partition_rank, parameter.ds_numel)
    stop = min(start + length, parameter.ds_numel)
    if stop - start == length:
        return reader.flat_range(name, start, stop)
    part = torch.zeros(length)
    if stop > start:
        part[: stop - start] = reader.flat_range(name, start, stop)
    return part


def optimizer_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay, vectors (the norms) do not."""
    parameters = list(model.parameters())
    matrices = [parameter for parameter in parameters if len(whole_shape(parameter)) > 1]
    vectors = [parameter for parameter in parameters if len(whole_shape(parameter)) <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
