"""activation_maps.safetensors of a round: what calibration saw, and what the plan keeps of it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from transact.files import publish, temporary_name
from transact.prune.activation_maps import ActivationMap

FILE_NAME = "activation_maps.safetensors"


def write_maps(maps: dict[str, ActivationMap], path: Path) -> None:
    """`<kind>.norms` (layers, channels) float32, `<kind>.kept` (layers, channels) uint8 where it is known."""
    tensors = {f"{kind}.norms": each.norms.float() for kind, each in maps.items()}
    tensors |= {f"{kind}.kept": each.kept.to(torch.uint8) for kind, each in maps.items() if each.kept is not None}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary_name(path))
    publish(temporary_name(path), path)


def map_figures(maps: dict[str, ActivationMap]) -> dict[str, float]:
    """`calibrate/...`: norms over all channels of all layers, and the mean share of a layer's squares that is kept.

    Kinds differ in scale, so each has its own; without a kind's name stands the MLP's, where most channels are.
    """
    figures: dict[str, float] = {}
    for kind, each in maps.items():
        ending = "" if kind == "intermediate" else f"_{kind}"
        figures[f"calibrate/norm_mean{ending}"] = float(each.norms.mean())
        figures[f"calibrate/norm_max{ending}"] = float(each.norms.max())
        kept = each.kept_energy()
        if kept is not None:
            figures[f"calibrate/kept_energy{ending}"] = float(kept.mean())
    return figures
