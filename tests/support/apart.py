"""A stand-in for a device: tensors whose memory is a file, reachable by copies alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map_only


class Apart(torch.Tensor):
    """A tensor as on a GPU: no pointer leads into it from the CPU, and ``.to("cpu")`` is a copy."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Apart:
        made: Any = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device="meta"
        )
        made.inner = inner
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Apart({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        inside = tree_map_only(Apart, lambda each: each.inner, (arguments, keywords or {}))
        result = function(*inside[0], **inside[1])
        if function is torch.ops.aten._to_copy.default or (arguments and not isinstance(arguments[0], Apart)):
            return result  # it has left the device
        return tree_map_only(torch.Tensor, Apart, result)


def in_a_file(path: Path, elements: int) -> Apart:
    """A float32 tensor of random bits (none of a number that is not finite) in a file: no anonymous memory holds it."""
    mapped = torch.from_file(str(path), shared=True, size=elements, dtype=torch.float32)
    for part in mapped.split(1 << 20):
        part.uniform_(-1, 1)
    return Apart(mapped)


def anonymous_bytes() -> int:
    """The process's own memory: that of mapped files is not counted."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kibibytes,) = (line.split()[1] for line in lines if line.startswith("RssAnon:"))
    return int(kibibytes) * 1024


@contextmanager
def anonymous_growth() -> Iterator[Callable[[], int]]:
    """Watches the process's own memory during the block; the result tells how far it rose above that of the start."""
    before = highest = anonymous_bytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, anonymous_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: highest - before
    finally:
        done.set()
        thread.join()
