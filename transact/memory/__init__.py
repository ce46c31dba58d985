"""How many bytes a rank needs at its peak, in closed form.

Held against what ranks really allocate by `benchmarks.memory_model`; allocators and libraries add to it.
"""

from transact.memory.estimate import BYTES_BY_DTYPE, STAGE_KINDS, MemoryEstimate, estimate_memory
from transact.memory.gram import (
    FLOAT32_BYTES,
    GIB,
    gram_bytes,
    gram_disk_bytes,
    gram_passes,
    gram_peak_bytes,
    hidden_stream_bytes,
)

__all__ = [
    "BYTES_BY_DTYPE",
    "FLOAT32_BYTES",
    "GIB",
    "STAGE_KINDS",
    "MemoryEstimate",
    "estimate_memory",
    "gram_bytes",
    "gram_disk_bytes",
    "gram_passes",
    "gram_peak_bytes",
    "hidden_stream_bytes",
]
