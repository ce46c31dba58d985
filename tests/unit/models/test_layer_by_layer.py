"""Micro-batches that go through a decoder together, layer by layer, are computed as if each went alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_families import FAMILIES, write_family_model
from transact.models.layer_by_layer import layer_by_layer

MICRO_BATCH, MICRO_BATCHES = 2, 3


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_micro_batch_has_the_bits_that_it_has_alone(tmp_path: Path, family: str, attention: str) -> None:
    """A forward that something else gave a module, as fused kernels do, is used, and is there again afterwards."""
    from transformers import AutoModelForCausalLM

    folder = write_family_model(tmp_path, family)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention).eval().model
    plain, calls = model.norm.forward, []

    def fused(hidden: torch.Tensor) -> torch.Tensor:
        calls.append(len(hidden))
        return 2 * plain(hidden)

    model.norm.forward = fused
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.config.vocab_size, (MICRO_BATCH * MICRO_BATCHES, 24), generator=generator)
    alone = [model(part, use_cache=False).last_hidden_state for part in tokens.split(MICRO_BATCH)]
    turns: list[int] = []

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

    with layer_by_layer(Whole(), MICRO_BATCH, lambda: turns.append(1)):
        together = model(tokens, use_cache=False).last_hidden_state
    assert torch.equal(together, torch.cat(alone))
    assert len(turns) == MICRO_BATCHES * (len(model.layers) + 1)
    assert calls == [MICRO_BATCH] * 2 * MICRO_BATCHES
    assert model.norm.forward is fused and "forward" not in vars(model.layers[0])
