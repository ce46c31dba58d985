"""Measure what pairs in progression cost, against the best set of pairs, when the heads of the demo parent get smaller.

    python -m benchmarks.rotary_pairs

MLPs stay whole. Perplexity right after the cut, and after recovery on the same tokens, on the two held-out texts of
benchmarks.quality.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.quality import Trial, partial_name, run_all
from benchmarks.workload import RESULTS, num_cores, write_result
from transact.config.pruning import ROTARY_CHOICES
from transact.errors import DONE, leave

HEAD_DIMS = (28, 24, 20, 16, 12, 8)  # of 32


def trials(head_dims: list[int], calibration_sequences: int) -> list[Trial]:
    """Return a trial for each head_dim and each choice of pairs, which is its method's name."""
    cut = (
        "prune=explicit",
        "prune/method=obs",
        "prune.rounds=1",
        f"prune.calibration_sequences={calibration_sequences}",
    )
    return [
        Trial(
            method=choice,
            overrides=(*cut, f"prune.head_dim={head_dim}", f"prune.rotary_pairs={choice}"),
            fraction=None,
            seed=0,
            recovered=True,
        )
        for head_dim in head_dims
        for choice in ROTARY_CHOICES
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head-dims", type=int, nargs="+", default=list(HEAD_DIMS))
    parser.add_argument("--tokens", type=int, default=131_072, help="of recovery")
    parser.add_argument("--calibration-sequences", type=int, default=128)
    parser.add_argument("--evaluation-sequences", type=int, default=128)
    parser.add_argument("--jobs", type=int, default=num_cores(), help="trials at a time")
    parser.add_argument("--output", type=Path, default=RESULTS / "rotary_pairs.json")
    arguments = parser.parse_args()
    parent, rows = run_all(
        trials(arguments.head_dims, arguments.calibration_sequences),
        tokens=arguments.tokens,
        evaluation_sequences=arguments.evaluation_sequences,
        jobs=arguments.jobs,
        partial=partial_name(arguments.output),
    )
    write_result(arguments.output, {"parent": parent, "rows": rows})


if __name__ == "__main__":
    main()
    leave(DONE)
