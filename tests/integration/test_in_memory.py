"""prune_model: stock transformers loads what it saves, the given model stays, wrong requests are refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.tiny import write_model
from transact import prune_model
from transact.config import MethodConfig
from transact.configuring import compose_config, conf_folder, method_preset

PRESETS = tuple(sorted(path.stem for path in (conf_folder() / "prune/method").glob("*.yaml")))


def tokens(sequences: int = 8, length: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 512, (sequences, length), generator=torch.Generator().manual_seed(seed))


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("method", PRESETS)
def test_what_it_saves_is_loaded_by_stock_transformers(method: str, tiny: Path, tmp_path: Path) -> None:
    model = load(tiny)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cut = prune_model(model, [tokens()], method=method, remove_fraction=0.4, target="transformers")
    cut.save_pretrained(tmp_path / "cut")
    assert 0.55 < cut.num_parameters() / model.num_parameters() < 0.62
    assert torch.equal(load(tmp_path / "cut")(tokens()).logits, cut(tokens()).logits)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_given_model_is_as_it_was(tiny: Path) -> None:
    model = load(tiny).train()
    model.model.norm.weight.requires_grad_(False)
    settings = model.config.to_dict()
    cut = prune_model(model, iter([{"input_ids": tokens()}]), method="taylor", head_dim=8, target="transformers")
    assert model.training and cut.training and model.config.to_dict() == settings
    assert [name for name, each in model.named_parameters() if not each.requires_grad] == ["model.norm.weight"]
    assert all(each.grad is None and not each._backward_hooks for each in model.parameters())
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())
    assert {each.data_ptr() for each in model.parameters()}.isdisjoint(each.data_ptr() for each in cut.parameters())


def test_a_model_in_bfloat16_stays_so(tiny: Path) -> None:
    cut = prune_model(load(tiny).to(torch.bfloat16), [tokens()], intermediate_size=96, target="transformers")
    assert {each.dtype for each in cut.parameters()} == {torch.bfloat16} and cut.config.intermediate_size == 96


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_read_as_hydra_composes_them(name: str) -> None:
    assert method_preset(name) == compose_config(["name=any", f"prune/method={name}"]).prune.method


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "auto": ({"split": "auto"}, "split='auto' is not allowed"),
    "scope": ({"method": MethodConfig(pair_scope="layer")}, "prune.method.pair_scope='layer' is not allowed"),
    "preset": ({"method": "best"}, "method='best' is not allowed: it must be one of default"),
    "fraction": ({"remove_fraction": 1.5}, "prune.remove_fraction=1.5 is not allowed"),
    "odd": ({"head_dim": 7, "target": "transformers"}, "head_dim"),
    "target": ({"target": "ollama"}, "prune.target='ollama' is not allowed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_requests_are_refused_in_one_line(case: str, tiny: Path) -> None:
    given, reason = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(reason)) as refused:
        prune_model(load(tiny), **({"calibration": [tokens()]} | given))
    assert "\n" not in str(refused.value)
