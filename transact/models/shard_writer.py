"""Write safetensors files through one buffer: tensors on a device never stand in the machine's memory as a whole.

The library's own `save_file` brings every tensor to the CPU before it writes the first. The layout is the library's
(https://huggingface.co/docs/safetensors): the length of a JSON header in 8 bytes, the header, the tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

WRITE_BUFFER_BYTES = 1 << 26
ALIGNMENT_BYTES = 8
# In the order in which the library stores them, the last ones first: a tensor is then aligned to its own elements.
DTYPE_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
assert sys.byteorder == "little", "safetensors stores little-endian numbers"


def write_shard(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    dtype: torch.dtype | None,
    metadata: dict[str, str] | None = None,
    on_write: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Write one shard to the disk and return its size in bytes and its SHA-256.

    Args:
        dtype: of every tensor in the file; None leaves each as it is.
        on_write: called after every buffer of data (a watchdog waits for a sign of life).

    Raises:
        OSError: of the file system.
    """
    dtypes = {name: dtype or tensor.dtype for name, tensor in tensors.items()}
    places = list(DTYPE_NAMES)
    names = sorted(tensors, key=lambda name: (-places.index(dtypes[name]), name))
    header = _header({name: (dtypes[name], tuple(tensors[name].shape)) for name in names}, metadata or {})
    on_gpu = any(tensor.is_cuda for tensor in tensors.values())
    buffer = torch.empty(WRITE_BUFFER_BYTES, dtype=torch.uint8, pin_memory=on_gpu)
    digest, size = hashlib.sha256(header), len(header)
    with path.open("wb") as file, ThreadPoolExecutor(1) as beside:
        file.write(header)
        for name in names:
            for piece in _pieces(tensors[name], dtypes[name], buffer):
                hashed = beside.submit(digest.update, piece)
                file.write(piece)
                hashed.result()
                size += len(piece)
                on_write()
        file.flush()
        os.fsync(file.fileno())
    return {"size": size, "sha256": digest.hexdigest()}


def _header(stored: dict[str, tuple[torch.dtype, tuple[int, ...]]], metadata: dict[str, str]) -> bytes:
    """Return what stands before the tensors, in their order, padded so that the first of them is aligned."""
    entries: dict[str, Any] = {"__metadata__": dict(sorted(({"format": "pt"} | metadata).items()))}
    start = 0
    for name, (dtype, shape) in stored.items():
        stop = start + torch.Size(shape).numel() * dtype.itemsize
        entries[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT_BYTES)
    return len(text).to_bytes(8, "little") + text


def _pieces(tensor: torch.Tensor, dtype: torch.dtype, buffer: torch.Tensor) -> Iterator[memoryview]:
    """Yield the bytes of a tensor in `dtype`, piece by piece, each in the same buffer."""
    flat, staged, content = tensor.detach().reshape(-1), buffer.view(dtype), buffer.numpy()
    for start in range(0, flat.numel(), staged.numel()):
        piece = flat[start : start + staged.numel()]
        staged[: piece.numel()].copy_(piece)
        yield content[: piece.numel() * dtype.itemsize].data
