"""A run with limits instead of a fraction: what stock transformers loads meets them."""

from __future__ import annotations

import json
import re

import torch
from transformers import AutoModelForCausalLM

from tests.support.commands import REPOSITORY, Workplace, environment, transact
from tests.support.warm import run_warm
from transact.tracking.report.drawing import number


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


def test_half_of_the_cache_may_be_half_of_the_heads_and_any_number_of_ranks_drops_the_same(
    workplace: Workplace,
) -> None:
    """Heads of the parent's size alone are allowed: key-value heads go, with the queries that share them.

    Of two rounds the last one asks its own Gram matrices which.
    """
    asked = [
        each for each in workplace.overrides("half") if not each.startswith(("prune.remove", "output_dir", "name"))
    ]
    asked += ["prune=budget", "prune.budget.kv_bytes_per_token=0.5", "prune.budget.parameters=0.7", "prune.split=auto"]
    asked += ["prune.multiple.head_dim=16"]
    selections = []
    for ranks in (1, 2):
        name = f"half_on_{ranks}"
        own = [f"name={name}", f"output_dir={workplace.folder}/{name}", "prune.rounds=2", "recover.tokens=0"]
        ended = transact([*asked, *own, "eval.efficiency.measured=false"], ranks=ranks)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        folder = workplace.folder / name
        selections.append(json.loads((folder / "round_02" / "selection.json").read_text()))
        dense, pruned = (AutoModelForCausalLM.from_pretrained(path) for path in (workplace.model, folder / "export"))
        assert (pruned.config.num_attention_heads, pruned.config.num_key_value_heads) == (2, 1)
        assert 2 * cache_bytes(pruned, 10) == cache_bytes(dense, 10)
    one, two = (each["key_value_heads"] for each in selections)
    assert one == two and all(len(heads) == 1 for heads in one)


def test_a_latency_is_limited_by_a_table_of_this_machine_and_measured_at_the_end(workplace: Workplace) -> None:
    """The table is measured by the command, and scaled by hand: what such a tiny model takes is noise."""
    table = workplace.folder / "latency.json"
    command = ["efficiency", str(workplace.model), "--calibrate", str(table), "--turns=1", "--new-tokens=4"]
    ended = run_warm(command, module="transact", cwd=REPOSITORY, environment=environment(), seconds=240)
    assert ended.returncode == 0, ended.stderr
    assert "all but layers" in ended.stdout and "decode ms" in ended.stdout
    measured = json.loads(table.read_text())
    assert measured["geometry"]["intermediate_size"] == 160 and measured["phases"].keys() == {"prefill", "decode"}
    assert len(measured["phases"]["decode"]["mlp"]) == 8  # seven narrower ones
    curves = {"rest": 1.0, "attention": [[4, 0.5], [32, 4.0]], "mlp": [[20, 1.0], [160, 8.0]]}
    table.write_text(json.dumps(measured | {"phases": {"decode": curves, "prefill": curves}}))
    limits = ["prune=budget", "prune.budget.latency_ms=0.5", f"prune.budget.latency_table={table}"]
    asked = [each for each in workplace.overrides("quick") if not each.startswith(("prune.remove", "prune.rounds"))]
    few = ["eval.efficiency.turns=1", "eval.efficiency.new_tokens=[4]", "eval.efficiency.prompt_tokens=[8]"]
    ended = transact([*asked, *limits, "prune.shapes=layers", "recover.tokens=0", *few])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    folder = workplace.folder / "quick"
    budget = json.loads((folder / "result.json").read_text())["budget"]["latency_ms"]
    assert (budget["dense"], budget["most"]) == (1 + 2 * 12, 12.5) and 10 < budget["reached"] <= 12.5
    limit = json.loads((folder / "efficiency.json").read_text())["limit"]
    assert (limit["phase"], limit["asked"], limit["foreseen"]) == ("decode", 12.5, budget["reached"])
    assert limit["measured"] > 0
    assert re.search(r"efficiency: decode takes \d+\.\d\d ms here, 1[0-2]\.\d\d ms by prune", ended.stdout)
    assert re.search(r"prune\.budget\.latency_ms: 1[0-2]\.\d\d of at most 12\.50 \(0\.5 of", ended.stdout)
    page = (folder / "report.html").read_text()
    assert "pruned, measured here" in page and number(limit["measured"]) in page
    written = table.read_text()
    table.write_text(written.replace("8.0", "8.5"))
    changed = transact([*asked, *limits, "prune.shapes=layers", "recover.tokens=0", *few])
    assert changed.returncode == 2 and "is another one than when this run began" in changed.stderr
    table.write_text("{}")
    other = [each for each in workplace.overrides("refused") if not each.startswith(("prune.remove", "prune.rounds"))]
    again = transact([*other, *limits])
    assert again.returncode == 2
    assert "it is no table that `transact efficiency --calibrate` wrote" in again.stderr
