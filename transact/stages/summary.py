"""result.json: what the run achieved, put together from the finished files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transact.files import read_json, write_json
from transact.geometry import Geometry
from transact.rounds import Round
from transact.stages.hub import PUSHED
from transact.stages.job import Job

MODEL_FIELDS = (
    "parameters",
    "kv_bytes_per_token",
    "flops_per_token",
    "perplexity",
    "sequence_length",
    "tokens",
    "tasks",
    "geometry",
)
LATER_FIELDS = ("loss_of", "packing")  # that evaluation.json of older runs has not


def summarise(job: Job, rounds: Sequence[Round]) -> dict[str, Any]:
    """Return the contents of result.json. Rank 0 only: it alone holds the record of the stages."""
    dense = _model(read_json(job.round(0).evaluation)["dense"])
    rows = [_round(job, each) for each in rounds]
    last = end_of(read_json(job.round(rounds[-1].number).evaluation)) if rounds else None
    pruned = None if last is None else _model(last)
    if "tasks" in job.folder.stages and pruned is not None:
        both = read_json(job.path("comparison.json"))
        dense, pruned = dense | both["dense"], pruned | both["pruned"]
    reached = 0.0 if pruned is None else 1 - pruned["parameters"] / dense["parameters"]
    limits = job.outline.limits
    return {
        "name": job.config.name,
        "remove_fraction": {"asked": job.config.prune.remove_fraction if rounds else None, "reached": reached},
        "budget": limits.compared(rounds[-1].geometry) if limits is not None and rounds else {},
        "dense": dense,
        "pruned": pruned,
        "rounds": rows,
        "seconds": _seconds_by_stage(job),
        "world_size": job.group.world_size,
        "restarts": job.folder.record["restarts"],
        "versions": job.folder.record["versions"],
    }


def gguf_path(job: Job) -> Path:
    return job.path("gguf", f"{job.config.name}-{job.config.export.gguf}.gguf")


def executorch_path(job: Job) -> Path:
    return job.path("executorch", f"{job.config.name}-{job.config.export.executorch_kind}.pte")


def write_result(job: Job, rounds: Sequence[Round]) -> dict[str, Any]:
    """Write result.json, send its figures to the tracker and return its contents. Rank 0 only."""
    summary = summarise(job, rounds)
    if "efficiency" in job.folder.stages:
        summary["efficiency"] = read_json(job.path("efficiency.json"))
    files = {"gguf": gguf_path(job), "executorch": executorch_path(job)}
    for kind, file in files.items():
        if getattr(job.config.export, kind) != "none":
            summary[kind] = {"file": str(file.relative_to(job.folder.path)), "bytes": file.stat().st_size}
    job.folder.announce(job.path("result.json"))
    write_json(job.path("result.json"), summary)
    figures = {"result/perplexity_dense": summary["dense"]["perplexity"], "result/export": str(job.path("export"))}
    if summary["pruned"] is not None:
        figures |= {
            "result/perplexity": summary["pruned"]["perplexity"],
            "result/parameters": summary["pruned"]["parameters"],
            "result/kv_bytes_per_token": summary["pruned"]["kv_bytes_per_token"],
            "result/remove_fraction": summary["remove_fraction"]["reached"],
        }
        for name, limit in summary["budget"].items():
            figures |= {f"result/budget/{name}": limit["reached"], f"result/budget/{name}_most": limit["most"]}
    job.tracker.summary(figures)
    tokens = sum(each["tokens"] for each in summary["rounds"])
    job.tracker.log_table("prune/rounds", *_table(summary), tokens=tokens, round=len(rounds))
    metadata = {name.removeprefix("result/"): value for name, value in figures.items()}
    job.tracker.log_model(f"{job.config.name}-export", job.path("export"), metadata)
    return summary


def with_repository(job: Job, result: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of result.json with where the model was pushed to, if it was, and write them. Rank 0 only."""
    if job.config.export.hub is None:
        return result
    result = result | {"hub": read_json(job.path(PUSHED))}
    write_json(job.path("result.json"), result)
    return result


def _table(summary: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and rows of the table of rounds: the dense model and every round."""
    dimensions = ("head_dim", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    columns = ["round", *dimensions, "parameters", "perplexity_sliced", "perplexity_recovered", "tokens"]
    dense = summary["dense"]
    sizes = _mean_sizes(dense["geometry"], dimensions)
    rows = [[0, *sizes, dense["parameters"], None, dense["perplexity"], 0]]
    for each in summary["rounds"]:
        sizes = _mean_sizes(each["geometry"], dimensions)
        measured = [each["perplexity_sliced"], each["perplexity_recovered"], each["tokens"]]
        rows.append([each["round"], *sizes, each["parameters"], *measured])
    return columns, rows


def _mean_sizes(geometry: dict[str, Any], dimensions: Sequence[str]) -> list[float]:
    """Return dimensions of a model; means over its layers where these differ."""
    shape = Geometry.from_dict(geometry)
    heads = shape.mean("num_key_value_heads")
    means = {
        "num_attention_heads": shape.queries_per_key_value_head * heads,
        "num_key_value_heads": heads,
        "intermediate_size": shape.mean("intermediate_size"),
    }
    return [means[name] if shape.layers and name in means else geometry[name] for name in dimensions]


def end_of(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Return what a round's evaluation.json says of its last model: the sliced one, where nothing was recovered."""
    return evaluation.get("recovered", evaluation["sliced"])


def _model(evaluation: dict[str, Any]) -> dict[str, Any]:
    known = [field for field in LATER_FIELDS if field in evaluation]
    return {field: evaluation[field] for field in (*MODEL_FIELDS, *known)}


def _round(job: Job, each: Round) -> dict[str, Any]:
    evaluation = read_json(job.round(each.number).evaluation)
    end, recovered = end_of(evaluation), evaluation.get("recovered")
    names = {stage.name for stage in job.outline.stages if stage.round == each.number}
    return {
        "round": each.number,
        "geometry": end["geometry"],
        "parameters": end["parameters"],
        "kv_bytes_per_token": end["kv_bytes_per_token"],
        "perplexity_sliced": evaluation["sliced"]["perplexity"],
        "perplexity_recovered": None if recovered is None else recovered["perplexity"],
        "tokens": each.tokens,
        "learning_rate": each.learning_rate if each.tokens else None,
        "adapters": _adapters(job) if each.tokens else None,
        "seconds": sum(entry["seconds"] for name, entry in job.folder.stages.items() if name in names),
    }


def _adapters(job: Job) -> dict[str, Any] | None:
    """Return the adapters that were trained and merged; None where all weights were trained."""
    recover = job.config.recover
    return None if recover.method == "full" else asdict(recover.lora)


def _seconds_by_stage(job: Job) -> dict[str, float]:
    kinds = {stage.name: stage.kind for stage in job.outline.stages}
    seconds: Counter[str] = Counter()
    for name, entry in job.folder.stages.items():
        seconds[kinds.get(name, name)] += entry["seconds"]
    return dict(seconds)
