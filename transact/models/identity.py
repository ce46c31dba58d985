"""Tell which model a folder holds, wherever it lies, and whether its weights can be used at all."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transact.errors import Refusal
from transact.files import file_digest
from transact.models.model_files import COMPANION_FILES, CONFIG, HEADER_LENGTH_BYTES, INDEX_NAME, own_file, shard_names

if TYPE_CHECKING:
    from torch import Tensor


SAMPLES, SAMPLE_BYTES = 64, 1 << 16  # 4 MiB of a shard: all of a small one
Identity = dict[str, dict[str, Any]]  # file name -> "size" in bytes, and digests by what they are of


def identity_files(folder: Path) -> list[str]:
    """Return the names of the files that make a model: configuration, tokenizer, weights."""
    names = [name for name in (CONFIG, INDEX_NAME, *COMPANION_FILES) if own_file(folder, name)]
    return names + shard_names(folder)


def identify(path: Path, *, in_full: bool, on_read: Callable[[], object] = lambda: None) -> dict[str, Any]:
    """Return the size and the digests of one file.

    Args:
        in_full: hash a shard as a whole as well. Other files always are.
        on_read: called after every few megabytes.
    """
    size = path.stat().st_size
    if path.suffix != ".safetensors":
        return {"size": size, "sha256": file_digest(path, on_read)}
    found: dict[str, Any] = {"size": size, **_sampled(path, size)}
    return found | {"sha256": file_digest(path, on_read)} if in_full else found


def _sampled(path: Path, size: int) -> dict[str, str]:
    with path.open("rb", buffering=0) as file:
        prefix = file.read(HEADER_LENGTH_BYTES)
        header = prefix + file.read(struct.unpack("<Q", prefix)[0])
        sample, room = hashlib.sha256(), max(0, size - len(header) - SAMPLE_BYTES)
        for place in range(SAMPLES if room else 1):
            file.seek(len(header) + room * place // (SAMPLES - 1), os.SEEK_SET)
            sample.update(file.read(SAMPLE_BYTES))
    return {"header": hashlib.sha256(header).hexdigest(), "sample": sample.hexdigest()}


def difference(before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the first file that differs, in words; None for the same model.

    Digests that only one side has do not count.
    """
    for name in sorted(before.keys() | now.keys()):
        if name not in now:
            return f"{name} is gone"
        if name not in before:
            return f"{name} was not there"
        for what in ("size", "header", "sample", "sha256"):
            old, new = before[name].get(what), now[name].get(what)
            if old is not None and new is not None and old != new:
                return f"{name} had {old} bytes and has {new}" if what == "size" else f"{name} has another content"
    return None


class UnusableModel(Refusal):
    """A model that cannot be used, as only its weights or a first measurement show; the message is one line."""


def not_finite(values: Tensor) -> str | None:
    """Return what is among the values besides finite numbers, in words; None where all are finite."""
    import torch

    if values.numel() == 0 or not values.is_floating_point():
        return None
    lowest, highest = torch.aminmax(values)  # reads float32 at 16 GB/s on one core, isfinite().all() at 0.3
    if bool(lowest.isnan()):  # one NaN makes both NaN
        return "values that are not numbers (NaN)"
    limit = torch.finfo(torch.float32).max  # float64 may hold more, which would be infinite here
    if not (-limit <= float(lowest) and float(highest) <= limit):
        return "infinite values"
    return None
