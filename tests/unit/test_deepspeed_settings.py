"""What is given to DeepSpeed: the program's own settings cannot be overridden, all others can."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.configs import compose_config
from transact.config.machines import DEEPSPEED_OWN, EngineConfig
from transact.engine.deepspeed_setup import TrainingSettings, deepspeed_settings

TRAINING = TrainingSettings(
    gradient_accumulation_steps=4, learning_rate=1e-3, weight_decay=0.1, betas=(0.9, 0.95), gradient_clipping=1.0
)


def names(settings: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in settings.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from names(value, f"{prefix}{name}.")


def own_names() -> set[str]:
    """Everything that the program sets in some engine, sections included."""
    found = set()
    for stage, dtype, offload in itertools.product(range(4), ("float32", "bfloat16"), (None, "cpu")):
        if stage == 0 and offload:
            continue
        config = EngineConfig(zero_stage=stage, dtype=dtype, offload_optimizer=offload)
        for training in (None, TRAINING):
            found |= set(names(deepspeed_settings(config, stage, training)))
    return found


@pytest.mark.parametrize("name", sorted(own_names() | DEEPSPEED_OWN.keys()))
def test_what_the_program_sets_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^engine\.deepspeed\.{name}=1 is not allowed: [^\n]+$"):
        EngineConfig(deepspeed={name: 1})


def test_the_message_names_the_setting_to_use() -> None:
    with pytest.raises(ValueError, match=r"not allowed: use engine\.micro_batch_sequences$"):
        compose_config(["name=x", "+engine.deepspeed={train_micro_batch_size_per_gpu: 4}"])


def test_everything_else_comes_last() -> None:
    own = "{zero_optimization.overlap_comm: false, comms_logger.enabled: true, gradient_predivide_factor: 2.0}"
    config = compose_config(["name=x", f"+engine.deepspeed={own}"]).engine
    plain = EngineConfig()
    for training in (None, TRAINING):
        found = deepspeed_settings(config, 3, training)
        assert found.pop("comms_logger") == {"enabled": True}
        assert found.pop("gradient_predivide_factor") == 2.0
        assert found["zero_optimization"].pop("overlap_comm") is False
        assert found == deepspeed_settings(plain, 3, training)


@pytest.mark.parametrize("wrong", ["{zero_optimization: {stage: 1}}", "{Zero.x: 1}", "{a..b: 1}"])
def test_other_shapes_are_refused(wrong: str) -> None:
    with pytest.raises(
        ValueError, match=r"^engine\.deepspeed[^\n]+: it takes (a single value|0 to 100 entries, named by settings)"
    ):
        compose_config(["name=x", f"+engine.deepspeed={wrong}"])


def test_an_optimizer_that_is_not_split_stays_on_the_device() -> None:
    with pytest.raises(ValueError, match=r"engine\.offload_optimizer='cpu' is not allowed: with engine\.zero_stage=0"):
        EngineConfig(zero_stage=0, offload_optimizer="cpu")
