"""Frequencies of layers and heads of their own: the cosines that every forward would compute, computed once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from transact.models.own_frequencies import Table, attach_own_frequencies

LAYERS, GROUPS, PAIRS = 3, 2, 4


@pytest.fixture
def frequencies() -> torch.Tensor:
    """Each head has four of eight pairs."""
    all_pairs = 10000.0 ** (-torch.arange(8, dtype=torch.float64) / 8)
    generator = torch.Generator().manual_seed(0)
    heads = [torch.randperm(8, generator=generator)[:PAIRS].sort().values for _ in range(LAYERS * GROUPS)]
    return all_pairs[torch.stack(heads)].view(LAYERS, GROUPS, PAIRS)


def test_the_table_has_the_bits_of_a_forward_of_its_own(frequencies: torch.Tensor) -> None:
    table = Table(frequencies)
    for length in (7, 300, 1, 300, 4096, 12):
        angles = torch.arange(length, dtype=torch.float64)[:, None, None, None] * frequencies
        for layer in range(LAYERS):
            cosine, sine = table.of(layer, length, torch.device("cpu"))
            assert torch.equal(cosine, angles[:, layer].cos().float())
            assert torch.equal(sine, angles[:, layer].sin().float())


class CountCosines(TorchDispatchMode):
    """Counts the float64 cosines and sines that are computed, by their number of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        of_angles = function in (torch.ops.aten.cos.default, torch.ops.aten.sin.default)
        if of_angles and arguments[0].dtype == torch.float64:
            self.rows.append(len(arguments[0]))
        return function(*arguments, **(keywords or {}))


def test_they_are_computed_once_for_all_layers_and_shorter_texts(frequencies: torch.Tensor) -> None:
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=GROUPS,
        head_dim=2 * PAIRS,
        vocab_size=32,
    )
    model = LlamaForCausalLM(config)
    attach_own_frequencies(model, frequencies)
    with CountCosines() as counted:
        with torch.inference_mode():
            first = model(torch.arange(20)[None]).logits.clone()
        for length in (20, 5, 20, 13):
            loss = model(torch.arange(length)[None]).logits.square().mean()
            loss.backward()  # what an evaluation has computed serves a training step too
        assert counted.rows == [20, 20]
        model(torch.arange(31)[None])
        assert counted.rows == [20, 20, 31, 31]
        assert torch.equal(model(torch.arange(20)[None]).logits, first)
    assert counted.rows == [20, 20, 31, 31]
