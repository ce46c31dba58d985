"""How many threads a rank has, where its launcher bound it to cores and where it did not."""

from __future__ import annotations

import os

from tests.support.ranks import run_on_ranks

CORES = 4  # of a rank that is bound; this machine may have fewer


def threads_of_a_rank(is_bound: bool) -> tuple[int, str]:
    import torch

    from transact.distributed.process import process_group

    for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ.pop(name, None)
    first = CORES * int(os.environ["RANK"]) if is_bound else 0
    os.sched_getaffinity = lambda _: set(range(first, first + CORES))
    with process_group("cpu", 5):
        return torch.get_num_threads(), os.environ["RAYON_NUM_THREADS"]


def test_cores_that_a_rank_was_bound_to_are_not_divided_again() -> None:
    assert run_on_ranks(2, threads_of_a_rank, True) == [(4, "4")] * 2
    assert run_on_ranks(2, threads_of_a_rank, False) == [(2, "2")] * 2
