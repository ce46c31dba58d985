"""What pairs in progression cost, against the best set of pairs, when the heads of the demo parent get smaller.

    python -m benchmarks.rotary_pairs

MLPs stay whole, nothing is recovered, and one calibration serves all cuts. Perplexity on held-out text of the kind that
the parent learned from.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.quality import Settings, Trial, opened, trial_config, write_descriptions
from benchmarks.workload import RESULTS, num_cores, write_result
from transact.chain import calibrate_round
from transact.config import ROTARY_CHOICES
from transact.exit_codes import DONE, leave
from transact.models.folder import geometry_of
from transact.stages.evaluate import measure
from transact.stages.plan import collect_evidence, decide
from transact.stages.slice import cut_checkpoint

HEAD_DIMS = (28, 24, 20, 16, 12, 8)  # of 32
CUT = "prune=explicit", "prune.rounds=1"


def rows(head_dims: list[int], calibration_sequences: int, settings: Settings) -> list[dict[str, Any]]:
    """The dense parent, then each head_dim with either choice of pairs."""
    calibration = f"prune.calibration_sequences={calibration_sequences}"
    overrides = (*CUT, f"prune.head_dim={min(head_dims)}", calibration, "recover.tokens=0")
    trial = Trial(method="default", overrides=overrides, fraction=None, seed=0, recovered=False)
    job, prepared, _ = opened(trial_config(trial, settings, settings.folder / "run"))
    parent, texts = prepared.parent, prepared.texts
    calibrate_round(job, prepared, "round_01", parent)
    statistics, grams = job.path("round_01", "statistics.safetensors"), job.path("round_01", "gram")
    evidence, whole = collect_evidence(job, parent, statistics), geometry_of(parent)
    found = [{"head_dim": whole.head_dim, "pairs": "all", "perplexity": measure(job, texts, parent)["perplexity"]}]
    for head_dim in head_dims:
        for choice in ROTARY_CHOICES:
            asked = replace(job, config=replace(job.config, prune=replace(job.config.prune, rotary_pairs=choice)))
            target = replace(whole, head_dim=head_dim)
            plan = decide(asked, evidence, parent, grams, target, parent=whole, asked=None)
            cut = settings.folder / f"{head_dim}_{choice}"
            cut_checkpoint(asked, texts, parent, plan, cut, grams)
            row = {"head_dim": head_dim, "pairs": choice, "kept": list(plan.rotary_pairs(0, 0))}
            found.append(row | {"perplexity": measure(asked, texts, cut)["perplexity"]})
            print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head-dims", type=int, nargs="+", default=list(HEAD_DIMS))
    parser.add_argument("--calibration-sequences", type=int, default=128)
    parser.add_argument("--evaluation-sequences", type=int, default=128)
    parser.add_argument("--output", type=Path, default=RESULTS / "rotary_pairs.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="transact-rotary-") as name:
        settings = Settings(
            tokens=0, evaluation_sequences=arguments.evaluation_sequences, threads=num_cores(), folder=Path(name)
        )
        write_descriptions(settings.folder / "descriptions.txt")
        found = rows(arguments.head_dims, arguments.calibration_sequences, settings)
        write_result(arguments.output, {"rows": found})


if __name__ == "__main__":
    main()
    leave(DONE)
