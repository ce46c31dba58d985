"""Split: share the cut between attention and MLP by measuring candidates that meet the budget.

Each candidate is cut out of the parent in one go, by the run's own method but without sequential corrections, and its
loss on the validation part of the training text decides. Held-out text is not looked at. With fewer key-value heads
only sizes of heads are measured that are not below the best one so far: the heads that stay want to be wider.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

from transact.engine.engine import open_engine
from transact.files import read_json, remove_flat, write_json
from transact.geometry import Geometry
from transact.pruning.search_space import by_key_value_heads
from transact.pruning.selection import Selection
from transact.runs.run_folder import RoundFolder
from transact.stages.evaluate import perplexity_of
from transact.stages.job import Job
from transact.stages.recover.validation import validation_loss
from transact.stages.select import collect_evidence, decide, greedy_channels, orders_of_heads
from transact.stages.slice import slice_in_parallel
from transact.stages.texts import Texts
from transact.stages.workload import elimination_share


def choose_split(job: Job, texts: Texts, parent: Path, files: RoundFolder) -> None:
    """Write split.json: the candidates' losses, the chosen dimensions and the selection for them (collective)."""
    settings, whole, candidates = job.config.prune, job.outline.parent, job.outline.candidates
    evidence = collect_evidence(job, parent, files.statistics)
    widths = {target.intermediate_size for target in candidates}
    begun = elimination_share(job.config, job.outline)
    channels = greedy_channels(job, parent, files.grams, widths, share=(0.0, begun))
    orders = orders_of_heads(job, parent, files.grams, candidates)
    choose = partial(decide, settings, evidence, channels=channels, parent=whole, head_orders=orders)
    rows: list[dict[str, Any]] = []
    best, least = None, math.inf
    with job.progress("measure splits", len(candidates), unit="candidates", share=(begun, 1.0)) as bar:
        for line in by_key_value_heads(candidates):
            worthwhile = worth_measuring(line, best.target if best else None)
            bar.advance(len(line) - len(worthwhile))
            for target in worthwhile:
                selection = choose(target=target)
                loss = _loss_after(job, texts, parent, selection, files.grams, files.trial(len(rows)))
                if best is None or loss < least:
                    best, least = selection, math.inf if math.isnan(loss) else loss
                rows.append({"geometry": target.to_dict(), "parameters": target.parameters(), "loss": loss})
                job.say(f"split: {_words(target)}: perplexity {perplexity_of(loss):.2f} on validation text")
                bar.advance(1, perplexity=perplexity_of(loss))
    assert best is not None
    if job.group.is_main:
        write_json(files.split, {"candidates": rows, "chosen": best.target.to_dict(), "selection": best.to_json()})


def worth_measuring(line: list[Geometry], best: Geometry | None) -> list[Geometry]:
    """Return the candidates of one number of heads that may be better than the best of those with more heads."""
    return [each for each in line if best is None or each.head_dim >= best.head_dim]


def _words(target: Geometry) -> str:
    heads = f"{target.num_attention_heads}/{target.num_key_value_heads} heads"
    return f"head_dim {target.head_dim}, {heads}, intermediate_size {target.intermediate_size}"


def _loss_after(job: Job, texts: Texts, parent: Path, selection: Selection, grams: Path, trial: Path) -> float:
    """Cut the parent by a selection into the folder `trial`, for its validation loss, in nats per token."""
    slice_in_parallel(job, parent, selection, trial, grams)
    job.check_seen("a candidate of the split", trial)
    with open_engine(trial, job.config.engine, job.group) as engine:
        loss = validation_loss(job, texts, engine)
    if job.group.is_main:
        remove_flat(trial)
    return loss


def read_split(path: Path) -> Selection:
    """Return the selection of the candidate that was chosen."""
    return Selection.from_json(read_json(path)["selection"])
