"""Low-rank adapters: what they begin with, where they stand, and what merging makes of them, against peft's own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny import write_model
from transact.config.pruning import PROJECTIONS, RecoverConfig
from transact.engine.trained import check_adapters
from transact.models.adapters import (
    AdaptedReader,
    Adapters,
    adapter_names,
    first_a,
    inject,
    merged,
    merged_tensors,
    train_adapters_alone,
)
from transact.models.tensor_files import ModelReader

ADAPTERS = Adapters(rank=4, alpha=6.0, targets=PROJECTIONS, seed=3)


def stock_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def filled(model: Any, reader: AdaptedReader, *, b_is_zero: bool) -> dict[str, torch.Tensor]:
    """Put the reader's tensors into a model with adapters, B as training may leave it. Returns A and B by name."""
    parts = {}
    for name, parameter in model.named_parameters():
        parameter.data.copy_(reader.tensor(name))
        if ".lora_" in name:
            if ".lora_B." in name and not b_is_zero:
                parameter.data.normal_(std=0.1)
            parts[name] = parameter.detach()
    return parts


def test_merging_is_what_one_computes_by_hand() -> None:
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    a, b = torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0], [0.5]])
    assert merged(weight, a, b, 0.5).tolist() == [[2.0, 1.0], [3.25, 3.75]]
    # Weights that are stored in bfloat16 are not rounded anew before they are stored.
    assert merged(torch.ones(1, 1, dtype=torch.bfloat16), torch.ones(1, 1), torch.ones(1, 1), 1e-3).item() > 1


def test_what_adapters_begin_with_depends_on_seed_and_name_alone() -> None:
    a, again = (first_a(ADAPTERS, "layer.q_proj", 64) for _ in range(2))
    assert a.shape == (4, 64)
    assert torch.equal(a, again)
    assert not torch.equal(a, first_a(ADAPTERS, "layer.k_proj", 64))
    other = Adapters(rank=4, alpha=6.0, targets=PROJECTIONS, seed=4)
    assert not torch.equal(a, first_a(other, "layer.q_proj", 64))
    # The same distribution as peft's: its layers are nn.Linear ones.
    many = first_a(ADAPTERS, "layer.q_proj", 4096)
    of_torch = torch.nn.Linear(4096, 4, bias=False).weight.detach()
    assert many.abs().max().item() <= 1 / math.sqrt(4096)
    assert many.std().item() == pytest.approx(of_torch.std().item(), rel=0.05)
    assert abs(many.mean().item()) < 1e-3


@pytest.mark.parametrize("targets", [PROJECTIONS, ("v_proj",)], ids=["all", "v_proj"])
def test_the_reader_has_the_tensors_of_a_model_with_adapters(tmp_path: Path, targets: tuple[str, ...]) -> None:
    """Names and shapes are those of the model that peft makes, and it computes what it did without adapters."""
    folder = write_model(tmp_path / "model", attention_bias=True)
    tokens = torch.arange(16).view(1, 16)
    model = stock_model(folder)
    expected = model(tokens).logits
    adapters = Adapters(rank=4, alpha=6.0, targets=targets)
    inject(model, adapters)
    train_adapters_alone(model)
    parameters = dict(model.named_parameters())
    trained = {name for name, each in parameters.items() if each.requires_grad}
    with ModelReader(folder) as stored:
        reader = AdaptedReader(stored, adapters)
        assert {name: reader.shape(name) for name in reader.files} == {n: tuple(p.shape) for n, p in parameters.items()}
        assert {part for name in stored.files if adapters.adapts(name) for part in adapter_names(name)} == trained
        assert len(trained) == 2 * 2 * len(targets)
        for name in trained:
            flat = reader.tensor(name).flatten()
            assert torch.equal(reader.flat_range(name, 5, 21), flat[5:21])
        filled(model, reader, b_is_zero=True)
    assert torch.equal(model(tokens).logits, expected)


def test_merged_weights_are_those_of_peft(tmp_path: Path) -> None:
    """peft merges the same adapters into a stock model. What has none stays bit for bit."""
    from peft import LoraConfig, get_peft_model

    folder = write_model(tmp_path / "model")
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"])
    adapters = Adapters(rank=4, alpha=6.0, targets=("q_proj", "down_proj"))
    peft_model = get_peft_model(stock_model(folder), config)
    with ModelReader(folder) as stored:
        parts = filled(peft_model.base_model.model, AdaptedReader(stored, adapters), b_is_zero=False)
        found = merged_tensors(stored, list(stored.files), parts, adapters)
        before = {name: stored.tensor(name) for name in stored.files}
    expected = dict(peft_model.merge_and_unload().named_parameters())
    changed = {name for name in before if not torch.equal(found[name], before[name])}
    assert changed == {name for name in before if ".q_proj." in name or ".down_proj." in name}
    for name in changed:
        torch.testing.assert_close(found[name], expected[name].detach(), rtol=1e-6, atol=1e-6)


def test_without_peft_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_adapters(RecoverConfig(method="lora"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_adapters(RecoverConfig())
    with pytest.raises(ValueError, match=r"recover.method='lora' is not allowed: peft is not installed \(pip install "):
        check_adapters(RecoverConfig(method="lora"))
