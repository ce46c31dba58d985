"""This rank's part of the weights and of the optimizer's state: read, written, and gathered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from transact.models.adapters import AdaptedReader
from transact.models.identity import not_finite
from transact.models.model_files import check_shapes
from transact.models.tensor_files import ModelReader


def is_partitioned(parameter: Any) -> bool:
    """Return whether DeepSpeed holds this parameter in parts (ZeRO stage 3)."""
    return hasattr(parameter, "ds_tensor")


def whole_shape(parameter: Any) -> tuple[int, ...]:
    """Return the shape of the whole parameter, of which this rank may hold a part only."""
    return tuple(parameter.ds_shape if is_partitioned(parameter) else parameter.shape)


def check_names_and_shapes(model: Any, reader: ModelReader | AdaptedReader) -> None:
    """Raise ValueError unless the folder holds exactly the model's parameters.

    Raises:
        ValueError: as `check_shapes`.
    """
    found = {name: reader.shape(name) for name in reader.files}
    expected = {name: whole_shape(parameter) for name, parameter in model.named_parameters()}
    check_shapes(str(reader.folder), found, expected, is_tied=model.config.tie_word_embeddings)


@torch.no_grad()
def load_weights(model: Any, reader: ModelReader | AdaptedReader, rounding: torch.dtype | None) -> str | None:
    """Copy every weight, rounded to `rounding` where given, into the dtype of the model.

    Returns:
        In words, a weight read by this rank that holds something other than finite numbers; None if none does.
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


def own_part(parameter: Any, reader: ModelReader | AdaptedReader, name: str) -> torch.Tensor:
    """Return this rank's range of a partitioned parameter, padded with zeros to the length of every rank's part."""
    length = parameter.ds_tensor.numel()
    start = min(length * parameter.ds_zero_partition_rank, parameter.ds_numel)
    stop = min(start + length, parameter.ds_numel)
    if stop - start == length:
        return reader.flat_range(name, start, stop)
    part = torch.zeros(length)
    if stop > start:
        part[: stop - start] = reader.flat_range(name, start, stop)
    return part


def trained_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield name and parameter of those that are not frozen; beside adapters all others are."""
    yield from (each for each in model.named_parameters() if each[1].requires_grad)


def optimizer_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the optimizer's groups of parameters: matrices decay, vectors (the norms) do not."""
    parameters = [parameter for _, parameter in trained_parameters(model)]
    matrices = [parameter for parameter in parameters if len(whole_shape(parameter)) > 1]
    vectors = [parameter for parameter in parameters if len(whole_shape(parameter)) <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]  # adapters are matrices alone


MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = ("weight", *MOMENTS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fragment:
    """This rank's range of one flattened parameter, all float32 views of (elements,) into the optimizer's memory.

    Attributes:
        start: position of the first element in the flattened parameter.
        weight: the master weight.
        exp_avg: Adam's mean of gradients.
        exp_avg_sq: Adam's mean of squared gradients.
    """

    start: int
    weight: torch.Tensor
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor

    @property
    def stop(self) -> int:
        return self.start + self.weight.numel()


def fragments(wrapped: Any) -> dict[str, Fragment]:
    """Return parameter name -> this rank's fragment, for the parameters of which it owns anything.

    At stage 0 every rank owns everything.
    """
    _create_moments(wrapped)
    masters = unsharded_masters(wrapped)
    found = {name: _fragment(wrapped, parameter, masters) for name, parameter in trained_parameters(wrapped.module)}
    return {name: fragment for name, fragment in found.items() if fragment is not None}


def adam_steps(wrapped: Any) -> int:
    """Return how many updates Adam has made; its bias correction depends on them."""
    _create_moments(wrapped)
    (steps,) = {int(state["step"]) for state in _inner(wrapped).state.values()}
    return steps


def set_adam_steps(wrapped: Any, steps: int) -> None:
    for state in _inner(wrapped).state.values():
        state["step"].fill_(steps)


def unsharded_masters(wrapped: Any) -> dict[nn.Parameter, torch.Tensor]:
    """Return parameter -> float32 master at stage 0 in bfloat16.

    It is the one mode whose masters DeepSpeed's own access functions do not find.
    """
    optimizer = wrapped.optimizer
    groups = zip(getattr(optimizer, "fp16_groups", ()), getattr(optimizer, "fp32_groups", ()), strict=False)
    return {low: high for lows, highs in groups for low, high in zip(lows, highs, strict=True)}


def _inner(wrapped: Any) -> Any:
    """Return the plain torch optimizer inside DeepSpeed's."""
    return getattr(wrapped.optimizer, "optimizer", wrapped.optimizer)


def _create_moments(wrapped: Any) -> None:
    """Create Adam's states, which Adam itself makes only in its first step; a checkpoint is loaded before that."""
    state = _inner(wrapped).state
    for master in _masters(wrapped):
        if not state.get(master):
            zero = torch.zeros((), dtype=torch.float32, device=master.device)
            state[master] = {"step": zero, **{name: torch.zeros_like(master) for name in MOMENTS}}


def _masters(wrapped: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors that Adam steps: flat partitions, or whole parameters at stage 0."""
    whole = [parameter for _, parameter in trained_parameters(wrapped.module)]
    yield from (_flat_masters(wrapped) or unsharded_masters(wrapped).values() or whole)


def _flat_masters(wrapped: Any) -> list[torch.Tensor]:
    """Return this rank's flat part of each group's masters; none at stage 0."""
    # Stage 3, stages 1 and 2, and stage 1 in bfloat16.
    names = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")
    return next((getattr(wrapped.optimizer, name) for name in names if hasattr(wrapped.optimizer, name)), [])


def _fragment(wrapped: Any, parameter: Any, masters: dict[nn.Parameter, torch.Tensor]) -> Fragment | None:
    if is_partitioned(parameter):
        return _stage_3_fragment(parameter)
    if hasattr(parameter, "_hp_mapping"):
        return _stage_1_or_2_fragment(wrapped, parameter)
    master = masters.get(parameter, parameter)
    moments = {name: _inner(wrapped).state[master][name].view(-1) for name in MOMENTS}
    return Fragment(start=0, weight=master.detach().view(-1), **moments)


def _stage_3_fragment(parameter: Any) -> Fragment | None:
    length = parameter.ds_tensor.numel()
    start = length * parameter.ds_zero_partition_rank
    count = min(length, parameter.ds_numel - start)  # the rest of the last parts is padding
    if count <= 0:
        return None

    def view(key: str | None) -> torch.Tensor:
        # DeepSpeed's `safe_get_local_...` copies to the GPU what an optimizer offloaded to the CPU holds.
        whole, _ = parameter._z3_optimizer._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=False, optim_state_key=key
        )
        return whole.detach()[:count]

    return Fragment(start=start, weight=view(None), **{name: view(name) for name in MOMENTS})


def _stage_1_or_2_fragment(wrapped: Any, parameter: Any) -> Fragment | None:
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    flat = _flat_masters(wrapped)[mapping.param_group_index]
    here = mapping.hp_fragment_address
    state = _inner(wrapped).state[flat]
    moments = {name: state[name].narrow(0, here.start, here.numel) for name in MOMENTS}
    return Fragment(start=mapping.lp_fragment_address.start, weight=mapping.hp_fragment.detach(), **moments)
