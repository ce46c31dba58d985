"""What PyTorch's CPU allocator hands out while some work is done, from the profiler's own record of it.

transact.evaluation.efficiency.generation counts the tensors that operators return, and names no more; here what the
kernels take and give back inside counts too.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def allocated_peak(work: Callable[[], None]) -> int:
    """Bytes at the worst moment, above those at the start."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    events = [each for each in profiled.profiler.kineto_results.events() if each.name() == "[memory]"]
    current = highest = 0
    for each in sorted(events, key=lambda each: each.start_ns()):
        current += each.nbytes()  # negative for a release
        highest = max(highest, current)
    return highest
