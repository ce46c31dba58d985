"""The README.md of an exported model, written from what the run measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from transact.config import RunConfig
from transact.export.evaluation_table import evaluation_table
from transact.export.licence import Licence
from transact.models.folder import hub_id

USAGE = """\
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```

Stock transformers load it, 4.x and 5; no code of transact is needed, nor `trust_remote_code`.
"""

CHAT_USAGE = """\
It answers in the chat format of its parent:

```python
messages = [{"role": "user", "content": "Name three rivers."}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs, max_new_tokens=100)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```
"""

NON_STOCK_USAGE = """\
## Use

**NOT stock**: layers or heads keep rotary pairs of their own, which no class of transformers computes.

```python
from pathlib import Path

from transact.models.stock import load_non_stock

model = load_non_stock(Path("FOLDER"))  # whole sequences, without a cache
```
"""

CITATION = """\
## Cite

```bibtex
@article{shen2024transact,
  title   = {Pruning Large Language Models to Intra-module Low-rank Architecture with Transitional Activations},
  author  = {Shen, Bowen and Lin, Zheng and Zha, Daren and Liu, Wei and Luan, Jian and Wang, Bin and Wang, Weiping},
  journal = {arXiv preprint arXiv:2407.05690},
  year    = {2024}
}
```
"""

GGUF_HERE = "the command of the run, once more, with {types} writes a file for llama.cpp."
GGUF_NOWHERE = (
    "there is none for this model: llama.cpp takes the rotary frequencies of its family from `rope_theta` alone "
    "(`prune.rotary_pairs=progression` makes a model for which that is enough), or knows no such tokenizer."
)
GGUF_WARNING = """\
**GGUF only through transact**: {how} llama.cpp's own converter would leave out the frequencies of the kept rotary \
pairs and write a file that computes nonsense, without an error. A tensor of an unknown name stops it here \
(transformers skips it); in a copy made with `save_pretrained` it is gone.
"""
GGUF_FLOAT16 = """\
In llama.cpp's quantised types (q8_0, q4_0) the weights of {names} stay float16: their rows do not divide into \
blocks of 32.
"""


def model_card(
    summary: dict[str, Any],
    config: RunConfig,
    licence: Licence,
    *,
    model_type: str,
    has_factors: bool,
    has_chat_template: bool,
    gguf_types: Sequence[str],
    in_float16: Mapping[str, int] | None = None,
) -> str:
    """Markdown with the metadata block that model hubs read.

    Args:
        summary: as in result.json.
        licence: the parent's.
        model_type: of the exported config.json.
        has_chat_template: whether the tokenizer has one.
        has_factors: whether config.json states rotary frequencies as `longrope` factors.
        gguf_types: values of `export.gguf` that are possible.
        in_float16: projections that quantised files hold in float16, and the length of their rows.
    """
    metadata = _metadata(summary, config, licence, [model_type, *(["conversational"] if has_chat_template else [])])
    header = f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n"
    parts = [header, f"# {summary['name']}\n", _origin(summary, config, has_factors), _results(summary)]
    if summary["pruned"] is None:
        return "\n".join([*parts, USAGE])
    parts.append(evaluation_table(summary))
    is_stock = config.prune.method.pair_scope == "model"
    parts.append(USAGE if is_stock else NON_STOCK_USAGE)
    if is_stock and has_chat_template:
        parts.append(CHAT_USAGE)
    if has_factors:
        named = " or ".join(f"`export.gguf={kind}`" for kind in gguf_types)
        parts.append(GGUF_WARNING.format(how=GGUF_HERE.format(types=named) if named else GGUF_NOWHERE))
    if in_float16 and gguf_types:
        names = " and ".join(f"{name} (rows of {row})" for name, row in in_float16.items())
        parts.append(GGUF_FLOAT16.format(names=names))
    return "\n".join([*parts, _licence_note(config, licence), CITATION])


def _metadata(summary: dict[str, Any], config: RunConfig, licence: Licence, kinds: Sequence[str]) -> dict[str, Any]:
    parent = None if summary["pruned"] is None else hub_id(config.model.path or "")
    base = {} if parent is None else {"base_model": parent, "base_model_relation": "finetune"}
    return {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **licence.metadata,
        **base,
        "tags": [*kinds, *(["pruned"] if summary["pruned"] is not None else []), "transact"],
    }


def _parent(config: RunConfig) -> str:
    """The hub id where there is one; a folder's name is nobody's business, and names no model."""
    parent = hub_id(config.model.path or "")
    return "the parent" if parent is None else f"the parent `{parent}`"


def _origin(summary: dict[str, Any], config: RunConfig, has_factors: bool) -> str:
    if summary["pruned"] is None:
        return f"Trained from a random start by transact on {config.recover.tokens:,} tokens.\n"
    dense, pruned = summary["dense"], summary["pruned"]
    reached, rounds = summary["remove_fraction"]["reached"], len(summary["rounds"])
    return (
        f"{_capital(_parent(config))}, with {reached:.1%} of its parameters removed by transact in "
        f"{rounds} round{'s' if rounds > 1 else ''}, following TransAct (arXiv 2407.05690): inside attention and MLP "
        f"modules, never between them.\n\n"
        f"{_changes(dense['geometry'], pruned['geometry'])}.{_rotary_note(summary, config, has_factors)}\n\n"
        f"{_how(summary, config)}\n"
    )


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _how(summary: dict[str, Any], config: RunConfig) -> str:
    """How units were chosen and what was trained."""
    method, recover = config.prune.method, config.recover
    tokens = sum(each["tokens"] for each in summary["rounds"])
    attention = {
        "pairs": f"rotary pairs of queries and keys by `{method.pair_score}`, values by `{method.values}`",
        "heads": "whole heads by the norms of their outputs",
        "shared_dims": f"the same dims of queries, keys and values by `{method.values}`",
    }[method.attention]
    return (
        f"Chosen on {config.prune.calibration_sequences} calibration sequences of {config.data.sequence_length} "
        f"tokens: {attention}, MLP channels by `{method.channels}`; refit of the output projections: `{method.refit}`. "
        f"Recovered on {tokens:,} tokens with the objective `{recover.objective}`."
    )


def _changes(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The dimensions that changed: "head_dim 32 -> 24, intermediate_size 640 -> 277"."""
    return ", ".join(f"{name} {before[name]} -> {after[name]}" for name in before if before[name] != after[name])


def _rotary_note(summary: dict[str, Any], config: RunConfig, has_factors: bool) -> str:
    """How rotary pairs were cut, where they were."""
    if summary["pruned"]["geometry"]["head_dim"] == summary["dense"]["geometry"]["head_dim"]:
        return ""
    if config.prune.method.attention == "shared_dims":
        return " The rotary embedding is that of a fresh model with the smaller head."
    if config.prune.method.pair_scope != "model":
        return " Every kept rotary pair keeps its own frequency, listed in config.json."
    how = "as `longrope` factors" if has_factors else "by another `rope_theta`"
    return f" Every kept rotary pair keeps its own frequency, {how} in config.json."


def _results(summary: dict[str, Any]) -> str:
    rows = ["## Results\n", "| model | parameters | KV bytes per token | perplexity |", "|---|---|---|---|"]
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


def _licence_note(config: RunConfig, licence: Licence) -> str:
    name = f": `{licence.name.replace('`', '')}`" if licence.name else ""
    files = f" ({', '.join(f'`{each}`' for each in licence.files)})" if licence.files else ""
    return f"## Licence\n\nThat of {_parent(config)} applies{name}{files}.\n"
