"""The README.md of an exported model, written from what the run measured."""

from __future__ import annotations

from typing import Any

import yaml

from transact.config import RunConfig
from transact.exporting.evaluation_table import evaluation_table

USAGE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```
"""


NON_STOCK_USAGE = """\
**NOT stock**: layers or heads keep rotary pairs of their own, which no class of transformers computes.

```python
from pathlib import Path

from transact.models.stock import load_non_stock

model = load_non_stock(Path("FOLDER"))  # whole sequences, without a cache
```
"""


def model_card(summary: dict[str, Any], config: RunConfig) -> str:
    """Markdown with the metadata block that model hubs read. summary: as in result.json."""
    metadata = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["pruned", "transact"]}
    header = f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n"
    usage = USAGE if config.prune.method.pair_scope == "model" else NON_STOCK_USAGE
    parts = [
        header,
        f"# {summary['name']}\n",
        _origin(summary, config),
        _results(summary),
        evaluation_table(summary),
        usage,
    ]
    return "\n".join(parts)


def _origin(summary: dict[str, Any], config: RunConfig) -> str:
    if summary["pruned"] is None:
        return f"Trained from a random start by transact on {config.recover.tokens:,} tokens.\n"
    dense, pruned = summary["dense"], summary["pruned"]
    reached = summary["remove_fraction"]["reached"]
    return (
        f"`{config.model.path}` with {reached:.1%} of its parameters removed by transact in "
        f"{len(summary['rounds'])} rounds, following TransAct (arXiv 2407.05690): inside attention and MLP "
        f"modules, never between them.\n\n"
        f"{_changes(dense['geometry'], pruned['geometry'])}.{_rotary_note(config, dense, pruned)}\n\n"
        "The licence of the parent applies.\n"
    )


def _changes(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The dimensions that changed: "head_dim 32 -> 24, intermediate_size 640 -> 277"."""
    return ", ".join(f"{name} {before[name]} -> {after[name]}" for name in before if before[name] != after[name])


def _rotary_note(config: RunConfig, dense: dict[str, Any], pruned: dict[str, Any]) -> str:
    """How rotary pairs were cut, where they were."""
    if pruned["geometry"]["head_dim"] == dense["geometry"]["head_dim"]:
        return ""
    if config.prune.method.attention == "shared_dims":
        return " The rotary embedding is that of a fresh model with the smaller head."
    if config.prune.method.pair_scope != "model":
        return " Every kept rotary pair keeps its own frequency, listed in config.json."
    return (
        " Every kept rotary pair keeps its own frequency, as `longrope` factors in config.json: a conversion to GGUF "
        "must carry them, a converter that ignores them makes a broken model."
    )


def _results(summary: dict[str, Any]) -> str:
    rows = ["| model | parameters | KV bytes per token | perplexity |", "|---|---|---|---|"]
    for role in ("dense", "pruned"):
        model = summary[role]
        if model is not None:
            rows.append(
                f"| {role} | {model['parameters']:,} | {model['kv_bytes_per_token']:,} | {model['perplexity']:.2f} |"
            )
    measured = summary["dense"]
    note = (
        f"Perplexity per token on held-out text, {measured['tokens']:,} tokens in sequences of "
        f"{measured['sequence_length']}. KV bytes for a 16-bit cache.\n"
    )
    return "\n".join(rows) + "\n\n" + note
