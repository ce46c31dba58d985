"""A run with limits instead of a fraction: what stock transformers loads meets them."""

from __future__ import annotations

import json
import re

import torch
from transformers import AutoModelForCausalLM

from tests.support.commands import Workplace, transact


def cache_bytes(model: torch.nn.Module, tokens: int) -> int:
    """Bytes of the KV cache after a forward, at 16 bits an element."""
    cache = model(torch.arange(tokens).unsqueeze(0)).past_key_values
    return sum(2 * (layer.keys.numel() + layer.values.numel()) for layer in cache.layers)


def test_the_result_meets_every_limit_and_says_so(workplace: Workplace) -> None:
    limits = ["prune=budget", "prune.budget.kv_bytes_per_token=0.6", "prune.budget.weight_bytes=180000"]
    draft = ["eval.efficiency.draft=true", "eval.efficiency.turns=1", "eval.efficiency.new_tokens=[4]"]
    asked = [each for each in workplace.overrides("limited") if not each.startswith(("prune.remove", "prune.rounds"))]
    ended = transact([*asked, *limits, "prune.split=auto", "recover.tokens=0", *draft])
    assert ended.returncode == 0, ended.stderr
    folder = workplace.folder / "limited"
    dense, pruned = (AutoModelForCausalLM.from_pretrained(path) for path in (workplace.model, folder / "export"))
    assert cache_bytes(pruned, 10) <= 0.6 * cache_bytes(dense, 10)
    assert 150_000 < 2 * pruned.num_parameters() <= 180_000 < 2 * dense.num_parameters()
    budget = json.loads((folder / "result.json").read_text())["budget"]
    assert budget["weight_bytes"]["reached"] == 2 * pruned.num_parameters()
    assert budget["kv_bytes_per_token"]["reached"] == cache_bytes(pruned, 1)
    assert re.search(r"prune\.budget\.weight_bytes: 1[5-8]\d,\d{3} of at most 180,000$", ended.stdout, re.MULTILINE)
    found = json.loads((folder / "efficiency.json").read_text())["draft"]
    assert found["prompts"] * found["new_tokens"] == 8 * 4 and 0 <= found["acceptance_rate"] <= 1
    assert "efficiency: as a draft of its parent: " in ended.stdout
    report = (folder / "report.html").read_text()
    assert "Limits asked and reached" in report and "As a draft of its parent" in report
