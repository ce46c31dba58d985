"""The only import of DeepSpeed, and the settings that a run gives it."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import warnings
from dataclasses import dataclass
from typing import Any

from transact.config.machines import EngineConfig
from transact.config.setting import shown
from transact.models.adapters import Adapters


@functools.cache
def import_deepspeed() -> Any:
    """Import DeepSpeed without its output, and without the extension that it would compile for 26 seconds."""
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    with contextlib.redirect_stdout(io.StringIO()):
        import deepspeed
        import deepspeed.ops
        import deepspeed.runtime.zero.parameter_offload
        import deepspeed.utils

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.utils.nvtx.enable_nvtx = False  # 4,000 ranges a micro-batch of 32 layers, which only Nsight shows
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSettings:
    """What turns an engine for inference into one that trains."""

    gradient_accumulation_steps: int
    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    gradient_clipping: float  # norm; 0 is off
    adapters: Adapters | None = None  # trained in place of the weights


def check_deepspeed_settings(config: EngineConfig) -> None:
    """Raise ValueError where DeepSpeed does not take `engine.deepspeed`.

    It is imported if there is anything in it, so the device must be chosen before.
    """
    if not config.deepspeed:
        return
    import_deepspeed()
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        DeepSpeedZeroConfig(**_with_own(config, {}).get("zero_optimization", {}))
    except ValueError as error:
        refused: Any = error  # pydantic's, which says what is wrong where
        found = refused.errors()[0]
        name = ".".join(map(str, ("zero_optimization", *found["loc"])))
        value = shown(config.deepspeed.get(name))
        raise ValueError(f"engine.deepspeed.{name}={value} is not allowed: DeepSpeed says: {found['msg']}") from None


def _with_own(config: EngineConfig, settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings with those of `engine.deepspeed`, whose names have dots, put in."""
    for name, value in config.deepspeed.items():
        *levels, last = name.split(".")
        section = settings
        for level in levels:
            section = section.setdefault(level, {})
        section[last] = value
    return settings


def deepspeed_settings(config: EngineConfig, stage: int, training: TrainingSettings | None) -> dict[str, Any]:
    """Return the settings of an engine; without `training` it has no optimizer."""
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "bf16": {"enabled": config.dtype == "bfloat16"},
        "timers": {"throughput": {"enabled": False}},  # it would wait for the device twice in every micro-batch
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": config.reduce_bucket_elements,
            "allgather_bucket_size": config.reduce_bucket_elements,
            "stage3_prefetch_bucket_size": config.prefetch_elements,
            "stage3_max_reuse_distance": config.live_elements,
            # With all that may stay whole DeepSpeed would fetch nothing ahead unless there is room for that as well.
            "stage3_max_live_parameters": config.live_elements + config.prefetch_elements,
            "stage3_param_persistence_threshold": 0,  # no parameter stays whole on a rank, not even a norm
            "memory_efficient_linear": False,  # it would patch torch.nn.functional.linear for the whole process
        },
    }
    if training is None:
        return _with_own(config, settings)
    if config.offload_optimizer is not None:
        settings["zero_optimization"]["offload_optimizer"] = {"device": config.offload_optimizer, "pin_memory": True}
        settings["zero_force_ds_cpu_optimizer"] = False  # DeepSpeed's own Adam for CPUs compiles for minutes
    if (config.dtype, stage) != ("bfloat16", 0):  # DeepSpeed refuses it there
        # In bfloat16 the sum of 16 micro-batches' gradients would be off by 4e-3 of itself.
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    if (config.dtype, stage, config.offload_optimizer) == ("bfloat16", 1, None):
        settings["communication_data_type"] = "fp32"  # the sums are exchanged once in a step, and would be rounded
    return _with_own(config, settings | _training(training))


def _training(training: TrainingSettings) -> dict[str, Any]:
    return {
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "gradient_clipping": training.gradient_clipping,  # always given: the default is not "off"
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": training.learning_rate,
                "betas": list(training.betas),
                "weight_decay": training.weight_decay,
                "torch_adam": True,  # DeepSpeed's own compiles for minutes, and hangs every later run if that is killed
                "fused": True,
            },
        },
    }
