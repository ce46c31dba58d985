"""How many bytes a rank needs at its peak, in closed form.

Held against what ranks really allocate by `benchmarks.memory_model`; allocators and libraries add to it.
"""

from transact.memory.estimate import GIB, MemoryEstimate, estimate_memory
from transact.memory.gram import gram_bytes, gram_passes, gram_peak_bytes, hidden_stream_bytes

__all__ = [
    "GIB",
    "MemoryEstimate",
    "estimate_memory",
    "gram_bytes",
    "gram_passes",
    "gram_peak_bytes",
    "hidden_stream_bytes",
]
