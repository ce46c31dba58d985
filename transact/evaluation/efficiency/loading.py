"""Models as their users load them, from stock transformers."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from transact.files import read_json
from transact.geometry import Geometry
from transact.models.folder import check_files
from transact.models.llama import check_supported, is_stock, read_geometry

# Less is not possible inside a module.
FLOOR_HEAD_DIM, FLOOR_INTERMEDIATE_SIZE = 2, 1


def check_folder(folder: Path) -> Geometry:
    """The dimensions of a complete folder that stock transformers loads.

    Raises:
        ValueError: one line with the folder and what is wrong.
    """
    try:
        config = read_json(folder / "config.json")
        if not is_stock(config):
            raise ValueError("stock transformers cannot load it, and what does has no KV cache")
        check_supported(config)
        check_files(folder)
        return read_geometry(config)
    except FileNotFoundError:
        raise ValueError(f"{str(folder)!r} is no model folder: it holds no config.json") from None
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise ValueError(f"{str(folder)!r}: {str(error).splitlines()[0]}") from None


def load(folder: Path, dtype: str, device: torch.device) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    return model.to(device).eval()


def floor_model(model: Any) -> Any:
    """What no cut removes: the same model with next to nothing inside attention and MLP, and random weights."""
    config = copy.deepcopy(model.config)
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    config.update({"head_dim": FLOOR_HEAD_DIM, "intermediate_size": FLOOR_INTERMEDIATE_SIZE, "rope_parameters": rope})
    return type(model)(config).to(device=model.device, dtype=model.dtype).eval()


def floor_geometry(geometry: Geometry) -> Geometry:
    return replace(geometry, head_dim=FLOOR_HEAD_DIM, intermediate_size=FLOOR_INTERMEDIATE_SIZE)


def choose_device(name: str) -> torch.device:
    """auto: a GPU if there is one.

    Raises:
        ValueError: there is none, but it was asked for.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device='cuda' is not allowed: torch sees no GPU")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def available_bytes(device: torch.device) -> int:
    """Memory of the device that is free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    (available,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return 1024 * int(available)
