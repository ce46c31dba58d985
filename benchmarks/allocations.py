"""The peak memory of PyTorch's CPU allocator while some work is done, from the profiler's record of allocations.

transact.evaluation.efficiency.generation counts only the tensors that operators return. Here what kernels allocate and
free inside counts too.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def allocated_peak(work: Callable[[], None]) -> int:
    """Return the bytes allocated at the peak of the work, above those at its start."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    events = [each for each in profiled.profiler.kineto_results.events() if each.name() == "[memory]"]
    current = highest = 0
    for each in sorted(events, key=lambda each: each.start_ns()):
        current += each.nbytes()  # negative for a release
        highest = max(highest, current)
    return highest
