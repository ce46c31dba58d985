"""Tags: what a run is found by."""

from __future__ import annotations

from dataclasses import replace

from tests.support.configs import compose_config
from transact.tracking.wandb_names import run_tags


def test_a_point_of_a_sweep_is_tagged_with_what_is_swept_over() -> None:
    config = compose_config(["name=x", "track.tags=[mine]", "prune.remove_fraction=0.5"])
    alone = run_tags(config)
    assert alone[:2] == ["mine", "prune"]
    assert "remove_fraction=0.5" in alone
    assert "sweep" not in alone
    point = replace(config, share_dir="s", output_dir="sweeps/prune.remove_fraction=0.5,seed=3")
    assert run_tags(point)[-3:] == ["sweep", "prune.remove_fraction=0.5", "seed=3"]
    lists = replace(config, share_dir="s", output_dir="sweeps/prune.round_shares=[1,2],seed=3")
    assert run_tags(lists)[-3:] == ["sweep", "prune.round_shares=[1,2]", "seed=3"]


def test_no_tag_is_longer_than_wandb_takes() -> None:
    config = compose_config(["name=x", f"track.tags=[{'t' * 90}]"])
    assert max(map(len, run_tags(config))) == 64
