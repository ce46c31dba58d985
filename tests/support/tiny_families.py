"""Random models of every family, small, with biases and norms that do something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.support.tiny import TINY

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
STOCK_CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}


@torch.no_grad()
def write_family_model(folder: Path, family: str, **changes: Any) -> Path:
    """Save a random model through its stock class."""
    import transformers

    torch.manual_seed(0)
    name = STOCK_CLASSES[family]
    settings = TINY | {"initializer_range": 0.1} | ({"sliding_window": None} if family == "mistral" else {}) | changes
    if family == "qwen2":
        del settings["head_dim"]  # it follows from hidden_size
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**settings))
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):
            parameter.normal_(std=0.5)
        elif parameter_name.endswith("norm.weight"):
            parameter.uniform_(0.5, 2.0)
    model.save_pretrained(folder)
    return folder
