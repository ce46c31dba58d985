"""Latencies from a table: by hand, never falling with a width, and as a limit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.configs import compose_config
from tests.unit.pruning.test_budget import SMALL
from transact.geometry import Widths
from transact.pruning.latency import SETTINGS, LatencyTable, interpolated, rising
from transact.pruning.limits import Limits, Serving, limit_words, within
from transact.pruning.search_space import Multiples, SearchSpace
from transact.rounds import outline, towards

# SMALL: 2 layers, 1 key-value head of 16 dims, 40 channels.
TABLE = LatencyTable(attention=((4, 1.0), (16, 4.0)), mlp=((10, 2.0), (40, 8.0)), rest=3.0)


def stored(**changes: Any) -> dict[str, Any]:
    phase = {"rest": 3.0, "attention": [[16, 4.0], [4, 1.0]], "mlp": [[10, 2.0], [40, 8.0]]}
    settings = dict.fromkeys(SETTINGS, 1)
    return {"geometry": SMALL.to_dict(), "settings": settings, "phases": {"decode": phase, "prefill": phase}} | changes


def test_a_model_takes_the_sum_of_its_layers() -> None:
    assert TABLE.milliseconds(SMALL) == 3 + 2 * (4 + 8)
    assert TABLE.milliseconds(replace(SMALL, head_dim=10, intermediate_size=25)) == 3 + 2 * (2.5 + 5)
    shape = SMALL.with_layers([Widths(num_key_value_heads=1, intermediate_size=size) for size in (10, 40)])
    assert TABLE.milliseconds(shape) == 3 + 2 * 4 + 2 + 8


def test_beyond_the_measured_widths_the_nearest_counts() -> None:
    assert [interpolated(TABLE.mlp, width) for width in (1, 10, 20, 40, 100)] == [2, 2, 4, 8, 8]


def test_noise_never_makes_a_wider_layer_faster() -> None:
    curve = rising([(30, 3.0), (10, 2.0), (20, 1.5), (40, 2.9)])
    assert curve == ((10, 2.0), (20, 2.0), (30, 3.0), (40, 3.0))


def test_a_limit_of_latency_is_met_by_the_widest_that_meet_it() -> None:
    limits = Limits(parent=SMALL, serving=Serving(latency=TABLE), asked={"latency_ms": 15.5})
    found = within(limits, SearchSpace.below(SMALL, Multiples(head_dim=4, intermediate_size=8)))
    # 6.25 ms a layer: 16 dims take 4 and leave 2.25 for 11 channels, 12 dims leave 16, 8 dims 21, 4 dims 26.
    assert [(each.head_dim, each.intermediate_size) for each in found] == [(16, 8), (12, 16), (4, 24)]
    compared = limits.compared(found[1])["latency_ms"]
    assert compared == {"asked": 15.5, "most": 15.5, "reached": 3 + 2 * (3 + 3.2), "dense": 27.0}
    assert limit_words("latency_ms", compared) == "prune.budget.latency_ms: 15.40 of at most 15.50"


def test_a_table_is_read_by_phase_in_any_order() -> None:
    assert LatencyTable.from_json(stored(), "decode", SMALL) == TABLE


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "no table"),
        (stored(phases={"decode": {}}), "no table"),
        (stored(settings={}), "no table"),
        (stored(phases={"decode": {"rest": float("nan"), "attention": [[1, 1]], "mlp": [[1, 1]]}}), "no table"),
        (stored(phases={"decode": {"rest": 1, "attention": [[float("inf"), 1]], "mlp": [[1, 1]]}}), "no table"),
        (stored(phases={"decode": {"rest": 1, "attention": [], "mlp": [[1, 1]]}}), "no table"),
        (stored(geometry=replace(SMALL, hidden_size=99).to_dict()), "hidden_size 99 instead of"),
    ],
)
def test_what_is_no_table_of_this_model_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LatencyTable.from_json(values, "decode", SMALL)


def test_the_table_is_not_needed_any_more_once_a_split_is_chosen(tmp_path: Path) -> None:
    """Somebody may move it while the run is at work."""
    table = tmp_path / "table.json"
    table.write_text(json.dumps(stored()))
    limits = ["prune=budget", "prune.budget.latency_ms=15.5", f"prune.budget.latency_table={table}"]
    multiples = ["prune.multiple.head_dim=4", "prune.multiple.intermediate_size=8", "prune.rounds=2"]
    recovery = ["recover.tokens=131072", "recover.batch_sequences=4", "data.sequence_length=64"]
    config = compose_config(["name=a", *recovery, *limits, *multiples])
    whole = outline(config, SMALL)
    table.unlink()
    chosen = whole.candidates[-1]
    after = towards(config, whole, chosen)
    assert after.rounds[-1].geometry == chosen and len(after.rounds) == 2
    assert replace(after, rounds=whole.rounds) == whole
