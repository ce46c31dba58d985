"""Read model folders in the layout of Hugging Face: safetensors shards and an index.

Nothing here reads more than it is asked for: a rank takes its own range of a tensor, or one tensor.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import safe_open

from transact.files import read_json, write_json
from transact.models.model_files import DERIVED, INDEX_NAME, SINGLE_NAME


def weight_map(folder: Path) -> dict[str, str]:
    """Return the shard file name of each weight; stored rotary frequencies, which config.json gives, are left out."""
    if (folder / INDEX_NAME).is_file():
        files = {str(name): str(file) for name, file in read_json(folder / INDEX_NAME)["weight_map"].items()}
    else:
        with safe_open(folder / SINGLE_NAME, framework="pt") as file:
            files = dict.fromkeys(list(file.keys()), SINGLE_NAME)
    return {name: file for name, file in files.items() if DERIVED not in name}


class ModelReader:
    """Random access to the tensors of a model folder; a context manager that closes its files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = weight_map(folder)
        self._stack = ExitStack()
        self._open: dict[str, Any] = {}

    def __enter__(self) -> ModelReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._open.clear()

    def _file(self, name: str) -> Any:
        shard = self.files[name]
        if shard not in self._open:
            self._open[shard] = self._stack.enter_context(safe_open(self.folder / shard, framework="pt"))
        return self._open[shard]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file(name).get_slice(name).get_shape())

    def tensor(self, name: str) -> torch.Tensor:
        return self._file(name).get_tensor(name)

    def flat_range(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return elements [start, stop) of the flattened tensor, reading only the rows that hold them."""
        shape = self.shape(name)
        row = math.prod(shape[1:])
        first, last = start // row, -(-stop // row)
        rows = self._file(name).get_slice(name)[first:last]
        return rows.reshape(-1)[start - first * row : stop - first * row]


def write_index(folder: Path, files: dict[str, str], total_bytes: int) -> None:
    write_json(folder / INDEX_NAME, {"metadata": {"total_size": total_bytes}, "weight_map": files})
