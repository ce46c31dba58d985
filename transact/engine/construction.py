"""From a model folder's config.json to a model, and to DeepSpeed's engine around it."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transact.config.machines import EngineConfig
from transact.distributed.process import ProcessGroup
from transact.engine.deepspeed_setup import TrainingSettings, import_deepspeed
from transact.engine.sharded_state import (
    is_partitioned,
    optimizer_groups,
    own_part,
    trained_parameters,
    unsharded_masters,
)
from transact.files import read_json
from transact.models.adapters import AdaptedReader, Adapters, inject, train_adapters_alone
from transact.models.fused_kernels import fuse
from transact.models.hooks import decoder_layers
from transact.models.loss_head import LossHead
from transact.models.model_files import GENERATION_CONFIG, own_file
from transact.models.stock import stock_class
from transact.models.tensor_files import ModelReader


def build(
    folder: Path,
    config: EngineConfig,
    group: ProcessGroup,
    partitioning: dict[str, Any] | None,
    adapters: Adapters | None = None,
) -> Any:
    """Return the model without its weights: parameters, or this rank's part of each, are allocated, not initialised."""
    from transformers import GenerationConfig
    from transformers.initialization import no_init_weights
    from transformers.integrations.deepspeed import prevent_arange_dtype_change

    described = read_json(folder / "config.json")
    model_class, model_config = stock_class(described, config.attention)
    with contextlib.ExitStack() as contexts:
        contexts.enter_context(no_init_weights())
        if partitioning is not None:
            # The rotary frequencies are made with arange, whose dtype zero.Init would change to bfloat16.
            contexts.enter_context(prevent_arange_dtype_change())
            contexts.enter_context(_partitioned_construction(partitioning))
        model = model_class(model_config)
        if own_file(folder, GENERATION_CONFIG):  # as `from_pretrained`: what a task lets it write depends on it
            model.generation_config = GenerationConfig.from_pretrained(folder)
        model.lm_head = LossHead(model_config.hidden_size, model_config.vocab_size)
        if adapters is not None:
            inject(model, adapters)
    if partitioning is None:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(group.device, getattr(torch, config.dtype))
    model.to(group.device)
    model.tie_weights()  # nothing above ties the output layer to the embedding
    if config.kernels == "liger":
        fuse(model)
    return model


def _partitioned_construction(settings: dict[str, Any]) -> Any:
    """Return a zero.Init that partitions each parameter as it is made, without broadcasting values nobody needs."""
    context = import_deepspeed().zero.Init(config_dict_or_path=settings)

    def partition_at_once(parameter: Any) -> None:
        context._convert_to_deepspeed_param(parameter)
        parameter.partition()

    context._zero_init_param = partition_at_once
    return context


def load_masters(wrapped: Any, reader: ModelReader | AdaptedReader) -> None:
    """Set the float32 masters, which were made from bfloat16 weights, to the exact values that the folder holds."""
    utils, unsharded = import_deepspeed().utils, unsharded_masters(wrapped)
    for name, parameter in trained_parameters(wrapped.module):
        if is_partitioned(parameter):
            utils.safe_set_local_fp32_param(parameter, own_part(parameter, reader, name).float())
        elif parameter in unsharded:
            unsharded[parameter].data.copy_(reader.tensor(name))
        else:
            utils.safe_set_full_fp32_param(parameter, reader.tensor(name).float())


def _restore_buffers(model: nn.Module, buffers: dict[str, torch.Tensor]) -> None:
    """Give buffers their dtype back.

    DeepSpeed casts the whole module in bfloat16 mode, and rotary frequencies must stay float32.
    """
    for name, buffer in model.named_buffers():
        if buffer.dtype != buffers[name].dtype:
            owner_name, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner_name), attribute, buffers[name].to(buffer.device))


def _gather_by_layers(model: nn.Module) -> None:
    """Have ZeRO-3 gather and release a decoder layer as a whole: a tenth of the calls, and of the work of the host.

    Hooks inside a layer go on to see activations; only DeepSpeed's own stand around layers alone.
    """
    for layer in decoder_layers(model):
        import_deepspeed().utils.set_z3_leaf_module(layer, True)


def wrap(model: Any, config: EngineConfig, settings: dict[str, Any], training: TrainingSettings | None) -> Any:
    """Return DeepSpeed's engine around a loaded model."""
    model.train(training is not None)
    model.requires_grad_(training is not None)
    if training is not None and training.adapters is not None:
        train_adapters_alone(model)
    if training is not None and config.recomputes:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if settings["zero_optimization"]["stage"] == 3:
        _gather_by_layers(model)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with contextlib.redirect_stdout(io.StringIO()):
        wrapped = import_deepspeed().initialize(
            model=model,
            model_parameters=None if training is None else optimizer_groups(model, training.weight_decay),
            config=settings,
        )[0]
    _restore_buffers(model, buffers)
    return wrapped
