"""What the engine's settings need of this machine besides the device: packages, and a GPU that they know."""

from __future__ import annotations

import importlib.util

import torch

from transact.config.machines import FLASH_ATTENTION, EngineConfig
from transact.config.setting import require
from transact.errors import LONGEST_REASON, one_line

EXTRA = "pip install 'transact[gpu]'"
OLDEST_CAPABILITY = 8, 0  # of Ampere
# Packages of their own, beside `kernels`, which fetches a build from the hub in their place.
FLASH_MODULES = {
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
}


def check_requirements(config: EngineConfig, device: torch.device) -> None:
    """Check that this rank can compute with `engine.attention` and `engine.kernels`.

    Raises:
        ValueError: one line with the setting, and what is missing.
    """
    if config.kernels is not None:
        _require_gpu("engine.kernels", config.kernels, device)
        installed = _is_installed("liger_kernel") and _is_installed("triton")
        require("engine.kernels", config.kernels, installed, f"liger-kernel is not installed ({EXTRA})")
    if config.attention in FLASH_ATTENTION:
        _require_gpu("engine.attention", config.attention, device)
        _check_capability(config.attention, device)
        _check_flash(config.attention)


def _require_gpu(setting: str, value: str, device: torch.device) -> None:
    require(setting, value, device.type == "cuda", "torch sees no GPU here")


def _check_capability(attention: str, device: torch.device) -> None:
    found = torch.cuda.get_device_capability(device)
    oldest, own = (".".join(map(str, each)) for each in (OLDEST_CAPABILITY, found))
    words = f"it needs a GPU of compute capability {oldest} or more, and this one has {own}"
    require("engine.attention", attention, found >= OLDEST_CAPABILITY, words)


def _check_flash(attention: str) -> None:
    """Raise ValueError unless transformers gets at the implementation: from its package, or from the hub."""
    module, package = FLASH_MODULES.get(attention, (None, None))
    if module is not None and _is_installed(module):
        return
    from transformers.utils import is_kernels_available

    either = f"neither {package} nor kernels is installed" if package else "kernels is not installed"
    require("engine.attention", attention, is_kernels_available(), f"{either} ({EXTRA})")
    from transformers.modeling_flash_attention_utils import lazy_import_flash_attention

    try:
        lazy_import_flash_attention(attention)
    except Exception as error:  # noqa: BLE001 - of the hub, of a build that does not fit this torch
        reason = one_line(error, LONGEST_REASON)
        raise ValueError(
            f"engine.attention={attention!r} is not allowed here: it cannot be loaded ({reason})"
        ) from None


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
