"""Slice: write a physically smaller model, from a model folder to a model folder.

No engine is needed. Unless layers are corrected in order (`stages/sequential.py`), each rank reads, cuts, refits and
writes its share of them, and never holds more than one layer and its Gram matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

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

    done: as in `slice_in_parallel`. Returns the size and SHA-256 of each shard by name.
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

    done: called for each layer, and for what is outside of them. Returns the size and SHA-256 of each shard by name.
    """
    method, device, config = job.config.prune.method, job.group.device, read_json(source / "config.json")
    ridge = None if method.refit == "none" else Ridge.of(method)
    # Decided by the method, not by what the file system shows: a rank with a stale view would slice without the refit.
    if method.needs_gram():
        job.check_seen("the folder of Gram matrices", grams)
    with ModelReader(source) as reader:

        def cut(names: list[str]) -> Tensors:
            # In float32 until it is written: the query scale must be rounded once, not twice.
            tensors = {name: reader.tensor(name).float() for name in names}
            layer = layer_of(names[0])
            if layer is None or not method.needs_gram():
                return slice_tensors(tensors, selection)
            tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
            return slice_tensors(tensors, selection, read_gram(grams, layer, device), ridge)

        return write_model_folder(
            output,
            job.group,
            [partial(cut, names) for names in layer_groups(stored_names(reader, config))],
            every_rank_reads=False,
            config=stored_config(sliced_config(config, selection), job.config.model.dtype),
            companions=source,
            done=done,
        )
