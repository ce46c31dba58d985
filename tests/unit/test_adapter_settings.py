"""recover.method=lora: what is refused, and what an estimate says that it saves."""

from __future__ import annotations

import pytest

from tests.support.configs import compose_config
from transact.config.pruning import RecoverConfig
from transact.engine.memory import estimate_memory
from transact.engine.trained import Trained
from transact.estimate.storage import training_checkpoint_bytes
from transact.geometry import Geometry

LLAMA_7B = Geometry(
    hidden_size=4096,
    num_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=128,
    intermediate_size=11008,
    vocab_size=32000,
    tied_embeddings=False,
)
IN_ALL = 32 * 32 * (4 * 2 * 4096 + 3 * (4096 + 11008))  # layers, rank, inputs and outputs


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["recover.method=qlora"], "recover.method='qlora' is not allowed: it must be one of full, lora"),
        (["recover.lora=8"], "recover.lora=8 is not allowed: recover.lora is a group of settings"),
        (["recover.lora.rank=0"], "recover.lora.rank=0 is not allowed: it must be from 1 to 65,536"),
        (["recover.lora.alpha=0"], "recover.lora.alpha=0.* is not allowed: it must be above 0"),
        (["recover.lora.targets=[]"], "recover.lora.targets=.* is not allowed: it takes 1 to 7 entries"),
        (["recover.lora.targets=[lm_head]"], "recover.lora.targets=.* is not allowed: it takes 1 to 7 entries, each"),
        (["recover.lora.targets=[q_proj,q_proj]"], "recover.lora.targets=.*: each projection is named once"),
        (
            ["mode=pretrain", "model=demo_random", "recover.objective=cross_entropy"],
            "recover.method='lora' is not allowed: mode=pretrain trains all weights",
        ),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose_config(["name=x", "recover.method=lora", *overrides])


def test_what_is_trained_is_counted() -> None:
    full, lora = (Trained.of(LLAMA_7B, RecoverConfig(method=method)) for method in ("full", "lora"))
    assert (full.parameters, full.beside) == (LLAMA_7B.parameters(), 0)
    assert (lora.parameters, lora.beside) == (IN_ALL, IN_ALL)
    assert lora.of_layer == IN_ALL // 32
    assert training_checkpoint_bytes(LLAMA_7B, RecoverConfig(method="lora")) == 16 * IN_ALL
    assert training_checkpoint_bytes(LLAMA_7B, RecoverConfig()) == 16 * LLAMA_7B.parameters()


@pytest.mark.parametrize("stage", range(4))
def test_frozen_weights_have_neither_optimizer_nor_gradients(stage: int) -> None:
    """On one GPU of 24 GB 7B fits, recomputed, where all weights need five times as much."""
    common = ["name=x", "engine=gpu", "engine.micro_batch_sequences=1", "engine.activation_checkpointing=true"]
    common += ["data.sequence_length=1024", "recover.objective=cross_entropy", f"engine.zero_stage={stage}"]
    common += ["engine.reduce_bucket_elements=50000000"]
    full, lora = (
        estimate_memory(LLAMA_7B, compose_config([*common, f"recover.method={method}"]), 1, "recover")
        for method in ("full", "lora")
    )
    assert lora.optimizer == 12 * IN_ALL
    assert lora.weights == 2 * (LLAMA_7B.parameters() + IN_ALL)
    assert lora.gradients <= 4 * IN_ALL * (1 + 1 / 32)
    assert lora.total() < 20e9 < 24e9 < 100e9 < full.total()
