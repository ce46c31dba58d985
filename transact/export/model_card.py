"""The README.md of an exported model: what it is, how it was made, what it scores, under which licence."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from transact.config.inputs import NO_METRICS, DataConfig, TextConfig, of_what, trained_on
from transact.config.run import RunConfig
from transact.errors import one_line
from transact.export.card_texts import (
    CHAT_USAGE,
    CITATION,
    GGUF_FLOAT16,
    GGUF_HERE,
    GGUF_NOWHERE,
    GGUF_OF_LAYERS,
    GGUF_OF_LAYERS_NOWHERE,
    GGUF_WARNING,
    IN_VLLM,
    IN_VLLM_BY_CODE,
    LAYERWISE_USAGE,
    USAGE,
)
from transact.geometry import Geometry, geometry_changes
from transact.models.folder import hub_id
from transact.models.model_files import licence_files, own_file, read_object


def evaluation_table(summary: Mapping[str, Any]) -> str:
    """Return the metrics of dense and pruned as a Markdown table.

    It is empty where nothing more than the perplexity on data.evaluation was measured.

    Args:
        summary: as in result.json.
    """
    dense, pruned = summary["dense"], summary["pruned"]
    rows = [
        f"| {name}{_manner(found)} | {metric} | {_figure(value)} | {_figure(pruned[kind][name][metric])} |"
        for kind in ("texts", "tasks")
        for name, found in dense.get(kind, {}).items()
        for metric, value in found.items()
        if pruned is not None and metric not in NO_METRICS
    ]
    if not rows:
        return ""
    return "\n".join(["| text or task | metric | dense | pruned |", "|---|---|---|---|", *rows]) + "\n"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _manner(found: Mapping[str, Any]) -> str:
    return f" ({found['shots']}-shot)" if found.get("shots") else of_what(found) + trained_on(found)


KEYS = ("license", "license_name", "license_link")
MAX_CARD_BYTES = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Licence:
    """The licence of a model folder, and what else its card says that a model made of it inherits.

    Attributes:
        metadata: the keys of a model card that name it.
        files: names of its texts in the folder.
        languages: codes of the languages that the card names.
    """

    metadata: dict[str, str]
    files: tuple[str, ...]
    languages: tuple[str, ...] = ()

    @property
    def name(self) -> str | None:
        """The licence's name; None where the folder does not say."""
        return self.metadata.get("license_name") or self.metadata.get("license")


def read_licence(folder: Path) -> Licence:
    """Read the licence from the metadata block of the model card, and from the licence texts beside it.

    Raises:
        ValueError: one of these files is a link out of the folder.
    """
    files = [path.name for path in licence_files(folder)]
    card = own_file(folder, "README.md")
    found = {} if card is None else _card_metadata(card)
    metadata = {key: one_line(found[key]) for key in KEYS if isinstance(found.get(key), str)}
    named = found.get("language")
    languages = [one_line(each) for each in (named if isinstance(named, list) else [named]) if isinstance(each, str)]
    return Licence(metadata=metadata, files=tuple(files), languages=tuple(languages))


def copy_licence(licence: Licence, source: Path, target: Path) -> None:
    for name in licence.files:
        if file := own_file(source, name):
            shutil.copyfile(file, target / name)


def has_chat_template(folder: Path) -> bool:
    """Return whether the tokenizer of a folder has a chat template."""
    settings = own_file(folder, "tokenizer_config.json")
    return own_file(folder, "chat_template.jinja") is not None or (
        settings is not None and bool(read_object(settings).get("chat_template"))
    )


def _card_metadata(path: Path) -> dict[str, object]:
    """Return a card's metadata block; empty where YAML cannot read it: a card is decoration, not input."""
    with path.open("rb") as file:
        block = REGEX_YAML_BLOCK.search(file.read(MAX_CARD_BYTES).decode("utf-8", errors="replace"))
    if block is None:
        return {}
    try:
        found = yaml.safe_load(block.group(2))
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: an invalid date
        return {}
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What a card says of the exported folder itself.

    Attributes:
        model_type: of its config.json.
        has_factors: whether config.json states rotary frequencies as `longrope` factors.
        has_chat_template: whether the tokenizer has one.
        gguf_types: values of `export.gguf` that are possible.
        in_float16: projections that quantised files hold in float16, and the length of their rows.
        code: files in it that build layers which differ; empty where a class of transformers does.
        in_vllm: whether vLLM has a class of its own for such layers.
    """

    model_type: str
    has_factors: bool
    has_chat_template: bool
    gguf_types: Sequence[str]
    in_float16: Mapping[str, int] = field(default_factory=dict)
    code: Sequence[str] = ()
    in_vllm: bool = False


def model_card(summary: dict[str, Any], config: RunConfig, licence: Licence, exported: Exported) -> str:
    """Return the model card in Markdown, with the metadata block that model hubs read.

    Args:
        summary: as in result.json.
        licence: the parent's.
    """
    header = f"---\n{_metadata(summary, config, licence, exported).to_yaml()}\n---\n"
    results = _results(summary, config)
    parts = [header, f"# {summary['name']}\n", _origin(summary, config, exported.has_factors), results]
    if summary["pruned"] is None:
        return "\n".join([*parts, USAGE])
    parts.append(evaluation_table(summary))
    parts.append(_usage_of_layers(exported) if exported.code else USAGE)
    if exported.has_chat_template:
        parts.append(CHAT_USAGE)
    named = " or ".join(f"`export.gguf={kind}`" for kind in exported.gguf_types)
    if exported.has_factors:
        parts.append(GGUF_WARNING.format(how=GGUF_HERE.format(types=named) if named else GGUF_NOWHERE))
    elif exported.code:
        parts.append(GGUF_OF_LAYERS.format(types=named) if named else GGUF_OF_LAYERS_NOWHERE)
    if exported.in_float16 and exported.gguf_types:
        names = " and ".join(f"{name} (rows of {row})" for name, row in exported.in_float16.items())
        parts.append(GGUF_FLOAT16.format(names=names))
    return "\n".join([*parts, _licence_note(config, licence), CITATION])


def _usage_of_layers(exported: Exported) -> str:
    files = " and ".join(f"`{file}`" for file in exported.code)
    return LAYERWISE_USAGE.format(files=files, vllm=IN_VLLM if exported.in_vllm else IN_VLLM_BY_CODE)


SOFTWARE = {".gguf": "llama.cpp", ".pte": "ExecuTorch"}


def card_on_hub(card: str, repository: str, others: Sequence[str]) -> str:
    """Return the card as it stands in a repository of the Hub: its name, and the files for other software."""
    named = card.replace('"FOLDER"', f'"{repository}"')
    for suffix, software in SOFTWARE.items():
        files = " and ".join(f"`{name}`" for name in others if name.endswith(suffix))
        if files:
            named += f"\n## {software}\n\n{files}: this model, written by transact.\n"
    return named


def _metadata(summary: dict[str, Any], config: RunConfig, licence: Licence, exported: Exported) -> ModelCardData:
    kinds = [exported.model_type, *(["conversational"] if exported.has_chat_template else [])]
    is_pruned, trained = summary["pruned"] is not None, config.data.training_texts().values()
    parent = hub_id(config.model.path or "") if is_pruned else None
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        **licence.metadata,
        base_model=parent,
        base_model_relation=None if parent is None else "finetune",
        datasets=sorted({text.hub_id for text in trained if text.source == "hub" and text.hub_id}) or None,
        language=list(licence.languages) or None,
        tags=[*kinds, *(["pruned"] if is_pruned else []), "transact"],
        model_name=summary["name"],
        eval_results=list(_results_on_texts(summary, config)) + list(_results_on_tasks(summary)),
    )


def _final(summary: dict[str, Any]) -> dict[str, Any]:
    """Return what was measured of the exported model."""
    return summary["dense"] if summary["pruned"] is None else summary["pruned"]  # type: ignore[no-any-return]


def _is_figure(value: float | None) -> bool:
    """Return whether a value of a JSON file is a number: one that is not finite is null there."""
    return value is not None and math.isfinite(value)


def _results_on_texts(summary: dict[str, Any], config: RunConfig) -> Iterator[EvalResult]:
    """Yield the perplexities of the exported model, but on a text that it was trained on in part."""
    final = _final(summary)
    if _is_figure(final["perplexity"]):
        yield _perplexity("held-out text", config.data.evaluation, config.data, final["perplexity"])
    for name, found in final.get("texts", {}).items():
        text = config.eval.texts.get(name)
        if text is not None and not found.get("documents_trained_on") and _is_figure(found["perplexity"]):
            yield _perplexity(name, text, config.data, found["perplexity"])


def _perplexity(name: str, text: TextConfig, data: DataConfig, value: float) -> EvalResult:
    """Return a perplexity. A text that is not on the Hub has a name alone: where its files lie is nobody's business."""
    is_hub = text.source == "hub"
    return EvalResult(
        task_type="text-generation",
        dataset_type=text.hub_id if is_hub and text.hub_id else "text",
        dataset_name=text.hub_id if is_hub and text.hub_id else name,
        dataset_config=text.hub_config if is_hub else name,
        dataset_split=text.split if is_hub else None,
        dataset_revision=text.hub_revision if is_hub else None,
        metric_type="perplexity",
        metric_name=f"perplexity per token{data.of_what(text)}",
        metric_value=value,
    )


def _results_on_tasks(summary: dict[str, Any]) -> Iterator[EvalResult]:
    for name, found in _final(summary).get("tasks", {}).items():
        for metric, value in found.items():
            if metric not in NO_METRICS and _is_figure(value):
                yield EvalResult(
                    task_type="text-generation",
                    dataset_type=name,
                    dataset_name=name,
                    metric_type=metric.partition(",")[0],
                    metric_name=f"{metric}{_manner(found)}",
                    metric_value=value,
                )


def _parent(config: RunConfig) -> str:
    """Name the parent by its hub id where there is one; a local folder's name is private, and names no model."""
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
    """Describe how units were chosen and what was trained."""
    method, recover, adapters = config.prune.method, config.recover, ""
    if recover.method == "lora" and recover.tokens:
        size = f"rank {recover.lora.rank}, alpha {recover.lora.alpha:g}"
        adapters = f", by low-rank adapters (LoRA, {size}) that are merged into the weights"
    tokens = sum(each["tokens"] for each in summary["rounds"])
    changes = _changes(summary["dense"]["geometry"], summary["pruned"]["geometry"])
    attention = {
        "pairs": f"rotary pairs of queries and keys by `{method.pair_score}`, values by `{method.values}`"
        + (", heads by what a refit leaves missing without them" if "num_key_value_heads" in changes else ""),
        "heads": "whole heads by the norms of their outputs",
        "shared_dims": f"the same dims of queries, keys and values by `{method.values}`",
    }[method.attention]
    return (
        f"Chosen on {config.prune.calibration_sequences} calibration sequences of {config.data.sequence_length} "
        f"tokens: {attention}, MLP channels by `{method.channels}`; refit of the output projections: `{method.refit}`. "
        f"Recovered on {tokens:,} tokens with the objective `{recover.objective}`{adapters}."
    )


def _changes(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return the dimensions that changed: "head_dim 32 -> 24, intermediate_size 640 -> 277"."""
    if "layers" in after:
        return geometry_changes(*map(Geometry.from_dict, (before, after)))
    return ", ".join(f"{name} {before[name]} -> {after[name]}" for name in before if before[name] != after[name])


def _rotary_note(summary: dict[str, Any], config: RunConfig, has_factors: bool) -> str:
    """Describe how rotary pairs were cut; empty where they were not."""
    if summary["pruned"]["geometry"]["head_dim"] == summary["dense"]["geometry"]["head_dim"]:
        return ""
    if config.prune.method.attention == "shared_dims":
        return " The rotary embedding is that of a fresh model with the smaller head."
    if config.prune.method.pair_scope != "model":
        return " Every kept rotary pair keeps its own frequency, listed in config.json."
    how = "as `longrope` factors" if has_factors else "by another `rope_theta`"
    return f" Every kept rotary pair keeps its own frequency, {how} in config.json."


def _results(summary: dict[str, Any], config: RunConfig) -> str:
    rows = ["## Results\n", "| model | parameters | KV bytes per token | perplexity |", "|---|---|---|---|"]
    for role in ("dense", "pruned"):
        model = summary[role]
        if model is not None:
            perplexity = f"{model['perplexity']:.2f}" if _is_figure(model["perplexity"]) else "-"
            rows.append(f"| {role} | {model['parameters']:,} | {model['kv_bytes_per_token']:,} | {perplexity} |")
    measured, of = summary["dense"], config.data.of_what(config.data.evaluation)
    note = (
        f"Perplexity per token{of} on held-out text, {measured['tokens']:,} tokens in sequences of "
        f"{measured['sequence_length']}. KV bytes for a 16-bit cache.\n"
    )
    return "\n".join(rows) + "\n\n" + note


def _licence_note(config: RunConfig, licence: Licence) -> str:
    name = f": `{licence.name.replace('`', '')}`" if licence.name else ""
    files = f" ({', '.join(f'`{each}`' for each in licence.files)})" if licence.files else ""
    return f"## Licence\n\nThat of {_parent(config)} applies{name}{files}.\n"
