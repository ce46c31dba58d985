"""Held-out texts beside the training text: how much of each is trained on, measured once for each."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path

from transact.data.overlap import TOLD_SHARE, WINDOW, Windows
from transact.data.token_store import TokenStore
from transact.distributed.file_lock import held_by_one_run
from transact.files import read_json, write_json
from transact.stages.job import Job
from transact.stages.token_stores import LOCK_SUFFIX

TURNS = 50  # parts of a store, after each of which a job may be stopped


def measure_overlap(
    job: Job, held_out: Mapping[str, TokenStore], trained: Mapping[str, TokenStore]
) -> dict[str, float]:
    """Return which share of each held-out text's windows of tokens stands in the training text too (collective).

    The result lies beside the token stores, so that mode=tokenize measures it for the run, and no run does it twice.

    Args:
        held_out, trained: stores by the settings of their texts.
    """
    shares = {setting: _share(job, setting, store, trained) for setting, store in held_out.items()}
    for setting, share in shares.items():
        if share >= TOLD_SHARE:
            job.say(
                f"warning: {setting}: {share:.1%} of its windows of {WINDOW} tokens stand in the training text too, so "
                "its perplexity is partly one of text that was trained on"
            )
    return shares


def _share(job: Job, setting: str, store: TokenStore, trained: Mapping[str, TokenStore]) -> float:
    is_chat = job.config.texts()[setting].messages_field is not None
    names = {"of": store.name, "in": sorted(each.name for each in trained.values()), "window": WINDOW}
    names |= {"once": True} if is_chat else {}
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:20]
    cached = Path(job.config.data.token_store) / f"{digest}.overlap.json"
    # Of the runs that need it at the same time, one measures and the others wait for it.
    with held_by_one_run(cached.with_name(f"{digest}{LOCK_SUFFIX}"), job.group, remove=True):
        share: float | None = job.group.on_main(lambda: read_json(cached)["share"] if cached.is_file() else None)
        if share is None:
            share = _measured(job, Windows(store, once=is_chat), setting, trained)
            job.group.on_main(lambda: write_json(cached, names | {"share": share}))
    return share


def _measured(job: Job, found: Windows, setting: str, trained: Mapping[str, TokenStore]) -> float:
    tokens = sum(each.num_sequences * each.sequence_length for each in trained.values())
    ranks, parts = job.group.world_size, TURNS * job.group.world_size
    with job.progress(f"look for {setting} in the training text", tokens, in_step=False) as bar:
        for each, turn in itertools.product(trained.values(), range(TURNS)):
            part = turn * ranks + job.group.rank
            own = range(each.num_sequences * part // parts, each.num_sequences * (part + 1) // parts)
            found.look_in(each, own, lambda count: bar.advance(count * ranks))
            job.group.turn()
    job.group.sum(found.found)
    return found.share()
