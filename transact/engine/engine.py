"""The sharded model.

With ZeRO stage 3 a parameter exists in parts, one per rank, from construction on; it is whole on a rank
only while the layer that owns it computes. Stages 0 to 2 keep whole weights and split less.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from transact.config.machines import EngineConfig
from transact.distributed.process import ProcessGroup
from transact.engine.construction import build, load_masters, wrap
from transact.engine.deepspeed_setup import TrainingSettings, deepspeed_settings, import_deepspeed
from transact.engine.sharded_state import (
    Fragment,
    adam_steps,
    fragments,
    is_partitioned,
    load_weights,
    set_adam_steps,
    trained_parameters,
    unsharded_masters,
)
from transact.models.adapters import AdaptedReader
from transact.models.identity import UnusableModel
from transact.models.layer_by_layer import layer_by_layer
from transact.models.loss_head import LossHead, LossRequest, Teaching, next_token_targets
from transact.models.packing import packing_arguments
from transact.models.stock import unpacked
from transact.models.tensor_files import ModelReader


class Engine:
    """A LLaMA model sharded over the ranks. Every method is collective: all ranks call it, in the same order."""

    def __init__(self, wrapped: Any, group: ProcessGroup, zero_stage: int, *, trains: bool) -> None:
        self._wrapped = wrapped
        self._trains = trains
        self._group = group
        self._zero_stage = zero_stage

    @property
    def module(self) -> nn.Module:
        return self._wrapped.module

    @property
    def is_partitioned(self) -> bool:
        return self._zero_stage == 3

    @property
    def is_replicated(self) -> bool:
        """Whether every rank holds all of the optimizer."""
        return self._zero_stage == 0

    def loss(
        self,
        tokens: torch.Tensor,
        teaching: Teaching | None = None,
        counted: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the mean next-token loss, in nats.

        Args:
            tokens: (sequences, length).
            teaching: for distillation.
            counted: (sequences, length) bool, the tokens that the loss is the mean of, 0 where there are none. None:
                all but the first of each sequence.
            position_ids: (sequences, length), that begin anew at every document. None: each sequence is one.
        """
        tokens = tokens.to(self._group.device)
        targets = next_token_targets(tokens, None if counted is None else counted.to(self._group.device))
        with self._head.computing(LossRequest(targets=targets, teaching=teaching)):
            return self._forward(tokens, position_ids).logits

    @torch.no_grad()
    def final_hidden(
        self, batch: Sequence[torch.Tensor], position_ids: Sequence[torch.Tensor | None] = ()
    ) -> tuple[torch.Tensor, ...]:
        """Return the hidden states that the output layer reads, of each micro-batch as if it were computed alone.

        batch: tokens (sequences, length) each, of the same shape; hidden states (sequences, length, hidden_size) on the
        device. position_ids: of each, as in `loss`. At stage 3 each layer is gathered once.
        """
        found = [each for each in position_ids if each is not None]
        assert len(found) in (0, len(batch))
        size, alive = len(batch[0]), self._group.watchdog.progress
        with self._head.passing_hidden(), layer_by_layer(self.module, size, alive):
            tokens = torch.cat(list(batch)).to(self._group.device)
            hidden: torch.Tensor = self._forward(tokens, torch.cat(found) if found else None).logits
        return torch.split(hidden, size)

    @unpacked()
    def _forward(self, tokens: torch.Tensor, position_ids: torch.Tensor | None = None, **options: Any) -> Any:
        return self._wrapped(input_ids=tokens, use_cache=False, **self._packing(position_ids), **options)

    def _packing(self, position_ids: torch.Tensor | None) -> dict[str, Any]:
        if position_ids is None:
            return {}
        attention = self._wrapped.module.config._attn_implementation
        return packing_arguments(position_ids.to(self._group.device), attention, self._head.weight.dtype)

    @property
    def _head(self) -> LossHead:
        return self._wrapped.module.lm_head

    def differentiate(self, tokens: torch.Tensor, position_ids: torch.Tensor | None = None) -> None:
        """Run a forward and a backward through an engine for inference, whose frozen weights get no gradients.

        For hooks on activations: something before the first layer must require gradients. position_ids: as in `loss`;
        the first token of a document is no target, and the loss of the others counts as much as without documents.
        """
        tokens = tokens.to(self._group.device)
        counted = None if position_ids is None else position_ids.to(tokens.device) > 0
        share = 1.0 if counted is None else counted[:, 1:].float().mean()
        with self._head.computing(LossRequest(targets=next_token_targets(tokens, counted))), unpacked():
            # Not through DeepSpeed's wrapper, which allows a backward only where there is an optimizer.
            loss = self.module(input_ids=tokens, use_cache=False, **self._packing(position_ids)).logits
            torch.autograd.backward(loss * share)

    def hidden_forward(self, tokens: torch.Tensor, position_ids: torch.Tensor | None = None) -> None:
        """Run a forward for its activations only: the output layer sees a single position.

        position_ids: as in `loss`.
        """
        self._forward(tokens.to(self._group.device), position_ids, logits_to_keep=1)

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits of tokens (sequences, length): (sequences, length, vocab_size), on the CPU in float32."""
        return self._forward(tokens.to(self._group.device)).logits.float().cpu()

    def rehearse(self, tokens: torch.Tensor) -> None:
        """Let ZeRO-3 see one micro-batch of training, whose gradients are dropped, before anything else.

        DeepSpeed 0.19 prefetches no weights for the rest of an engine's life when its first forward has no backward,
        which costs an eighth of the speed. tokens: (sequences, length), of as many sequences as a micro-batch.
        """
        if self.is_partitioned:
            self.backward(self.loss(tokens))
            self._wrapped.optimizer.zero_grad()

    def backward(self, loss: torch.Tensor) -> None:
        self._wrapped.backward(loss)

    def step(self, learning_rate: float) -> bool:
        """Finish a micro-batch; on the last of a batch, update the weights.

        Returns:
            False where they were not updated, because a gradient of the batch is infinite or not a number.
        """
        for parameters in self._wrapped.optimizer.param_groups:
            parameters["lr"] = learning_rate
        completes_batch = self._wrapped.is_gradient_accumulation_boundary()
        if completes_batch and isinstance(self._wrapped.optimizer, torch.optim.Optimizer):
            return self._step_of_plain_optimizer()
        self._wrapped.step()
        return not completes_batch or self._wrapped.was_step_applied()

    def _step_of_plain_optimizer(self) -> bool:
        """Step unless a gradient is not finite, and return whether it did.

        For stage 0 in float32, where DeepSpeed itself would step with any gradient.
        """
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        broken = any(not bool(gradient.isfinite().all()) for gradient in gradients)
        # Set as torch's GradScaler does: a fused optimizer then leaves weights, moments and its step count alone.
        self._wrapped.optimizer.found_inf = torch.tensor(float(broken), device=self._group.device)
        self._wrapped.step()
        del self._wrapped.optimizer.found_inf
        return not broken

    def gradient_norm(self) -> float | None:
        """Return the last batch's norm before clipping; None where DeepSpeed keeps none (stage 0 in float32)."""
        norm = self._wrapped.get_global_grad_norm()
        return None if norm is None else float(norm)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.module.named_parameters()

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield name and parameter of those that are not frozen."""
        return trained_parameters(self.module)

    def full_weight(self, parameter: nn.Parameter) -> torch.Tensor:
        """Return a parameter gathered from all ranks: the float32 master where there is one."""
        if self._trains:
            whole = import_deepspeed().utils.safe_get_full_fp32_param(parameter)
            master = unsharded_masters(self._wrapped).get(parameter, whole)
            if master is not None:
                return master.detach()
        if not self.is_partitioned:
            return parameter.detach()
        with import_deepspeed().zero.GatheredParameters([parameter]):
            return parameter.detach().clone()

    def output_weight(self) -> torch.Tensor:
        """Return the output layer's weight, whole on every rank, on the device: (vocab_size, hidden_size)."""
        return self.full_weight(cast(nn.Parameter, self._head.weight)).clone()

    def fragments(self) -> dict[str, Fragment]:
        """Return parameter name -> what this rank holds of its master weight and of Adam's moments."""
        return fragments(self._wrapped)

    @property
    def adam_steps(self) -> int:
        return adam_steps(self._wrapped)

    @adam_steps.setter
    def adam_steps(self, steps: int) -> None:
        set_adam_steps(self._wrapped, steps)

    @torch.no_grad()
    def refresh_weights(self, read: Callable[[str, int], torch.Tensor]) -> None:
        """Copy the masters, after they have changed, into the weights that forwards read.

        read: returns the first elements of a flattened parameter, by its name and their number. It is called where this
        rank computes with more of the parameter than it owns.
        """
        owned = self.fragments()
        for name, parameter in self.trained_parameters():
            if not is_partitioned(parameter):
                parameter.copy_(read(name, parameter.numel()).view_as(parameter))
            elif name in owned:
                weight = owned[name].weight
                cast(Any, parameter).ds_tensor[: weight.numel()].copy_(weight)

    def snapshot(self) -> dict[str, torch.Tensor]:
        """Return this rank's part of the float32 master weights, copied to the CPU."""
        return {name: each.weight.to("cpu", copy=True) for name, each in self.fragments().items()}

    @torch.no_grad()
    def restore(self, snapshot: dict[str, torch.Tensor]) -> None:
        """Put a snapshot back into the master weights, from which weights are saved."""
        for name, fragment in self.fragments().items():
            fragment.weight.copy_(snapshot[name])

    def go_back(self, snapshot: dict[str, torch.Tensor]) -> None:
        """Put a snapshot back to train on from it (collective).

        Adam forgets its mean of gradients, which led away from there, and keeps that of their squares.
        """
        if self.is_partitioned:  # after a forward alone some weights are still whole, and would be read as they are
            self._wrapped.optimizer.empty_partition_cache()
        self.restore(snapshot)
        owned = self.fragments()
        for fragment in owned.values():
            fragment.exp_avg.zero_()

        def whole(name: str, count: int) -> torch.Tensor:
            if self.is_replicated:
                return owned[name].weight
            put_together = torch.zeros(count, device=self._group.device)
            if name in owned:
                put_together[owned[name].start : owned[name].stop] = owned[name].weight
            return self._group.sum(put_together)

        self.refresh_weights(whole)

    def close(self) -> None:
        """Free everything; DeepSpeed's own `destroy` leaves references that keep the model alive."""
        parameter_offload = import_deepspeed().runtime.zero.parameter_offload
        module = self._wrapped.module
        self._wrapped.destroy()
        parameter_offload.FWD_MODULE_STACK[:] = [
            entry for entry in parameter_offload.FWD_MODULE_STACK if entry is not module
        ]
        self._wrapped = None
        del module
        _clear_deepspeed_caches()
        gc.collect()
        _return_memory_to_system()


def _clear_deepspeed_caches() -> None:
    """Clear the `lru_cache`s on methods of the parameter coordinator: they hold its `self`, and so every weight."""
    coordinator = import_deepspeed().runtime.zero.partitioned_param_coordinator.PartitionedParameterCoordinator
    for method in vars(coordinator).values():
        # DeepSpeed's instrumentation holds the method that it wraps in a closure.
        inside = [cell.cell_contents for cell in getattr(method, "__closure__", None) or ()]
        for value in (method, *inside):
            if isinstance(value, functools._lru_cache_wrapper):
                value.cache_clear()


def _return_memory_to_system() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextlib.contextmanager
def open_engine(
    folder: Path,
    config: EngineConfig,
    group: ProcessGroup,
    *,
    training: TrainingSettings | None = None,
    round_weights_to: torch.dtype | None = None,
) -> Iterator[Engine]:
    """Load a model folder into a sharded model, and close it at the end of the block.

    Args:
        training: None for inference.
        round_weights_to: Load the weights as if they had been stored in this dtype.
    """
    engine = _open(folder, config, group, training, round_weights_to)
    # Not in a `finally`: after an error other ranks may be gone, and closing, being collective, would wait for them.
    yield engine
    engine.close()


def _open(
    folder: Path,
    config: EngineConfig,
    group: ProcessGroup,
    training: TrainingSettings | None,
    rounding: torch.dtype | None,
) -> Engine:
    stage = config.zero_stage if training is not None or config.zero_stage == 3 else 0
    settings = deepspeed_settings(config, stage, training)
    adapters = None if training is None else training.adapters
    model = build(folder, config, group, settings if stage == 3 else None, adapters)
    with ModelReader(folder) as stored:
        reader = stored if adapters is None else AdaptedReader(stored, adapters)
        for problem in group.gather(load_weights(model, reader, rounding)):  # all ranks raise: none waits for another
            if problem is not None:
                raise UnusableModel(problem)
        wrapped = wrap(model, config, settings, training)
        if training is not None and config.dtype != "float32":
            load_masters(wrapped, reader)
    return Engine(wrapped, group, stage, trains=training is not None)
