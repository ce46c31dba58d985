"""Fused kernels compute what a stock model does, in the model that asks for them and in no other.

Where there is a GPU and Liger they are its own; else its functions are replaced by their definitions in PyTorch, and
what is tested is that every family's modules call them with the right tensors.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections import Counter
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from transact.models.fused_kernels import fuse
from transact.models.loss_head import IGNORED, LossHead, LossRequest, Teaching, next_token_targets
from transact.models.stock import stock_class

REAL = torch.cuda.is_available() and importlib.util.find_spec("liger_kernel") is not None
DEVICE = torch.device("cuda" if REAL else "cpu")
# Pruned shapes: no power of two, queries of more heads than keys and values.
PRUNED = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12}
PRUNED |= {"intermediate_size": 100, "vocab_size": 300, "max_position_embeddings": 128, "hidden_act": "silu"}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each kernel was called; nothing is counted where they are Liger's own."""
    counted: Counter[str] = Counter()
    if REAL:
        return counted

    def liger_rms_norm(hidden: Tensor, weight: Tensor, eps: float, in_place: bool) -> Tensor:
        counted["norm"] += 1
        return functional.rms_norm(hidden, weight.shape, weight, eps)

    def liger_swiglu(gate: Tensor, up: Tensor) -> Tensor:
        counted["swiglu"] += 1
        return functional.silu(gate) * up

    def liger_fused_linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, **options: Any) -> Tensor:
        counted["loss"] += 1
        assert options.pop("accum_dtype") == torch.float32
        return functional.cross_entropy(functional.linear(hidden, weight), targets, **options)

    def liger_rotary_pos_emb(query: Tensor, key: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, ...]:
        counted["rotation"] += 1
        pairs = [each.unflatten(-1, (2, -1)) for each in (query, key)]
        half = cosine.shape[-1] // 2
        cosine, sine = cosine[:, None, :, :half], sine[:, None, :, :half]
        return tuple(
            torch.cat([x * cosine - y * sine, y * cosine + x * sine], -1)
            for x, y in (each.unbind(-2) for each in pairs)
        )

    names = ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.functional")
    modules: Any = {name: ModuleType(name) for name in (*names, "liger_kernel.transformers.rope")}
    for function in (liger_rms_norm, liger_swiglu, liger_fused_linear_cross_entropy):
        setattr(modules[names[2]], function.__name__, function)
    modules["liger_kernel.transformers.rope"].liger_rotary_pos_emb = liger_rotary_pos_emb
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return counted


def make(family: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    model_class, config = stock_class({"model_type": family, "tie_word_embeddings": False, **PRUNED, **changes}, "sdpa")
    model = model_class(config)
    model.lm_head = LossHead(config.hidden_size, config.vocab_size)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model.to(DEVICE)


def loss_of(model: Any, tokens: Tensor, teaching: Teaching | None = None) -> Tensor:
    with model.lm_head.computing(LossRequest(targets=next_token_targets(tokens), teaching=teaching)):
        return model(input_ids=tokens, use_cache=False).logits


def assert_same_training(stock: Any, fused: Any) -> None:
    tokens = torch.randint(0, PRUNED["vocab_size"], (2, 33), device=DEVICE)
    losses = [loss_of(model, tokens) for model in (stock, fused)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)
    for loss in losses:
        loss.backward()
    for (name, expected), found in zip(stock.named_parameters(), fused.parameters(), strict=True):
        assert (found.grad - expected.grad).norm() <= 1e-4 * expected.grad.norm(), name


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_the_stock_model(calls: Counter[str], family: str, recomputes: bool) -> None:
    stock = make(family)
    fused = copy.deepcopy(stock)
    fuse(fused)
    for model in (stock, fused):
        model.train()
        if recomputes:
            model.activation_checkpointing_enable({"use_reentrant": False})
    assert_same_training(stock, fused)
    if not REAL:
        turns = PRUNED["num_hidden_layers"] * (2 if recomputes else 1)
        norms = 2 if family != "qwen3" else 4  # of a layer; heads have two
        expected = {"norm": norms * turns + 1, "swiglu": turns, "rotation": turns, "loss": 1}
        assert calls == expected


@pytest.mark.parametrize("heads", [1, 2], ids=["of_layers", "of_heads"])
def test_widths_and_frequencies_of_their_own(calls: Counter[str], heads: int) -> None:
    widths = {"0": {"intermediate_size": 60}, "1": {"intermediate_size": 100}}
    stock = make("llama", per_layer_config=widths, rotary_inverse_frequencies=torch.rand(2, heads, 6).tolist())
    fused = copy.deepcopy(stock)
    fuse(fused)
    assert_same_training(stock, fused)


def test_other_models_are_left_alone(calls: Counter[str]) -> None:
    """What an export is compared with is computed by stock code, also when it is made after the fused one."""
    before = make("llama")
    fuse(make("llama"))
    for model in (before, make("llama")):
        loss_of(model, torch.zeros(1, 8, dtype=torch.int64, device=DEVICE))
        assert not any("forward" in vars(module) for module in model.modules())
    assert not calls


def test_distillation_and_evaluation_have_the_plain_loss(calls: Counter[str]) -> None:
    """The fused one knows no teacher, and would compute gradients that nobody asks for."""
    model = make("llama")
    fuse(model)
    tokens = torch.randint(0, PRUNED["vocab_size"], (1, 9), device=DEVICE)
    hidden = torch.randn(1, 9, PRUNED["hidden_size"], device=DEVICE)
    teaching = Teaching(hidden=hidden, head=model.lm_head.weight.detach(), weight=1.0, temperature=1.0)
    loss_of(model, tokens, teaching).backward()
    with torch.no_grad():
        logits = model(input_ids=tokens, use_cache=False).logits
        expected = functional.cross_entropy(logits.flatten(0, 1), next_token_targets(tokens)[0], ignore_index=IGNORED)
        torch.testing.assert_close(loss_of(model, tokens), expected, rtol=1e-5, atol=1e-5)
    assert calls["loss"] == 0
