"""Maps of activations as the report reads them; the torch code that makes them is the oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from tests.support.report_folders import LLAMA_7B, SMALL, activation_maps
from transact.pruning.activation_maps import ActivationMap as TorchMap
from transact.tracking.report.channels import columns_of, heat_map
from transact.tracking.report.run_files import KINDS, RoundFiles, read_activation_maps


def test_kept_energy_and_redundancy_are_those_of_the_maps(tmp_path: Path) -> None:
    tensors = activation_maps(SMALL, seed=1)
    tensors["query.norms"][0] = 0  # a layer without any energy
    save_file(tensors, tmp_path / "maps.safetensors")
    maps = read_activation_maps(tmp_path / "maps.safetensors")
    assert set(maps) == set(KINDS)
    for kind, found in maps.items():
        kept = tensors.get(f"{kind}.kept")
        oracle = TorchMap(
            norms=torch.from_numpy(tensors[f"{kind}.norms"]).double(),
            kept=None if kept is None else torch.from_numpy(kept),
            sizes=torch.full(tensors[f"{kind}.norms"].shape[:1], tensors[f"{kind}.norms"].shape[1]),
        )
        np.testing.assert_allclose(found.redundancy(), oracle.redundancy().numpy())
        energy, expected = found.kept_energy(), oracle.kept_energy()
        assert (energy is None) == (expected is None) == (kept is None)
        if energy is not None and expected is not None:
            np.testing.assert_allclose(energy, expected.numpy())


def test_binning_keeps_the_energy_and_the_number_of_kept_channels(tmp_path: Path) -> None:
    save_file(activation_maps(LLAMA_7B, seed=2), tmp_path / "maps.safetensors")
    one = read_activation_maps(tmp_path / "maps.safetensors")["intermediate"]
    norms, kept = one.binned(100)
    assert one.kept is not None and kept is not None
    assert norms.shape[0] == 32 and norms.shape[1] <= 100
    size = -(-11008 // norms.shape[1])
    sizes = np.array([size] * (norms.shape[1] - 1) + [11008 - size * (norms.shape[1] - 1)])
    np.testing.assert_allclose((norms**2 * sizes).sum(axis=1), (one.norms**2).sum(axis=1))
    np.testing.assert_allclose((kept * sizes).sum(axis=1), one.kept.sum(axis=1))


def test_a_file_that_is_not_finished_has_no_maps(tmp_path: Path) -> None:
    path = tmp_path / "maps.safetensors"
    save_file(activation_maps(SMALL, seed=3), path)
    content = path.read_bytes()
    for length in (0, 5, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert read_activation_maps(path) == {}
    assert read_activation_maps(tmp_path / "missing") == {}


def test_maps_of_zeros_and_of_one_value_can_be_drawn(tmp_path: Path) -> None:
    tensors = {"key.norms": np.zeros((2, 3), np.float32), "query.norms": np.full((2, 1), 5, np.float32)}
    tensors["intermediate.norms"] = np.array([[np.nan, np.inf, 1.0]], np.float32)
    save_file(tensors, tmp_path / "maps.safetensors")
    maps = read_activation_maps(tmp_path / "maps.safetensors")
    for each in maps.values():
        (trace,) = heat_map(each, 256)["data"]
        assert trace["levels"]["low"] < trace["levels"]["high"]
    assert columns_of([RoundFiles(number=1, maps=maps)]) == 256
