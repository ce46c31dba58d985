"""Statistics of a model whose layers or heads rotate by frequencies of their own, against the frequencies it states."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.exported import random_selection, slice_folder
from tests.support.tiny import write_model
from transact.files import read_json
from transact.models.families import OWN_FREQUENCIES
from transact.models.folder import geometry_of
from transact.models.hooks import collect_statistics
from transact.models.stock import load_model
from transact.pruning.pair_gains import PART_COVARIANCE
from transact.pruning.pair_scores import LOGIT_VARIANCE

LENGTH = 24


@pytest.mark.parametrize("scope", ["layer", "head"])
@torch.no_grad()
def test_a_later_round_sees_queries_and_keys_as_attention_does(tmp_path: Path, scope: str) -> None:
    """Rotated beforehand, by hand, they give the same sums under no rotation at all."""
    parent = write_model(tmp_path / "parent")
    selection = random_selection(parent, head_dim=8, intermediate_size=96, pair_scope=scope)
    folder = slice_folder(parent, tmp_path / "sliced", selection)
    model, geometry = load_model(folder, dtype=torch.float32).eval(), geometry_of(folder)
    tokens = torch.randint(0, 500, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    seen: dict[str, torch.Tensor] = {}
    for number, layer in enumerate(model.model.layers):
        for name in ("q_proj", "k_proj"):

            def keep(_module: object, _inputs: object, output: torch.Tensor, key: str = f"{number}.{name}") -> None:
                seen[key] = output

            getattr(layer.self_attn, name).register_forward_hook(keep)
    statistics = (LOGIT_VARIANCE, PART_COVARIANCE)
    with collect_statistics(model, geometry, statistics) as collector:
        model(tokens)
    found = collector.statistics(tokens.numel())
    unrotated = torch.ones(1, LENGTH, 8), torch.zeros(1, LENGTH, 8), torch.arange(LENGTH).view(1, LENGTH, 1)
    for number, stated in enumerate(read_json(folder / "config.json")[OWN_FREQUENCIES]):
        frequencies = torch.tensor(stated).expand(geometry.num_key_value_heads, -1)

        def by_hand(states: torch.Tensor, frequencies: torch.Tensor = frequencies) -> torch.Tensor:
            x, y = states.view(2, LENGTH, -1, 2, 4).unbind(dim=3)
            angles = torch.arange(LENGTH)[:, None, None] * frequencies.repeat_interleave(x.shape[2] // 2, dim=0)
            turned = [x * angles.cos() - y * angles.sin(), y * angles.cos() + x * angles.sin()]
            return torch.stack(turned, dim=3).flatten(2)

        query, key = (by_hand(seen[f"{number}.{name}"]) for name in ("q_proj", "k_proj"))
        for statistic in statistics:
            expected = statistic.of_batch(query, key, *unrotated, geometry)
            torch.testing.assert_close(found[statistic][number], expected, rtol=1e-4, atol=1e-6)
