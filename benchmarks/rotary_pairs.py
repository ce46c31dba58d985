"""What pairs in progression cost, against the best set of pairs, when the heads of the demo parent get smaller.

    python -m benchmarks.rotary_pairs

MLPs stay whole. Once without recovery, and once with it where `--recovered` names a head_dim.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.quality import Trial, partial_name, run_all
from benchmarks.workload import RESULTS, write_result
from transact.config import ROTARY_CHOICES

HEAD_DIMS = (28, 24, 20, 16, 12, 8)  # of 32


def trials(head_dims: list[int], *, recovered: bool) -> list[Trial]:
    return [
        Trial(
            method=choice,
            overrides=("prune=explicit", "prune.rounds=1", f"prune.head_dim={dim}", f"prune.rotary_pairs={choice}"),
            fraction=None,
            seed=0,
            recovered=recovered,
        )
        for dim in head_dims
        for choice in ROTARY_CHOICES
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head-dims", type=int, nargs="*", default=list(HEAD_DIMS))
    parser.add_argument("--recovered", type=int, nargs="*", default=[24, 16])
    parser.add_argument("--tokens", type=int, default=131_072, help="of recovery")
    parser.add_argument("--evaluation-sequences", type=int, default=128)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "rotary_pairs.json")
    arguments = parser.parse_args()
    todo = [*trials(arguments.head_dims, recovered=False), *trials(arguments.recovered, recovered=True)]
    parent, rows = run_all(
        todo,
        tokens=arguments.tokens,
        evaluation_sequences=arguments.evaluation_sequences,
        jobs=arguments.jobs,
        partial=partial_name(arguments.output),
    )
    write_result(arguments.output, {"parent": parent, "rows": rows, "tokens": arguments.tokens})


if __name__ == "__main__":
    main()
