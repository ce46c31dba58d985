"""Slice: write a physically smaller model, from a model folder to a model folder.

No engine is needed. Unless layers are corrected in order (`stages/sequential.py`), each rank reads, cuts, refits and
writes its share of them, and never holds more than one layer and its Gram matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transact.distributed.process import ProcessGroup
from transact.engine.model_folder import Tensors, layer_groups, stored_config, stored_names, write_model_folder
from transact.files import read_json
from transact.models.llama import layer_of, slice_tensors, sliced_config
from transact.models.tensor_files import ModelReader
from transact.pruning.refit import Ridge
from transact.pruning.selection import Selection
from transact.runs.run_folder import RoundFolder
from transact.stages.calibrate import read_gram
from transact.stages.job import Job
from transact.stages.select import read_selection
from transact.stages.sequential import slice_sequentially
from transact.stages.texts import Texts


@dataclass(frozen=True, kw_only=True, slots=True)
class GramFolder:
    """The folder of the layers' Gram matrices, for a value basis from data and for the refit.

    Attributes:
        ridge: damping of the refit; None for the plain cut.
    """

    path: Path
    ridge: Ridge | None


def slice_model(
    source: Path,
    selection: Selection,
    output: Path,
    group: ProcessGroup,
    *,
    dtype: str,
    grams: GramFolder | None = None,
    done: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Write the sliced model's folder and return the size and SHA-256 of each shard by name (collective).

    Args:
        done: called for each layer, and for what is outside of them.
    """
    with ModelReader(source) as reader:

        def cut(names: list[str]) -> Callable[[], Tensors]:
            # In float32 until it is written: the query scale must be rounded once, not twice.
            return lambda: _cut({name: reader.tensor(name).float() for name in names}, selection, group, grams)

        return write_model_folder(
            output,
            group,
            [cut(names) for names in layer_groups(stored_names(reader, read_json(source / "config.json")))],
            every_rank_reads=False,
            config=stored_config(sliced_config(read_json(source / "config.json"), selection), dtype),
            companions=source,
            done=done,
        )


def slice_stage(job: Job, texts: Texts, source: Path, files: RoundFolder) -> dict[str, Any]:
    """Cut the model by the round's selection, with a progress bar; return what `cut_model` returns (collective)."""
    selection = read_selection(files.selection)
    with ModelReader(source) as reader:
        count = len(layer_groups(stored_names(reader, read_json(source / "config.json"))))
    with job.progress("slice", count, unit="parts") as bar:
        return cut_model(job, texts, source, selection, files.sliced, files.grams, partial(bar.advance, 1))


def cut_model(
    job: Job,
    texts: Texts,
    source: Path,
    selection: Selection,
    output: Path,
    grams: Path,
    done: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Slice with the run's method (collective).

    done: as in `slice_model`. Returns the size and SHA-256 of each shard by name.
    """
    if job.config.prune.method.refit == "sequential":
        job.check_seen("the folder of Gram matrices", grams)
        return slice_sequentially(job, texts, source, selection, output, grams, done)
    return slice_in_parallel(job, source, selection, output, grams, done)


def slice_in_parallel(
    job: Job,
    source: Path,
    selection: Selection,
    output: Path,
    grams: Path,
    done: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Slice with the run's method, but with every layer refitted for itself (collective).

    done: as in `slice_model`. Returns the size and SHA-256 of each shard by name.
    """
    method = job.config.prune.method
    # Decided by the method, not by what the file system shows: a rank with a stale view would slice without the refit.
    read = None
    if method.needs_gram():
        job.check_seen("the folder of Gram matrices", grams)
        read = GramFolder(path=grams, ridge=None if method.refit == "none" else Ridge.of(method))
    return slice_model(source, selection, output, job.group, dtype=job.config.model.dtype, grams=read, done=done)


def _cut(tensors: Tensors, selection: Selection, group: ProcessGroup, grams: GramFolder | None) -> Tensors:
    layer = layer_of(next(iter(tensors)))
    if layer is None or grams is None:
        return slice_tensors(tensors, selection)
    tensors = {name: tensor.to(group.device) for name, tensor in tensors.items()}
    return slice_tensors(tensors, selection, read_gram(grams.path, layer, group.device), grams.ridge)
