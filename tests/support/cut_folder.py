"""Cut a model folder by a selection in one process, without a run."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from transact.engine.model_folder import add_code, copy_companions, layer_groups
from transact.files import read_json, write_json
from transact.models.llama import layer_of, slice_tensors, sliced_config
from transact.pruning.refit import Ridge
from transact.pruning.selection import Selection
from transact.stages.calibrate import read_gram


def cut_folder(
    source: Path, folder: Path, selection: Selection, grams: Path | None = None, ridge: Ridge | None = None
) -> Path:
    """The cut of a folder by a selection, with the refit if Gram matrices are given."""
    stored, tensors = load_file(source / "model.safetensors"), {}
    for names in layer_groups(stored):
        layer, part = layer_of(names[0]), {name: stored[name] for name in names}
        is_fitted = grams is not None and layer is not None
        gram = read_gram(grams, layer, torch.device("cpu")) if is_fitted else None
        tensors |= slice_tensors(part, selection, gram, ridge if is_fitted else None)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = sliced_config(read_json(source / "config.json"), selection)
    write_json(folder / "config.json", config)
    copy_companions(source, folder)
    add_code(config, folder)
    return folder
