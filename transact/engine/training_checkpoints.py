"""Checkpoints inside a recovery: every rank writes its own ranges, any number of ranks reads them.

    checkpoints/round_01_step_000040/
      manifest.json                          where training stood; size and SHA-256 of each file, and of itself
      state-00000-of-00002.safetensors       NAME.weight, NAME.exp_avg, NAME.exp_avg_sq, NAME.best, random_state

Everything is float32. A folder has its final name only once all of it is on the disk.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from transact.distributed.process import ProcessGroup
from transact.engine.engine import Engine
from transact.engine.sharded_state import KINDS, Fragment
from transact.files import (
    TEMPORARY_SUFFIX,
    damage_of,
    fresh_temporary_folder,
    publish,
    read_json,
    temporary_name,
    write_json,
)
from transact.models.shard_writer import write_shard

MANIFEST = "manifest.json"
STARTS = "starts"  # in a file's metadata: parameter -> position of its first element, as JSON
RANDOM_STATE = "random_state"
SEAL = "sha256"  # of the rest of the manifest
DAMAGED_SUFFIX = ".damaged"
KEPT = 2
OWN_FILE = re.compile(r"state-\d{5}-of-\d{5}\.safetensors|manifest\.json(\.tmp)?")


def save_training(
    engine: Engine, output: Path, group: ProcessGroup, *, best: dict[str, torch.Tensor] | None, position: dict[str, Any]
) -> None:
    """Write a checkpoint (collective), and remove all but the newest `KEPT` of the same round.

    Those of other rounds stay: a repair of an earlier round saves while a later one waits to go on.

    Args:
        best: weights that training goes back to, this rank's part (as `Engine.snapshot` gives it); None where they
            are those of the checkpoint itself or of the start.
        position: what else must be known to go on; rank 0's is written.

    Raises:
        OSError: the disk is full, on the rank that met it; RankFailed on the others. Nothing is left
            of the attempt.
    """
    temporary = group.on_main(lambda: fresh_temporary_folder(output))
    name = f"state-{group.rank:05d}-of-{group.world_size:05d}.safetensors"
    adam_steps = engine.adam_steps

    def write() -> dict[str, Any]:
        owned = _to_write(engine, group)
        starts = json.dumps({name: fragment.start for name, fragment in owned.items()})
        alive = group.watchdog.progress
        return {name: write_shard(temporary / name, _tensors(owned, best), None, {STARTS: starts}, alive)}

    def finish() -> None:
        described = position | {"adam_steps": adam_steps, "world_size": group.world_size, "files": files}
        write_json(temporary / MANIFEST, described | {SEAL: _seal(described)})
        publish(temporary, output)
        for old in checkpoint_folders(output.parent, output.name.rpartition("_")[0])[KEPT:]:
            # Renamed first, so that it is not taken for a damaged one if the job is killed meanwhile.
            _remove(old.rename(temporary_name(old)))

    try:
        files = {name: entry for written in group.everywhere(write) for name, entry in written.items()}
        group.on_main(finish)
    except Exception:
        if group.is_main:
            _remove(temporary)
        raise


def _to_write(engine: Engine, group: ProcessGroup) -> dict[str, Fragment]:
    """Return what this rank writes: its own part; at stage 0, where every rank has everything, an even share."""
    owned = engine.fragments()
    if not engine.is_replicated:
        return owned
    names = sorted(owned)
    return {names[number]: owned[names[number]] for number in group.shared_out(len(names))}


def _tensors(owned: dict[str, Fragment], best: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    tensors = {f"{name}.{kind}": getattr(fragment, kind) for name, fragment in owned.items() for kind in KINDS}
    if best is not None:
        tensors |= {f"{name}.best": best[name] for name in owned}
    return tensors | {RANDOM_STATE: torch.get_rng_state()}


def checkpoint_folders(folder: Path, prefix: str = "") -> list[Path]:
    """Return the complete checkpoints whose names begin so, the newest first."""
    found = (path.parent for path in folder.glob(f"{prefix}*/{MANIFEST}"))
    return sorted((path for path in found if path.suffix not in (TEMPORARY_SUFFIX, DAMAGED_SUFFIX)), reverse=True)


def set_aside(checkpoint: Path) -> None:
    """Rename a checkpoint that is damaged, or of another model: it is not listed, and not among those that are kept.

    It takes the place of an earlier damaged one of the same step.
    """
    aside = checkpoint.with_name(checkpoint.name + DAMAGED_SUFFIX)
    if aside.exists():
        _remove(aside)
    with suppress(OSError):  # the earlier one stays where somebody has put files into it
        checkpoint.rename(aside)


def _remove(checkpoint: Path) -> None:
    """Remove what a save writes; the folder stays where somebody has put something else into it."""
    with suppress(OSError):
        for path in checkpoint.iterdir():
            if OWN_FILE.fullmatch(path.name):
                path.unlink()
        checkpoint.rmdir()


def damage(checkpoint: Path, group: ProcessGroup) -> str | None:
    """Return what is wrong with a checkpoint's files, or None if they are as they were written.

    Collective: the ranks share the reading.
    """
    files: dict[str, Any] | None = group.on_main(lambda: _sealed_files(checkpoint / MANIFEST))
    if files is None:
        return f"{MANIFEST} is not as it was written"
    names = sorted(files)

    def check() -> list[str]:
        problems = []
        for number in group.shared_out(len(names)):
            problem = damage_of(checkpoint / names[number], files[names[number]], group.watchdog.progress)
            problems += [f"{names[number]} {problem}"] if problem else []
        return problems

    problems = [problem for found in group.everywhere(check) for problem in found]
    return problems[0] if problems else None


def _seal(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sealed_files(path: Path) -> dict[str, Any] | None:
    """Return the files that a manifest lists, or None if it is damaged."""
    try:
        manifest = read_json(path)
        seal = manifest.pop(SEAL)
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None
    return manifest["files"] if seal == _seal(manifest) else None


@torch.no_grad()
def load_training(engine: Engine, checkpoint: Path, group: ProcessGroup) -> dict[str, torch.Tensor] | None:
    """Put weights and Adam's state into an engine; every rank reads the ranges that it owns now.

    Returns:
        This rank's part of the best weights; None unless the checkpoint holds them apart.
    """
    manifest = read_json(checkpoint / MANIFEST)
    owned = engine.fragments()
    with open_ranges([checkpoint / name for name in sorted(manifest["files"])]) as ranges:
        for name, fragment in owned.items():
            for kind in KINDS:
                getattr(fragment, kind).copy_(ranges.read(name, kind, fragment.start, fragment.stop))
            group.watchdog.progress()
        engine.refresh_weights(lambda name, count: ranges.read(name, "weight", 0, count))
        engine.adam_steps = manifest["adam_steps"]
        if manifest["world_size"] == group.world_size:
            torch.set_rng_state(ranges.random_state(group.rank))
        if not ranges.has_best:
            return None
        return {name: ranges.read(name, "best", each.start, each.stop) for name, each in owned.items()}


class Ranges:
    """Ranges of flattened tensors, put together from the files of all ranks that wrote them."""

    def __init__(self, files: list[Any]) -> None:
        self._files = files
        self._parts: dict[str, list[tuple[int, int, Any]]] = {}  # parameter -> start, stop, file
        self.has_best = False
        for file in files:
            keys = set(file.keys())
            for name, start in json.loads(file.metadata()[STARTS]).items():
                count = file.get_slice(f"{name}.weight").get_shape()[0]
                self._parts.setdefault(name, []).append((start, start + count, file))
                self.has_best |= f"{name}.best" in keys

    def read(self, name: str, kind: str, start: int, stop: int) -> torch.Tensor:
        """Return elements [start, stop) of a parameter's weight or state, float32."""
        result = torch.empty(stop - start)
        filled = 0
        for first, last, file in self._parts[name]:
            begin, end = max(start, first), min(stop, last)
            if begin < end:
                piece = file.get_slice(f"{name}.{kind}")[begin - first : end - first]
                result[begin - start : end - start] = piece
                filled += end - begin
        assert filled == stop - start, f"{name}.{kind}: {filled} of the elements {start} to {stop} are stored"
        return result

    def random_state(self, rank: int) -> torch.Tensor:
        return self._files[rank].get_tensor(RANDOM_STATE)


@contextmanager
def open_ranges(paths: list[Path]) -> Iterator[Ranges]:
    """Open the files of a checkpoint. paths: one for each rank that wrote, in the order of ranks."""
    with ExitStack() as stack:
        yield Ranges([stack.enter_context(safe_open(path, framework="pt")) for path in paths])
