"""What a user does with an exported folder, in the newest transformers and in the last of the 4.x series."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.support.exported import masked_parent, random_selection, write_exported
from tests.support.optional import run_with, transformers_4
from transact.geometry import Widths
from transact.models.stock import load_model

SCRIPT = Path(__file__).parents[1] / "support" / "stock_use.py"
TOLERANCE = 1e-4  # float32
# bfloat16 has 8 bits, and logits of the random models are below 8: a handful of roundings of 2^-8.
BFLOAT16_TOLERANCE = 0.15


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# Kept pairs as factors; all pairs, whose theta transformers 5 writes under a key that 4 does not read; another theta.
CUTS: dict[str, dict[str, Any]] = {
    "factors": {"head_dim": 10},
    "all pairs": {"head_dim": 16},
    "progression": {"head_dim": 8, "pairs_in_progression": True},
}


@dataclass(frozen=True)
class Exported:
    folder: Path
    oracle: Any


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    found = {}
    for name, cut in CUTS.items():
        folder = tmp_path_factory.mktemp("exported")
        export = write_exported(folder, cut, rope_parameters=LLAMA3)
        parent = folder / "parent"
        oracle = masked_parent(parent, random_selection(parent, intermediate_size=96, **cut))
        found[name] = Exported(folder=export, oracle=oracle)
    return found


@pytest.mark.parametrize("library", ["newest", "4.x"])
def test_stock_transformers_compute_the_masked_parent(
    exported: dict[str, Exported], tmp_path: Path, library: str
) -> None:
    """Both attention implementations and dtypes, with and without a cache, beyond the original context, silently."""
    folder = transformers_4() if library == "4.x" else None
    places = {name: tmp_path / f"{number}.safetensors" for number, name in enumerate(exported)}
    said = run_with(folder, SCRIPT, *(str(path) for name in CUTS for path in (exported[name].folder, places[name])))
    # The last line: generating makes transformers import DeepSpeed, which talks.
    for name, seen in zip(CUTS, json.loads(said.splitlines()[-1]), strict=True):
        assert seen["version"].startswith("4.57" if folder else "5."), name
        assert seen["warnings"] == [], name
        assert_is_the_masked_parent(exported[name].oracle, seen, load_file(places[name]), name)


def assert_is_the_masked_parent(oracle: Any, seen: dict[str, Any], found: dict[str, torch.Tensor], name: str) -> None:
    tokens = torch.tensor([seen["tokens"]])
    with torch.no_grad():
        expected = oracle(tokens).logits
    for way, logits in found.items():
        tolerance = BFLOAT16_TOLERANCE if "bfloat16" in way else TOLERANCE
        assert float((logits - expected).abs().max()) < tolerance, (name, way)
    sequence = torch.tensor([seen["generated"]["sdpa"]])
    assert seen["generated"]["eager"] == seen["generated"]["sdpa"] and sequence.shape[1] > 128, name
    with torch.no_grad():
        greedy = oracle(sequence).logits[0, 4:-1].argmax(dim=-1)
    assert greedy.tolist() == sequence[0, 5:].tolist(), name


TOKENS = torch.randint(0, 512, (2, 24), generator=torch.Generator().manual_seed(2))
LAYERS = [Widths(num_key_value_heads=heads, intermediate_size=size) for heads, size in ((1, 96), (2, 40))]


def train(model: Any, optimizer: Any, steps: int) -> list[float]:
    """The losses of steps on the same two sequences, in plain PyTorch."""
    losses = []
    for _ in range(steps):
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("widths", [(), LAYERS], ids=["alike", "layers_that_differ"])
def test_an_adapter_trains_on_it(tmp_path: Path, widths: Sequence[Widths]) -> None:
    """LoRA (peft): the loss falls, only the adapter changes, and it loads again."""
    peft = pytest.importorskip("peft")
    exported = write_exported(tmp_path, {"head_dim": 10, "widths": widths})
    model = load_model(exported, dtype=torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.Adam([each for each in adapted.parameters() if each.requires_grad], lr=1e-2)
    losses = train(adapted, optimizer, 20)
    assert losses[-1] < 0.9 * losses[0]
    adapted.save_pretrained(tmp_path / "adapter")
    plain = load_model(exported, dtype=torch.float32)
    assert all(value.equal(before[name]) for name, value in plain.state_dict().items())
    again = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter")
    with torch.no_grad():
        difference = (again(TOKENS).logits - adapted.eval()(TOKENS).logits).abs().max()
    assert float(difference) < 1e-5


@pytest.mark.parametrize("widths", [(), LAYERS], ids=["alike", "layers_that_differ"])
def test_all_weights_train_on_and_are_saved_again(tmp_path: Path, widths: Sequence[Widths]) -> None:
    """Continued training in plain PyTorch: the loss falls, and what transformers saves computes the same."""
    exported = write_exported(tmp_path, {"head_dim": 10, "widths": widths})
    model = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=bool(widths), dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = train(model, optimizer, 8)
    assert losses[-1] < 0.7 * losses[0]
    model.save_pretrained(tmp_path / "trained")
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path / "trained", trust_remote_code=bool(widths), dtype=torch.float32
    )
    with torch.no_grad():
        torch.testing.assert_close(again(TOKENS).logits, model.eval()(TOKENS).logits)
