"""Devices are known under the names that drivers give them, and MFU is a share."""

from __future__ import annotations

import pytest

from transact.config.accelerators import ACCELERATORS, BY_NAME, model_flops_utilisation, reported_as


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100_pcie"),
        ("NVIDIA H100 NVL", "h100_nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", "h200_nvl"),
        ("NVIDIA A100-SXM4-80GB", "a100_80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100_40gb"),
        ("NVIDIA A100 80GB PCIe", "a100_80gb"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L40", "l40"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA A40", "a40"),
        ("NVIDIA GeForce RTX 4090", "rtx_4090"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_names_of_drivers(device: str, name: str) -> None:
    found = reported_as(device)
    assert found is not None and found.name == name


@pytest.mark.parametrize("device", ["cpu", "Tesla V100-SXM2-16GB", "NVIDIA A10G", "NVIDIA RTX A4000", "NVIDIA GB200"])
def test_devices_that_are_not_known_have_no_peak(device: str) -> None:
    assert reported_as(device) is None


def test_names_are_distinct() -> None:
    assert len(BY_NAME) == len(ACCELERATORS)


def test_utilisation_by_hand() -> None:
    assert model_flops_utilisation(40e9, 10_000, 1000e12) == pytest.approx(0.4)
