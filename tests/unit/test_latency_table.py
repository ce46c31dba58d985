"""The table of latencies: measured on models of a few layers, of every family as transformers saves it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.tiny_families import FAMILIES, write_family_model
from transact.config.outputs import EfficiencyConfig
from transact.config.pruning import LATENCY_PHASES
from transact.evaluation.efficiency.latency_table import LAYERS, measure_latencies, models_to_measure, phase_curves
from transact.files import read_json
from transact.models.folder import geometry_of
from transact.pruning.latency import LatencyTable


@pytest.mark.parametrize("family", FAMILIES)
def test_a_table_of_every_family_is_read_again(tmp_path: Path, family: str) -> None:
    folder = write_family_model(tmp_path / family, family)
    geometry, calls = geometry_of(folder), []
    asked = EfficiencyConfig(turns=1, prompt_tokens=[8], new_tokens=[2])
    table = measure_latencies(
        read_json(folder / "config.json"), asked, dtype="float32", device=torch.device("cpu"), advance=calls.append
    )
    assert len(calls) == models_to_measure(geometry)
    for phase in LATENCY_PHASES:
        curves = table["phases"][phase]
        assert curves["mlp"][-1][0] == geometry.intermediate_size
        assert curves["attention"][-1][0] == geometry.num_key_value_heads * geometry.head_dim
        read = LatencyTable.from_json(table, phase, geometry)
        assert read.milliseconds(geometry) > 0


def test_noise_makes_no_time_below_zero(tmp_path: Path) -> None:
    """Of a machine that was busy with something else: half the heads seem to take a third of the time."""
    geometry = geometry_of(write_family_model(tmp_path / "model", "llama"))
    phase = phase_curves(geometry, 9.0, 0.9, {16: 0.7}, {8: 0.3})
    assert min(ms for name in ("attention", "mlp") for _, ms in phase[name]) >= 0
    assert phase["rest"] + LAYERS * (phase["attention"][-1][1] + phase["mlp"][-1][1]) == pytest.approx(9.0)
