"""What GPUs alone compute is refused with what is missing, in one line; comparisons do without it."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from tests.support.configs import compose_config
from transact.config.machines import FLASH_ATTENTION, EngineConfig
from transact.engine.requirements import check_requirements

GPU = torch.device("cuda", 0)
ABSENT = [name for name in ("flash_attn", "kernels", "liger_kernel") if importlib.util.find_spec(name) is None]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    found: dict[str, Any] = {"capability": (9, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found["capability"])
    return found


def engine(**settings: Any) -> EngineConfig:
    return EngineConfig(**({"dtype": "bfloat16"} | settings))


@pytest.mark.parametrize("attention", FLASH_ATTENTION)
def test_flash_attention_needs_a_gpu_a_dtype_and_a_package(gpu: dict[str, Any], attention: str) -> None:
    asked = engine(attention=attention)
    with pytest.raises(ValueError, match=f"^engine.attention='{attention}' is not allowed: torch sees no GPU here$"):
        check_requirements(asked, torch.device("cpu"))
    for settings, words in (({"dtype": "float32"}, "engine.dtype=bfloat16"), ({"device": "cpu"}, "it needs a GPU")):
        with pytest.raises(ValueError, match=words):
            engine(attention=attention, **settings)
    if {"flash_attn", "kernels"} <= set(ABSENT):
        with pytest.raises(ValueError, match=r"kernels is(| not) installed \(pip install 'transact\[gpu\]'\)"):
            check_requirements(asked, GPU)
    gpu["capability"] = (7, 5)
    with pytest.raises(ValueError, match=r"compute capability 8\.0 or more, and this one has 7\.5"):
        check_requirements(asked, GPU)


def test_fused_kernels_need_a_gpu_and_liger() -> None:
    asked = engine(kernels="liger")
    with pytest.raises(ValueError, match=r"^engine\.kernels='liger' is not allowed: torch sees no GPU here$"):
        check_requirements(asked, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"engine\.kernels='liger' is not allowed: they need a GPU"):
        engine(kernels="liger", device="cpu")
    if "liger_kernel" in ABSENT:
        with pytest.raises(ValueError, match=r"liger-kernel is not installed \(pip install 'transact\[gpu\]'\)"):
            check_requirements(asked, GPU)


def test_what_needs_nothing_is_taken_anywhere() -> None:
    for attention in ("sdpa", "eager"):
        check_requirements(engine(attention=attention), torch.device("cpu"))


@pytest.mark.parametrize("attention", FLASH_ATTENTION)
def test_comparisons_are_made_with_plain_operations(attention: str) -> None:
    """Of the export with stock transformers, in float32, which flash attention does not take."""
    settings = ["name=gpu", "engine=gpu", f"engine.attention={attention}", "engine.kernels=liger"]
    plain = compose_config(settings).engine.plain()
    assert (plain.dtype, plain.attention, plain.kernels) == ("float32", "sdpa", None)
    assert EngineConfig(attention="eager").plain().attention == "eager"
