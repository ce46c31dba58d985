"""The README.md of an exported model, written from what the run measured."""

from __future__ import annotations

from typing import Any

import yaml

from transact.config import RunConfig

USAGE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```

A conversion to GGUF must carry the rope factors: a converter that ignores them makes a broken model.
"""


def model_card(summary: dict[str, Any], config: RunConfig) -> str:
    """Markdown with the metadata block that model hubs read. summary: as in result.json."""
    metadata = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["pruned", "transact"]}
    header = f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n"
    parts = [header, f"# {summary['name']}\n", _origin(summary, config), _results(summary), USAGE]
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
        f"head_dim {dense['geometry']['head_dim']} -> {pruned['geometry']['head_dim']}, intermediate_size "
        f"{dense['geometry']['intermediate_size']} -> {pruned['geometry']['intermediate_size']}. Every kept rotary "
        f"pair keeps its own frequency, as `longrope` factors in config.json.\n\n"
        "The licence of the parent applies.\n"
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
