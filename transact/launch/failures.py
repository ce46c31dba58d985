"""What a failure means to the person who reads it: which stage, what was short, what to change."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from transact.config import RunConfig
from transact.engine.memory import GIB, STAGE_KINDS, estimate_memory
from transact.errors import RankFailed
from transact.geometry import Geometry
from transact.models.folder import declared_geometry
from transact.rounds import pruning_rounds

NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded")
NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
# What gloo, NCCL and the store say when the other side is gone or silent; no rank's own failure reads like this.
LOST_RANK = re.compile(r"Connection (closed|reset|refused)|Broken pipe|Timed out waiting|Socket Timeout|NCCL|gloo")

# Largest part of the estimate -> what makes it smaller: settings that a run takes when it goes on, or else says so.
REMEDIES = {
    "weights": "more ranks, or engine.zero_stage=3",
    "gathered": "engine.dtype=bfloat16 in a new run",
    "gradients": "more ranks, or engine.zero_stage=3",
    "optimizer": "more ranks, or engine.zero_stage=3",
    "communication": "a smaller engine.reduce_bucket_elements",
    "update": "more ranks",
    "loading": "engine.zero_stage=3 on more ranks",
    "activations": "a smaller engine.micro_batch_sequences, or engine.activation_checkpointing=true",
    "logits": "a smaller engine.micro_batch_sequences",
    "gram": "a smaller prune.method.gram_gib",
    "teacher": "more ranks, or recover.objective=cross_entropy in a new run",
}


# The same for a forward without an optimizer, which ZeRO stages 1 and 2 do not share out.
FORWARD_REMEDIES = REMEDIES | {
    "weights": "engine.zero_stage=3 on more ranks",
    "activations": "a smaller engine.micro_batch_sequences",
}
# Stages that no estimate exists of.
OTHER_REMEDIES = {
    "tasks": "a smaller eval.task_batch",
    "split": "a smaller engine.micro_batch_sequences",
    "slice": "a smaller engine.micro_batch_sequences",
    "efficiency": "eval.efficiency.measured=false",
}


def is_lost_rank(error: BaseException) -> bool:
    """Whether this rank only met the failure of another."""
    if isinstance(error, RankFailed):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return LOST_RANK.search(str(error)) is not None and not _is_no_memory(error)


def explain(error: BaseException, stage: str, config: RunConfig, world_size: int) -> str:
    """One line for run.json and the user."""
    try:
        return _explained(error, stage, config, world_size)
    except Exception:  # noqa: BLE001 - on a machine that fails, looking closer may fail as well
        return _plain(error, stage)


def _explained(error: BaseException, stage: str, config: RunConfig, world_size: int) -> str:
    for each in _chain(error):
        if _is_no_space(each):
            return f"{stage}: {_no_space(each, config)}"
        if _is_no_memory(each):
            return f"{stage}: {_no_memory(stage, config, world_size)}"
    return _plain(error, stage)


def _plain(error: BaseException, stage: str) -> str:
    return f"{stage}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    each: BaseException | None = error
    while each is not None:
        yield each
        each = each.__cause__


def _is_no_space(error: BaseException) -> bool:
    by_number = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return by_number or NO_SPACE.search(str(error)) is not None


def _no_space(error: BaseException, config: RunConfig) -> str:
    if isinstance(error, OSError) and error.filename:
        place = os.fsdecode(error.filename)
        free = _free_bytes(Path(place))
    else:  # writing to an open file, and safetensors, do not say where: of the places written to it is the fullest
        free, place = min(
            ((_free_bytes(path), where) for where, path in _written_places(config)), key=lambda each: each[0]
        )
    return (
        f"the disk is full ({place}, {free / GIB:.2f} GiB free). What was finished before is intact: free some space, "
        "and the same command goes on from here"
    )


def _written_places(config: RunConfig) -> list[tuple[str, Path]]:
    """Where a run writes, with what names it to the user; of those on one disk the first is named."""
    cache = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
    places = [
        ("output_dir=", config.output_dir),
        ("data.token_store=", config.data.token_store),
        ("HF_HOME=", cache),
        ("TMPDIR=", tempfile.gettempdir()),
    ]
    return [(f"{name}{path}", Path(path)) for name, path in places]


def _free_bytes(path: Path) -> int:
    there = next(each for each in (path, *path.absolute().parents) if each.exists())
    return shutil.disk_usage(there).free


def _is_no_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(NO_MEMORY.search(str(error))))


def _no_memory(stage: str, config: RunConfig, world_size: int) -> str:
    """The largest consumer by the estimate of `mode=estimate`, where there is one of the stage."""
    name, _, kind = stage.partition("/")
    if kind not in STAGE_KINDS:
        helps = OTHER_REMEDIES.get(kind or name, "more memory for each rank")
        return f"out of memory, in a stage that mode=estimate has no estimate of; what helps: {helps}"
    parent = declared_geometry(config.model)
    geometry = _geometry_in(name, kind, config, parent)
    parts = estimate_memory(geometry, config, world_size, kind, parent=parent).parts()
    largest = max(parts, key=lambda part: parts[part])
    return (
        f"out of memory. The largest consumer is {largest} (about {parts[largest] / GIB:.2f} GiB a rank); what helps: "
        f"{(REMEDIES if kind == 'recover' else FORWARD_REMEDIES)[largest]}. mode=estimate shows all of them"
    )


def _geometry_in(name: str, kind: str, config: RunConfig, parent: Geometry) -> Geometry:
    """Of the model that a stage works on; of a measured split that of equal shares, which is as large."""
    number = int(name.removeprefix("round_"))
    before = number - 1 if kind in ("calibrate", "gram") else number
    if before == 0 or config.mode == "pretrain":
        return parent
    return pruning_rounds(config, parent)[before - 1].geometry
